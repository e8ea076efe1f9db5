"""What one process of the command line knows: the words typed, and how its sweeps ended. Hydra passes neither on."""

from __future__ import annotations

ARGV: list[str] = []  # as typed, before they were rewritten for Hydra
EXIT_STATUS: list[int] = []


def begin(argv: list[str]) -> None:
    """Start anew."""
    ARGV[:], EXIT_STATUS[:] = argv, []
