"""Errors of a worker, told apart: out of which memory, too large to index, killed, or something else."""

from __future__ import annotations

import signal

# What torch and its libraries say, by what it means. First match wins.
_KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "gpu-memory",
        "out of GPU memory",
        (
            "CUDA out of memory",
            "OutOfMemoryError",
            "CUDA error: out of memory",
            "CUDNN_STATUS_ALLOC_FAILED",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "NvMap",  # Jetson's allocator
        ),
    ),
    (
        "host-memory",
        "out of host memory",
        (
            "HostMemoryError",
            "DefaultCPUAllocator",
            "not enough memory",
            "can't allocate memory",
            "bad_alloc",
            "MemoryError",
        ),
    ),
    (
        "too-large",
        "too large to index",
        (
            "canUse32BitIndexMath",
            "32-bit index",
            "Storage size calculation overflowed",
            "integer out of range",
            "int out of range",
            "too large to index",
            "larger than 2^31",
        ),
    ),
    ("no-kernel", "this torch has no kernels for this GPU", ("no kernel image is available",)),
)


def classify(error: BaseException) -> tuple[str, str]:
    """The kind of an exception, and one line for a person: what it means, then what was said."""
    meaningful = _meaningful(str(error))
    said = f"{type(error).__name__}: {meaningful}" if meaningful else type(error).__name__
    whole = f"{type(error).__name__}: {error}"
    for kind, meaning, marks in _KINDS:
        if any(mark in whole for mark in marks):
            return kind, f"{meaning} ({said})"
    return "error", said


def _meaningful(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # load_state_dict's first line ends in a colon and says nothing without the second
    joined = " ".join(lines[:2]) if lines and lines[0].endswith(":") else (lines[0] if lines else "")
    return joined if len(joined) <= 300 else joined[:299] + "…"


def killed(exitcode: int) -> tuple[str, str]:
    """The kind and line of a worker that ended without a word; `exitcode` as multiprocessing gives it."""
    if exitcode < 0:
        name = signal.Signals(-exitcode).name if -exitcode in set(signal.Signals) else f"signal {-exitcode}"
        hint = ", probably out of memory" if exitcode == -signal.SIGKILL else ""
        return "killed", f"worker killed by {name}{hint}"
    return "killed", f"worker ended with exit status {exitcode} and no result"
