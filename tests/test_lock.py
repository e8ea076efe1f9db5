from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcsweep import lock
from tcsweep.lock import device_lock

ROOT = Path(__file__).parents[1]
HOLD = (
    "import sys; from tcsweep.lock import device_lock\n"
    "with device_lock(sys.argv[1], print): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def name() -> str:
    """A device of this test alone: the locks are the whole machine's."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.01)


class Other:
    """Another sweep: a process that holds a device's lock until its input ends."""

    def __init__(self, name: str, *words: str) -> None:
        self.command = [sys.executable, "-c", HOLD, name, *words]
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def release(self) -> None:
        self.process.communicate()


@pytest.fixture
def other(name: str) -> Iterator[Other]:
    made = Other(name, "precision=o1,fp16", "name=two words")
    yield made
    made.process.kill()
    made.process.communicate()


def is_free(name: str) -> bool:
    """Whether another sweep could take the lock now."""
    with socket.socket(socket.AF_UNIX) as asking:
        return lock._take(asking, f"\0tcsweep/{name}")


def test_a_free_lock_is_taken_without_a_word_and_given_back(name: str) -> None:
    with device_lock(name, pytest.fail):
        inside = is_free(name)
    assert (inside, is_free(name)) == (False, True)


def test_two_devices_are_measured_side_by_side(name: str) -> None:
    with device_lock(f"{name}-0", pytest.fail), device_lock(f"{name}-1", pytest.fail):
        assert [is_free(f"{name}-{n}") for n in (0, 1, 2)] == [False, False, True]


def test_an_error_under_the_lock_gives_it_back(name: str) -> None:
    with pytest.raises(OSError, match="disk full"), device_lock(name, pytest.fail):
        raise OSError("disk full")
    assert is_free(name)


def test_a_held_lock_is_waited_for_and_its_holder_said_once_with_its_command(name: str, other: Other) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        threading.Timer(0.1, other.release).start()

    with device_lock(name, say):
        assert other.process.wait(5) == 0
    holder = f"process {other.process.pid} ({shlex.join(other.command)})"
    assert said == [f"waiting for the device: {holder} is measuring on it"]


def test_a_killed_holder_leaves_nothing_behind(name: str, other: Other) -> None:
    assert not is_free(name)
    other.process.kill()
    other.process.wait()
    with device_lock(name, pytest.fail):
        assert not is_free(name)


def test_a_holder_that_does_not_answer_is_another_sweep(name: str) -> None:
    said: list[str] = []
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"\0tcsweep/{name}")  # bound and not yet listening

        def say(text: str) -> None:
            said.append(text)
            silent.close()

        with device_lock(name, say):
            pass
    assert said == ["waiting for the device: another sweep is measuring on it"]


def test_the_lock_does_not_pass_to_child_processes(name: str) -> None:
    with device_lock(name, pytest.fail):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert is_free(name)
    finally:
        child.kill()
        child.wait()


def test_a_holders_command_may_hold_bytes_that_are_no_text(name: str) -> None:
    other, said = Other(name, os.fsdecode(b"name=\xff")), []

    def say(text: str) -> None:
        said.append(text)
        other.release()

    try:
        with device_lock(name, say):
            pass
    finally:
        other.process.kill()
    assert [text.partition(" (")[0] for text in said] == [f"waiting for the device: process {other.process.pid}"]


def test_a_lock_that_can_never_be_taken_is_no_reason_to_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(_: float) -> None:
        raise TimeoutError("waits for nobody")

    monkeypatch.setattr(lock.time, "sleep", wait)
    said: list[str] = []
    too_long = name + "x" * 200  # stands for whatever but EADDRINUSE
    with device_lock(too_long, said.append):
        said.append("measured")
    assert said[-1] == "measured"
