"""Fresh processes: a fork server with torch preloaded, one worker a round. Only workers touch CUDA."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tcsweep._process import die_with_parent, environment, kill_group, prefer_to_be_killed
from tcsweep.failures import classify, killed

# They change results behind our back: fp32 would be TF32, or tf32 would not; no launch would overlap the GPU's work.
REMOVED_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_LAUNCH_BLOCKING")
# Nothing of tracking concerns a worker, and a password least of all.
PRIVATE_PREFIXES = ("MLFLOW_",)
HEARTBEAT_S = 1.0  # a silent worker's stage is said again, so that the elapsed time moves on


@dataclass(frozen=True)
class Broken:
    """A worker that gave no value: where, what kind, and one line for a person."""

    stage: str
    kind: str
    reason: str


class Tell:
    """What a task can say to the sweep while it runs: its stage, and a running estimate; and wait for its turn."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.last_stage = pipe, "start"

    def stage(self, name: str) -> None:
        """Name the stage that begins."""
        self.last_stage = name
        self._send("stage", name)

    def estimate(self, iteration_ms: float, half_width: float | None) -> None:
        """Milliseconds a batch so far, and the half-width of its interval over it."""
        self._send("estimate", (iteration_ms, half_width))

    def value(self, index: int, value: Any) -> None:
        """Hand over one of several values."""
        self._send("one", (index, value))

    def turn(self) -> None:
        """Wait until the worker before this one is gone, memory and all."""
        self.pipe.recv()

    def _send(self, kind: str, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send((kind, value))


Listener = Callable[[str, Any], None]


class Server:
    """The fork server. One environment, fixed when it starts."""

    def __init__(self) -> None:
        self._context = mp.get_context("forkserver")
        self.worker_pid: int | None = None  # of the worker that runs; it leads a process group of its own
        self._leaving: Any = None  # the last worker, told to die; its context takes the driver 0.3 s to take down
        self.removed = tuple(v for v in REMOVED_VARIABLES if v in os.environ)

    def start(self) -> None:
        """Start the server, its environment cleaned. Call from a thread that lives as long as the sweep."""
        from multiprocessing import forkserver

        self._context.set_forkserver_preload(["tcsweep._preload"])
        with self._clean_environment():
            forkserver.ensure_running()

    def _clean_environment(self) -> contextlib.AbstractContextManager[None]:
        """Ours for the server and its workers: nothing removed or private, and this package importable wherever we
        were started from, since they get PYTHONPATH and not our sys.path."""
        private = [v for v in os.environ if v.startswith(PRIVATE_PREFIXES)]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), root) if p)
        return environment({**dict.fromkeys((*self.removed, *private)), "PYTHONPATH": path})

    def run(
        self,
        task: str,
        request: Any,
        *,
        log: Path | None = None,
        timeout_s: float = 600.0,
        listen: Listener | None = None,
    ) -> Any:
        """Run a task, "module:function" called with (request, tell), in a fresh process; its value, or Broken. Never
        raises for what the worker does; KeyboardInterrupt passes through when the worker is gone."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_main, args=(task, request, theirs, log and str(log)), daemon=False)
        with self._clean_environment(), _hidden_main():
            _start(process)
        theirs.close()
        self.worker_pid = process.pid
        try:
            self.join()
            with contextlib.suppress(BrokenPipeError):
                ours.send("turn")
            return _listen(process, ours, timeout_s, listen or (lambda kind, value: None))
        finally:
            if process.pid is not None:
                kill_group(process.pid)
            self._leaving = process
            self.worker_pid = None
            ours.close()

    def join(self) -> None:
        """Wait until the last worker is gone. The next one starts beside it, up to its turn."""
        if self._leaving is not None:
            self._leaving.join()
            self._leaving = None


def _start(process: Any) -> None:
    try:
        process.start()
    except (EOFError, ConnectionError):  # the server was killed; the next start makes a new one
        process._popen = None
        process.start()


def _listen(process: Any, pipe: Connection, timeout_s: float, listen: Listener) -> Any:
    deadline, stage = time.monotonic() + timeout_s, "start"
    while True:
        left = deadline - time.monotonic()
        if left > 0 and not pipe.poll(min(left, HEARTBEAT_S)):
            listen("stage", stage)
            continue
        if left <= 0:
            return Broken(stage, "timeout", f"no result after {timeout_s:g} s, while in stage {stage!r}")
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            process.join(timeout=5)
            return Broken(stage, *killed(process.exitcode if process.exitcode is not None else 0))
        if kind == "value":
            return value
        if kind == "error":
            return Broken(stage, *value)
        if kind == "stage":
            stage = value
        listen(kind, value)


def _main(task: str, request: Any, pipe: Connection, log: str | None) -> None:
    """A worker's life: its own session, its log, the task, the answer."""
    die_with_parent()
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prefer_to_be_killed()
    if log is not None:
        _redirect(log)
    try:
        if "torch" not in sys.modules:
            import torch  # noqa: F401 - the server swallows an error of its preload; here it shows
            import torchvision  # noqa: F401
        module, _, function = task.partition(":")
        pipe.send(("value", getattr(importlib.import_module(module), function)(request, Tell(pipe))))
    except BaseException as error:
        if log is not None:
            traceback.print_exc()
        pipe.send(("error", classify(error)))
    finally:
        pipe.close()
        sys.stdout.flush()
        sys.stderr.flush()
        # Skip the interpreter's teardown: CUDA's takes a tenth of a second and has nothing to save.
        os._exit(0)


def _redirect(log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Hide `__main__` while a worker starts: it would be imported again there, console script and all."""
    main = sys.modules["__main__"].__dict__
    kept: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)
