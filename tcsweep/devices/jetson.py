"""What a Jetson is: module, SoC, Jetson Linux release, power mode, clocks. Off a Jetson every fact is absent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tcsweep.devices.root import board_root, number, text
from tcsweep.devices.sysfs_sensors import device_tree, gpu_clocks, is_jetson

RELEASE = "etc/nv_tegra_release"
STATUS = "var/lib/nvpmodel/status"  # what nvpmodel notes of the mode: "pmode:0002 fmode:quiet"
MODES = "etc/nvpmodel.conf"  # its table: "< POWER_MODEL ID=2 NAME=MODE_15W >"
# Major release of Jetson Linux to JetPack's (NVIDIA's JetPack archive).
JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
SOC = re.compile(r"nvidia,(tegra\d+)\b")


def facts(root: Path | None = None) -> dict[str, Any]:
    """Environment fields of a Jetson, whose files are below `root`; empty off one. None is "could not be read"."""
    root = board_root() if root is None else root
    if not is_jetson(root):
        return {}
    return {
        **parse_release(text(root / RELEASE) or ""),
        "module": device_tree("model", root),
        "soc": parse_soc(device_tree("compatible", root) or ""),
        "shared_memory": True,  # every Jetson's GPU uses the CPU's memory
        **state(root),
    }


def state(root: Path) -> dict[str, Any]:
    """The fields that follow the power mode: its name and number, and the limits of the clocks in MHz."""
    gpu_mhz = gpu_range(root)
    cpus = [number(file) for file in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq")]
    return {
        "power_mode": power_mode(root),
        "clocks_locked": gpu_mhz and gpu_mhz[0] == gpu_mhz[1],
        "cpu_mhz_max": max((khz / 1e3 for khz in cpus if khz is not None), default=None),
        "gpu_mhz_max": gpu_mhz and gpu_mhz[1],
        "emc_mhz_max": _megahertz(number(root / "sys/kernel/nvpmodel_clk_cap/emc")),
    }


def gpu_range(root: Path) -> tuple[float, float] | None:
    """The lowest and the highest clock that the GPU may take now, in MHz; one value where jetson_clocks holds it."""
    clock = next(gpu_clocks(root), None)
    lowest, highest = (number(clock / f"{end}_freq") if clock else None for end in ("min", "max"))
    return None if lowest is None or highest is None else (lowest / 1e6, highest / 1e6)


def parse_release(text: str) -> dict[str, Any]:
    """`# R36 (release), REVISION: 4.3, ...` is L4T 36.4.3."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if not found:
        return {}
    return {"l4t": f"{found[1]}.{found[2]}", "jetpack": JETPACK.get(int(found[1]))}


def parse_soc(text: str) -> str | None:
    """The system on chip among the names that a device tree is compatible with: `nvidia,tegra234` is "tegra234"."""
    names = SOC.findall(text.replace("\0", " "))
    return names[-1] if names else None


def power_mode(root: Path) -> str | None:
    """Name and number of the mode, as nvpmodel prints it; where it does not, as in most containers, from the files that
    it keeps."""
    return parse_power_mode(_nvpmodel()) or parse_status(text(root / STATUS) or "", text(root / MODES) or "")


def parse_power_mode(text: str) -> str | None:
    """Name and number from `nvpmodel -q`, whose warnings may stand around them; None where no mode is named."""
    lines = [line.strip() for line in text.splitlines()]
    for line, following in zip(lines, [*lines[1:], ""]):
        if "NV Power Mode:" in line:
            name = line.partition("NV Power Mode:")[2].strip()
            return f"{name} ({following})" if following.isdecimal() else name or None
    return None


def parse_status(status: str, table: str) -> str | None:
    """The same from nvpmodel's note of the number, and its table of names; None where the table lacks it."""
    noted = re.search(r"\bpmode:(\d+)", status)
    names = parse_modes(table)
    return f"{names[int(noted[1])]} ({int(noted[1])})" if noted and int(noted[1]) in names else None


def parse_modes(table: str) -> dict[int, str]:
    """The names of a board's power modes by number, from nvpmodel's table."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", table, re.MULTILINE)
    return {int(number): name for number, name in found}


def _megahertz(hertz: float | None) -> float | None:
    return hertz / 1e6 if hertz else None


def _nvpmodel() -> str:
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
