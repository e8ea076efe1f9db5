"""A lab's server: a real `mlflow server` with PostgreSQL behind it, artifacts through it and a login before it, started
by the plain commands of docs/server.md."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tcsweep.tracking import upload
from tcsweep.tracking_uri import Target
from tests import sweeps

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "p@ss/w:rd%21 long"
LAB = "gpu-box.lab"


def programs() -> Path | None:
    """Where the distribution's PostgreSQL lies."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    which = shutil.which("initdb")
    return found[-1].parent if found else Path(which).parent if which else None


def lacking() -> str | None:
    if programs() is None:
        return "no PostgreSQL here: apt-get install postgresql"
    if os.geteuid() == 0 and not any(p.pw_name == "postgres" for p in pwd.getpwall()):
        return "PostgreSQL does not run as root, and there is no user postgres"
    for module in ("psycopg2", "flask_wtf"):
        try:
            __import__(module)
        except ImportError:
            return f"no {module} here: pip install psycopg2-binary 'mlflow[auth]'"
    return None


pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")


def a_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a new database on loopback."""
    bin_dir = programs()
    assert bin_dir is not None
    folder = tmp_path_factory.mktemp("pg")
    as_user = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")
        for parent in folder.parents:
            if parent != Path("/") and parent.stat().st_uid == 0 and parent.is_relative_to("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    port, data = a_port(), folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder}
    subprocess.run([*as_user, bin_dir / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], **run)  # type: ignore[call-overload]
    control = [*as_user, bin_dir / "pg_ctl", "-D", data, "-w"]
    subprocess.run([*control, "-l", folder / "log", "-o", options, "start"], **run)  # type: ignore[call-overload]
    try:
        subprocess.run(
            [*as_user, bin_dir / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"], **run
        )  # type: ignore[call-overload]
        yield f"postgresql+psycopg2://mlflow:unchecked@127.0.0.1:{port}/mlflow"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **{**run, "check": False})  # type: ignore[call-overload]


@dataclass(frozen=True)
class Lab:
    """The server."""

    port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"http://admin:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def lab(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """`mlflow server` with the settings of docs/server/."""
    folder, port = tmp_path_factory.mktemp("lab"), a_port()
    ini = (ROOT / "docs/server/basic_auth.ini").read_text()
    (folder / "basic_auth.ini").write_text(ini.replace("/home/mlflow/auth", str(folder)))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of this test",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--app-name", "basic-auth", "--backend-store-uri", postgres]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    command += ["--allowed-hosts", f"{LAB}:{port},{LAB}:*,localhost:*,127.0.0.1:*"]
    command += ["--cors-allowed-origins", f"http://{LAB}:{port}"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            until = time.monotonic() + 120
            while _status(port, "/health") != 200:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < until
                time.sleep(0.3)
            yield Lab(port, folder)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 9)
            server.wait()


def _status(port: int, path: str, data: bytes | None = None, **headers: str) -> int | None:
    wanted = {k.replace("_", "-"): v for k, v in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=wanted)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def client_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return MlflowClient(tracking_uri=f"http://127.0.0.1:{lab.port}")


def test_browsers_of_the_lab_get_in_by_its_name_and_strangers_do_not(lab: Lab) -> None:
    import base64

    login = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    api, body = "/api/2.0/mlflow/experiments/search", b'{"max_results": 5}'
    said = {"Authorization": login, "Content_Type": "application/json"}
    name = f"{LAB}:{lab.port}"
    assert _status(lab.port, api, body, Host=name, Origin=f"http://{name}", **said) == 200
    assert _status(lab.port, api, body, Host=name, Content_Type="application/json") == 401
    assert _status(lab.port, api, body, Host="evil.example:80", **said) == 403
    assert _status(lab.port, api, body, Host=name, Origin="http://evil.example", **said) == 403


def test_a_wrong_password_is_one_line_and_nothing_is_lost(lab: Lab, tmp_path: Path) -> None:
    sweep_dir = sweeps.write_sweep(tmp_path)
    began = time.monotonic()
    done = upload(sweep_dir, Target(f"http://admin:wrong%40one@127.0.0.1:{lab.port}", store=tmp_path))
    assert done.error is not None
    assert "refuses the login" in done.error
    assert "wrong" not in done.error
    assert time.monotonic() - began < 5


def _send(folder: Path, address: str, experiment: str, errors: Any) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        os.environ.pop(name, None)
    done = upload(folder, Target(address, experiment, store=folder.parent), 60.0)
    errors.put((done.error, done.runs))


def test_eight_devices_log_at_once_each_run_once_and_sending_again_sends_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for n in range(8):
        board = dataclasses.replace(sweeps.ENVIRONMENT, host=f"board{n}")
        made = [dataclasses.replace(one, environment=board) for one in sweeps.outcomes()]
        folder = sweeps.write_sweep(tmp_path, made, name=f"day/{n}")
        from tcsweep.store import load_sweep, save_sweep

        save_sweep(folder, dataclasses.replace(load_sweep(folder)[0], environment=board))
        folders.append(folder)
    fork = multiprocessing.get_context("fork")
    errors = fork.Queue()
    started = [fork.Process(target=_send, args=(f, lab.address, "eight", errors)) for f in folders]
    for process in started:
        process.start()
    assert [errors.get(timeout=120) for _ in started] == [(None, 5)] * 8
    for process in started:
        process.join()
    client = client_of(lab, monkeypatch)
    experiment = client.get_experiment_by_name("eight")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    ids = [run.data.tags["tcsweep.result_id"] for run in runs]
    assert len(ids) == len(set(ids)) == 8 * 6
    assert {run.data.tags["tcsweep.upload"] for run in runs} == {"complete"}
    assert [f.path for f in client.list_artifacts(runs[0].info.run_id)] != []
    assert len([tag for tag in experiment.tags if tag.startswith("mlflow.sharedViewState.tcsweep.")]) == 16
    again = [upload(f, Target(lab.address, "eight", store=tmp_path), 60.0) for f in folders]
    assert [(done.error, done.runs, done.already) for done in again] == [(None, 0, 5)] * 8


def test_a_sweep_moves_from_an_embedded_store_to_the_lab_with_its_times_and_artifacts(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_dir = sweeps.write_sweep(tmp_path / "outputs")
    assert upload(sweep_dir, Target(None, store=tmp_path / "outputs")).error is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    from tcsweep import sync

    assert sync.main([f"tracking.uri=http://127.0.0.1:{lab.port}", "tracking.experiment=moved"]) == 0
    client = client_of(lab, monkeypatch)
    runs = client.search_runs([client.get_experiment_by_name("moved").experiment_id])
    assert len(runs) == 6
    parent = next(run for run in runs if run.data.tags["tcsweep.kind"] == "sweep")
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, parent.info.run_id}
    first = next(run for run in runs if run.data.params.get("precision") == "o1")
    assert (first.info.start_time, first.info.end_time) == (1_764_000_000_000, 1_764_000_012_500)
    there = client.download_artifacts(first.info.run_id, "result.json", str(tmp_path))
    assert Path(there).read_bytes() == (sweep_dir / sweeps.outcomes()[0].job.folder / "result.json").read_bytes()


def test_with_its_login_cached_the_server_takes_a_run_in_less_than_a_second(lab: Lab, tmp_path: Path) -> None:
    jobs = [sweeps.a_result(sweeps.a_job("o1", batch=n), 1000.0 * n, index=n) for n in range(1, 21)]
    sweep_dir = sweeps.write_sweep(tmp_path, jobs)
    began = time.monotonic()
    done = upload(sweep_dir, Target(lab.address, "cost", store=tmp_path), 60.0)
    assert (done.error, done.runs) == (None, 20)
    assert (time.monotonic() - began) / 20 < 1.0
