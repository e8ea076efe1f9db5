"""Jetson: Jetson Linux release and power mode. Off a Jetson every fact is absent."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

RELEASE = Path("/etc/nv_tegra_release")
# Major release of Jetson Linux to JetPack's (NVIDIA's JetPack archive).
JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}


def facts() -> dict[str, Any]:
    """Environment fields: l4t, jetpack, power_mode; empty where there is no release file."""
    try:
        release = parse_release(RELEASE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}
    return {**release, "power_mode": parse_power_mode(_nvpmodel())}


def parse_release(text: str) -> dict[str, Any]:
    """`# R36 (release), REVISION: 4.3, ...` is L4T 36.4.3."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    if not found:
        return {}
    return {"l4t": f"{found[1]}.{found[2]}", "jetpack": JETPACK.get(int(found[1]))}


def parse_power_mode(text: str) -> str | None:
    """Name and number from `nvpmodel -q`, whose warnings may stand around them; None where no mode is named."""
    lines = [line.strip() for line in text.splitlines()]
    for line, following in zip(lines, [*lines[1:], ""]):
        if "NV Power Mode:" in line:
            name = line.partition("NV Power Mode:")[2].strip()
            return f"{name} ({following})" if following.isdecimal() else name or None
    return None


def _nvpmodel() -> str:
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, errors="replace", timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
