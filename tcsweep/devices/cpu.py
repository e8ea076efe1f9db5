"""The host: its processor, the instructions that decide 16-bit and 8-bit speed, its memory, the share of it allowed."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcsweep.devices.root import board_root

# Flags of /proc/cpuinfo (x86 and 64-bit Arm) that oneDNN and the Arm Compute Library choose kernels by.
DECISIVE = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "fphp", "bf16", "i8mm", "sve",
)  # fmt: skip

# As Linux names them in /proc/cpuinfo ("flags" on x86, "Features" on Arm; arch/*/kernel/cpu*).
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def facts() -> dict[str, Any]:
    """Environment fields: cpu_model, cpu_features, memory_mib."""
    proc = board_root() / "proc"
    return {**parse_cpuinfo(_read(proc / "cpuinfo")), "memory_mib": parse_meminfo(_read(proc / "meminfo"))}


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


def quota(root: Path, cgroup: str) -> float | None:
    """The tightest quota, in CPUs, of this process's groups and those around them; version 1 and 2. `cgroup` is the
    text of `/proc/self/cgroup`."""
    found = []
    for folder in control_groups(root, cgroup):
        found.append(_limit(_read(folder / "cpu.max")))
        found.append(_limit(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"))
    return min((one for one in found if one is not None), default=None)


def control_groups(root: Path, cgroup: str) -> Iterator[Path]:
    """Folders of the control groups that may limit this process's CPU time, the innermost first. One that a container
    cannot see does not exist: its own root stands for it."""
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            if not controllers:
                yield root / "sys/fs/cgroup" / group
            elif "cpu" in controllers.split(","):
                yield root / "sys/fs/cgroup/cpu" / group
                yield root / "sys/fs/cgroup/cpu,cpuacct" / group


def _limit(text: str) -> float | None:
    """`200000 100000` is 2 CPUs; `max 100000` and `-1 100000` are no limit."""
    numbers = re.fullmatch(r"\s*(\d+)\s+([1-9]\d*)\s*", text)
    return int(numbers[1]) / int(numbers[2]) if numbers else None


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}[ \t]*:[ \t]*(\S.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
