"""What one process of the command line knows: the words typed, and how its sweeps ended. Hydra passes neither on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcsweep.search import Search

ARGV: list[str] = []  # as typed, before they were rewritten for Hydra
EXIT_STATUS: list[int] = []
SEARCHES: list[Search] = []  # the one that this is, if any
RESUMING: list[Path] = []  # the folder that `resume=` named, if any


def begin(argv: list[str], resuming: Path | None = None) -> None:
    """Start anew."""
    ARGV[:], EXIT_STATUS[:], SEARCHES[:] = argv, [], []
    RESUMING[:] = [] if resuming is None else [resuming]
