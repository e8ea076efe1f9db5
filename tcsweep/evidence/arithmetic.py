"""The switches that decide what a process's arithmetic is, read in the process itself. Imports torch: for workers."""

from __future__ import annotations

import hashlib
import os
import types
import warnings
from typing import Any

import torch
import torch.nn.functional

from tcsweep.evidence.facts import Arithmetic

_TORCH = os.path.dirname(torch.__file__) + os.sep
_DECORATORS = (
    "typing.py",
    "typing_extensions.py",
    "functools.py",
    "contextlib.py",
    "warnings.py",
)  # torch uses them itself
_PATCHABLE: tuple[Any, ...] = (torch, torch.nn.functional, torch.Tensor)  # where apex's amp and its twin patch


def arithmetic() -> Arithmetic:
    """What holds now, in this thread."""
    return Arithmetic(
        tf32_convolution=_tf32("cudnn", "conv", torch.backends.cudnn),
        tf32_matmul=_tf32("cuda", "matmul", torch.backends.cuda.matmul),
        matmul_precision=_matmul_precision(),
        autocast=_autocast(),
        patched=patched(),
        flush_denormal=_flush_denormal(),
    )


def _tf32(backend: str, operator: str, older: Any) -> bool:
    """The per-operator switch of torch 2.9 and later, which wins; before it, the only one."""
    owner = getattr(getattr(torch.backends, backend), operator, None)
    precision = getattr(owner, "fp32_precision", None)
    if precision in ("tf32", "ieee"):
        return bool(precision == "tf32")
    try:
        return bool(older.allow_tf32)
    except RuntimeError:  # as for the matmul precision; nothing says that it is off
        return True


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch 2.9 and later refuse where old and new switches disagree
        return "mixed"


def _autocast() -> tuple[str, ...]:
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later, where those below are deprecated
        on = [device for device in ("cuda", "cpu") if torch.is_autocast_enabled(device)]
        return tuple(f"{device}:{_plain(torch.get_autocast_dtype(device))}" for device in on)
    found = []
    with warnings.catch_warnings():  # torch 2.4 and later would be asked by device, which those before it cannot be
        warnings.simplefilter("ignore", DeprecationWarning)
        if torch.is_autocast_enabled():
            found.append(f"cuda:{_plain(torch.get_autocast_gpu_dtype())}")
        if torch.is_autocast_cpu_enabled():
            found.append(f"cpu:{_plain(torch.get_autocast_cpu_dtype())}")
    return tuple(found)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def patched() -> str:
    """How many of torch's functions are someone else's code, and which, as a fingerprint; "" where none is. A wrapper
    takes its name and module from what it wraps, but not its code."""
    names = []
    for owner in _PATCHABLE:
        for name, value in vars(owner).items():
            if isinstance(value, types.FunctionType) and not _is_torchs(value.__code__.co_filename):
                names.append(f"{owner.__name__}.{name}")
    if not names:
        return ""
    return f"{len(names)} functions, {hashlib.sha256(' '.join(sorted(names)).encode()).hexdigest()[:8]}"


def _is_torchs(path: str) -> bool:
    return path.startswith((_TORCH, "<")) or os.path.basename(path) in _DECORATORS


def _flush_denormal() -> bool:
    """Whether this thread's float32 arithmetic takes denormal numbers for zero."""
    smallest = torch.tensor([2.0**-126])
    return bool((smallest * 0.5).eq(0).item())
