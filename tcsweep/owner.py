"""Which process a sweep belongs to, so that another one can tell for certain that it is gone."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process, told apart from every other one of any machine and time. None: could not be read."""

    host: str
    machine: str | None = None  # a digest of what identifies the machine: many boards share a name
    boot_id: str | None = None
    pid_namespace: str | None = None  # a pid means nothing in another container
    pid: int = 0
    started: str | None = None  # in clock ticks after the boot: pids are used again


def this_process(root: Path = Path("/")) -> Owner:
    """The owner that this process is."""
    pid = os.getpid()
    return Owner(platform.node(), _machine(root), _boot_id(root), _pid_namespace(root), pid, _started(root, pid))


def is_dead(owner: Owner, root: Path = Path("/")) -> bool:
    """Whether the process is known to have ended: it ran on this machine, before its last boot, or in this process's
    container, where nothing has its pid and start any more. False where that cannot be told."""
    here = this_process(root)
    if owner.host != here.host or None in (owner.boot_id, here.boot_id):
        return False
    if owner.boot_id != here.boot_id:
        return owner.machine is not None and owner.machine == here.machine
    if owner.pid_namespace is None or owner.pid_namespace != here.pid_namespace or owner.started is None:
        return False
    return _started(root, owner.pid) != owner.started


def _machine(root: Path) -> str | None:
    """Of systemd's machine id and a board's serial number: copied images share the first."""
    known = _text(root / "etc/machine-id")
    serial = _text(root / "proc/device-tree/serial-number") or ""
    return hashlib.sha256(f"{known} {serial}".encode()).hexdigest()[:16] if known else None


def _boot_id(root: Path) -> str | None:
    return _text(root / "proc/sys/kernel/random/boot_id")


def _pid_namespace(root: Path) -> str | None:
    try:
        return os.readlink(root / "proc/self/ns/pid")
    except OSError:
        return None


def _started(root: Path, pid: int) -> str | None:
    """Field 22 of /proc/PID/stat; the name before it may hold blanks and brackets. None: no such process, or one that
    has ended and waits to be asked for."""
    text = _text(root / f"proc/{pid}/stat")
    fields = text.rpartition(")")[2].split() if text else []
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
