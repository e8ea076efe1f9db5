"""What one process of the command line knows: the words typed, and how its sweeps ended. Hydra passes neither on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tcsweep.objective import Objective

ARGV: list[str] = []  # as typed, before they were rewritten for Hydra
EXIT_STATUS: list[int] = []
STUDIES: list[tuple[Path, Objective]] = []  # a search: its folder, and what it looks for
RESUMING: list[Path] = []  # the folder that `resume=` named, if any
FOLDERS: list[Path] = []  # of this process's sweeps: a search has several


def begin(argv: list[str], resuming: Path | None = None) -> None:
    """Start anew."""
    ARGV[:], EXIT_STATUS[:], FOLDERS[:], STUDIES[:] = argv, [], [], []
    RESUMING[:] = [] if resuming is None else [resuming]
