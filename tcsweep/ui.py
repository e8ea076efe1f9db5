"""`python -m tcsweep ui [FOLDER]`: MLflow's pages of an embedded store, at a loopback address, opened at the prepared
view of a sweep. Nothing is written; knows no MLflow but its command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tcsweep import store
from tcsweep import tracking_views as views
from tcsweep.mistakes import Mistake
from tcsweep.tracking_uri import connect_sqlite, sqlite_uri

USAGE = "python -m tcsweep ui [FOLDER]"
DATABASE = "mlflow.db"
PORT = 5000
START_S = 90.0  # a Jetson's SD card takes its time
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # half of the memory, for what no sweep needs
}


def main(arguments: list[str]) -> int:
    """Serve until Ctrl-C. Raises Mistake."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\nMLflow's pages on a sweep's store; FOLDER is a sweep's, or one with an {DATABASE} (outputs).")
        return 0
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        raise Mistake(f"ui takes one folder at most: {USAGE}")
    folder = Path(arguments[0] if arguments else "outputs")
    database = find_store(folder)
    port = free_port(PORT)
    address = f"http://127.0.0.1:{port}/{page(database, folder)}"
    with tempfile.TemporaryFile() as log, _serving(database, port, log) as server:
        print(f"MLflow starts on {database}", flush=True)
        if not _answers(server, port):
            raise Mistake(f"MLflow did not start: {_last_lines(log)}")
        _tell(address, port)
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()
            raise Mistake(f"MLflow ended: {_last_lines(log)}")
    return 0


def find_store(folder: Path) -> Path:
    """The database in a folder or the nearest one above it. Raises Mistake where there is none."""
    folder = folder.resolve()
    found = next((f / DATABASE for f in (folder, *folder.parents) if (f / DATABASE).is_file()), None)
    if found is None:
        raise Mistake(f"no {DATABASE} in {folder} or above: a sweep makes it, or `python -m tcsweep sync FOLDER`")
    return found


def page(database: Path, folder: Path) -> str:
    """The prepared view of the folder's sweep, else of the latest one, else the list of runs."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect_sqlite(database, "ro", 5.0)) as connection:
        query = "select experiment_id, key, value from experiment_tags where key like ?"
        found = connection.execute(query, (f"{views.TAG}{views.MARK}%",)).fetchall()
        if found:
            ends = f".{views.slug(_sweep_id(folder))}" if store.is_planned(folder) else ""
            asked = [row for row in found if ends and row[1].endswith(ends)]
            experiment, key, _ = max(asked or found, key=lambda row: (views.created_at_ms(row[2]), row[1]))
            return views.table_page(str(experiment), key.removeprefix(views.TAG))
    return f"#/experiments?{views.MODE}"


def _sweep_id(folder: Path) -> str:
    sweep, _ = store.load_sweep(folder)
    return sweep.id


def free_port(wanted: int) -> int:
    """The port, or any other where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                return int(one.getsockname()[1])
    raise Mistake("no port of 127.0.0.1 is free")


@contextlib.contextmanager
def _serving(database: Path, port: int, log: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", sqlite_uri(database)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, **ENVIRONMENT}
    server = subprocess.Popen(  # a group of its own: its workers go with it, and Ctrl-C is ours to pass on
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # type: ignore[call-overload]
    )
    try:
        yield server
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
        time.sleep(0.2)
    return False


def _last_lines(log: object) -> str:
    log.seek(0)  # type: ignore[attr-defined]
    lines = log.read().decode(errors="replace").split("\n")  # type: ignore[attr-defined]
    return " ".join(" ".join(lines[-5:]).split())[-400:] or "it said nothing"


def _tell(address: str, port: int) -> None:
    print(address, flush=True)
    if "SSH_CONNECTION" in os.environ:
        print(f"On your own machine first: ssh -L {port}:127.0.0.1:{port} {os.uname().nodename}", flush=True)
    print("Ctrl-C ends it", flush=True)
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        import webbrowser

        webbrowser.open(address)
