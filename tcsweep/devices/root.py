"""Where a board's own files are: below `/`, or below a fake board's tree; one root for all of /proc, /sys and /etc."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TCSWEEP_BOARD_ROOT"


def board_root() -> Path:
    """The folder that stands for `/`: what `TCSWEEP_BOARD_ROOT` names, in tests a fake board, else `/`."""
    return Path(os.environ.get(VARIABLE) or "/")


def text(path: Path) -> str | None:
    """A file's text without the blanks and NULs at its ends; None where it cannot be read, whatever the error: a
    sensor's file may exist and answer EAGAIN, EINVAL or EIO. Half as dear as `Path.read_text`, since sensors are read
    many times a second, and a pipe is not waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        read = b"".join(iter(lambda: os.read(file, 65536), b""))
    except OSError:
        return None
    finally:
        os.close(file)
    return read.decode("utf-8", "replace").strip("\0 \t\r\n")


def number(path: Path) -> float | None:
    """The one number in a file; None where there is none. Never 0 for what cannot be read."""
    try:
        return float(text(path) or "")
    except ValueError:
        return None
