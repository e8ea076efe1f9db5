"""The host: its processor, the instructions that decide 16-bit and 8-bit speed, its memory."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

# Flags of /proc/cpuinfo (x86 and 64-bit Arm) that oneDNN and the Arm Compute Library choose kernels by.
DECISIVE = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "fphp", "bf16", "i8mm", "sve",
)  # fmt: skip


def facts() -> dict[str, Any]:
    """Environment fields: cpu_model, cpu_features, memory_mib."""
    return {**parse_cpuinfo(_read("/proc/cpuinfo")), "memory_mib": parse_meminfo(_read("/proc/meminfo"))}


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """The model and the decisive features, in the order of `DECISIVE`."""
    flags = parse_flags(text)
    model = _field(text, "model name") or _field(text, "Model") or _field(text, "Hardware") or platform.machine()
    return {"cpu_model": model, "cpu_features": tuple(f for f in DECISIVE if f in flags)}


def parse_flags(text: str) -> frozenset[str]:
    """All instruction sets of the first CPU, by Linux's names ("flags" on x86, "Features" on Arm)."""
    return frozenset((_field(text, "flags") or _field(text, "Features") or "").split())


def parse_meminfo(text: str) -> int | None:
    """MemTotal in MiB."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) // 1024 if found else None


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
