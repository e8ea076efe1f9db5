"""Real workers from a real fork server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tcsweep.worker import Broken, Server

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def server() -> Server:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVIDIA_TF32_OVERRIDE", "1")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        started = Server()
        started.start()
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"  # ours is as it was
    return started


def test_a_worker_returns_its_value_and_tells_what_it_does(server: Server, tmp_path: Path) -> None:
    heard: list[tuple[str, Any]] = []
    log = tmp_path / "worker.log"
    value = server.run("tests.tasks:echo", {"a": (1, 2)}, log=log, listen=lambda *said: heard.append(said))
    assert value == {"a": (1, 2)}
    assert [h for h in heard if h != ("stage", "start")] == [("stage", "thinking"), ("estimate", (12.5, None))]
    assert log.read_text() == "a line for the log\n"


def test_each_worker_is_a_fresh_process_in_a_session_of_its_own(server: Server) -> None:
    one, two = server.run("tests.tasks:facts", None), server.run("tests.tasks:facts", None)
    assert one["pid"] != two["pid"]
    assert one["pid"] == one["session"]
    assert one["torch"]
    assert one["oom_score_adj"] == "1000"


def test_a_worker_starts_in_a_fraction_of_a_second(server: Server) -> None:
    server.run("tests.tasks:echo", None)
    start = time.monotonic()
    server.run("tests.tasks:echo", None)
    assert time.monotonic() - start < 1.0


def test_variables_that_change_arithmetic_and_passwords_do_not_reach_workers(server: Server) -> None:
    assert server.removed == ("NVIDIA_TF32_OVERRIDE",)
    assert server.run("tests.tasks:facts", None)["environment"] == {}


def test_what_one_worker_patches_the_next_does_not_see(server: Server) -> None:
    assert server.run("tests.tasks:dtype_after_autocast", True) == "torch.float16"
    assert server.run("tests.tasks:dtype_after_autocast", False) == "torch.float32"


@pytest.mark.parametrize(
    ("task", "request_", "expected"),
    [
        ("fail", "first line\nsecond", Broken("build", "error", "RuntimeError: first line")),
        (
            "fail",
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            Broken(
                "build",
                "gpu-memory",
                "out of GPU memory (RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB)",
            ),
        ),
        (
            "die",
            signal.SIGKILL,
            Broken("throughput", "killed", "worker killed by SIGKILL, probably out of memory"),
        ),
        ("die", signal.SIGSEGV, Broken("throughput", "killed", "worker killed by SIGSEGV")),
        ("leave", 3, Broken("start", "killed", "worker ended with exit status 3 and no result")),
        ("nothing", None, Broken("start", "error", "AttributeError: module 'tests.tasks' has no attribute 'nothing'")),
    ],
)
def test_a_worker_that_breaks_becomes_a_reason(
    server: Server, tmp_path: Path, task: str, request_: Any, expected: Broken
) -> None:
    assert server.run(f"tests.tasks:{task}", request_, log=tmp_path / "log") == expected


def test_a_traceback_is_in_the_log(server: Server, tmp_path: Path) -> None:
    server.run("tests.tasks:fail", "boom", log=tmp_path / "log")
    assert "RuntimeError: boom" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("task", ["hang", "ignore_signals"])
def test_a_worker_that_hangs_is_ended_and_its_stage_named(server: Server, tmp_path: Path, task: str) -> None:
    broken = server.run(f"tests.tasks:{task}", None, timeout_s=1.5)
    assert broken == Broken("building model", "timeout", "no result after 1.5 s, while in stage 'building model'")


def test_what_a_worker_started_ends_with_it(server: Server, tmp_path: Path) -> None:
    server.run("tests.tasks:hang_with_child", str(tmp_path / "pids"), timeout_s=2)
    _wait_until_gone([int(p) for p in (tmp_path / "pids").read_text().split()])


def test_after_sigkill_of_the_sweep_no_process_of_ours_is_left(tmp_path: Path) -> None:
    script = (
        "from tcsweep.worker import Server; s = Server(); s.start();"
        "from multiprocessing import forkserver; import os;"
        f"open({str(tmp_path / 'server')!r}, 'w').write(str(forkserver._forkserver._forkserver_pid));"
        "s.run('tests.tasks:hang', None)"
    )
    sweep = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    workers = _wait_for_children(tmp_path / "server")
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    _wait_until_gone([int((tmp_path / "server").read_text()), *workers])


def _wait_for_children(server: Path) -> list[int]:
    for _ in range(300):
        if server.exists() and (pid := server.read_text()):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                return [int(c) for c in children]
        time.sleep(0.1)
    raise AssertionError("no worker was started")


def _wait_until_gone(pids: list[int]) -> None:
    for _ in range(50):
        if not any(_alive(p) for p in pids):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {[p for p in pids if _alive(p)]}")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_that_was_killed_is_started_again(server: Server) -> None:
    from multiprocessing import forkserver

    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    time.sleep(0.2)
    assert server.run("tests.tasks:facts", None)["environment"] == {}
