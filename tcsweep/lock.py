"""One measurement at a time on a device, machine-wide."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = Path(tempfile.gettempdir()) / "tcsweep-locks"


@contextlib.contextmanager
def device_lock(name: str, command: str, say: Callable[[str], None], folder: Path = FOLDER) -> Iterator[None]:
    """Hold the device's lock; wait for it and say for whom. Where no lock file can be made, say so and go on."""
    path = folder / f"{name}.lock"
    try:
        folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            folder.chmod(0o1777)
        lock = FileLock(path, mode=0o666)
        _acquire(lock, path, say)
    except OSError as error:
        say(f"no device lock ({error}): another sweep on this device would go unnoticed")
        yield
        return
    holder = path.with_suffix(".json")
    with contextlib.suppress(OSError):
        holder.write_text(json.dumps({"pid": os.getpid(), "command": command, "since": time.time()}))
        holder.chmod(0o666)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _acquire(lock: FileLock, path: Path, say: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for the device: {_holder(path)} is measuring on it")
        lock.acquire(poll_interval=0.2)


def _holder(path: Path) -> str:
    try:
        facts = json.loads(path.with_suffix(".json").read_text())
        return f"process {facts['pid']} ({facts['command']})"
    except (OSError, ValueError, KeyError):
        return "another sweep"
