"""One measurement at a time on a device, machine-wide.

The lock is a name in Linux's abstract socket space: seen by all users, whatever their TMPDIR, with no file to be left
behind or be unreadable, and gone with the process that holds it. It is a name of the network namespace: two containers
on one GPU see each other with `--network host` only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shlex
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tcsweep.mistakes import Mistake

POLL_S = 0.2


@contextlib.contextmanager
def device_lock(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the device's lock; wait for it and say for whom."""
    address = f"\0tcsweep/{name}"
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            if not _take(lock, address):
                say(f"waiting for the device: {holder(address)} is measuring on it")
                while not _take(lock, address):
                    time.sleep(POLL_S)
            lock.listen()  # so that who waits can ask the kernel for our pid
        except OSError as error:
            say(f"no device lock ({error}): another sweep on this device would go unnoticed")
        yield


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only one who measures into a sweep's folder; raises Mistake where somebody does already."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    address = f"\0tcsweep/folder/{digest}"
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            taken = _take(lock, address)
            if taken:
                lock.listen()
        except OSError:  # no abstract names here: then nobody is warned
            taken = True
        if not taken:
            raise Mistake(f"{folder}: {holder(address)} is measuring into it")
        yield


def _take(lock: socket.socket, address: str) -> bool:
    try:
        lock.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise
    return True


def holder(address: str) -> str:
    """The process behind the lock, with its command where this user may see it."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(1.0)  # nobody accepts: once its backlog is full, it does not answer
            asking.connect(address)
            pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return "another sweep"
    # An address may hold a password.
    return f"process {pid} ({shlex.join('...' if '://' in w else w for w in words)})"
