"""A whole Jetson as `doctor` looks at it, below one root. Nothing here imports torch or waits for long."""

from __future__ import annotations

import grp
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tcsweep.devices import jetson, nvpmodel
from tcsweep.devices.jtop import OPEN_S, JtopReader
from tcsweep.devices.nvpmodel import Mode
from tcsweep.devices.reader import within
from tcsweep.devices.root import board_root, text
from tcsweep.devices.sysfs_sensors import Nodes, SysfsReader, find, is_jetson

SOCKET = "run/jtop.sock"
IN_CONTAINER = (".dockerenv", "run/.containerenv")
SWITCHED_OFF = ("gpu", "cv")  # zones of units that are off when idle, and then give an error or nothing
DEVICES = ("nvmap", "nvhost-gpu", "nvhost-ctrl-gpu", "dri/renderD128")  # what a GPU's user opens, below /dev


@dataclass(frozen=True)
class Board:
    """A Jetson as it was found. None: not told."""

    facts: Mapping[str, object] = field(default_factory=dict)  # of the environment: l4t, power_mode, clocks
    modes: tuple[Mode, ...] = ()
    left: Mode | None = None  # the mode to which a killed sweep did not go back
    gpu_mhz: tuple[float, float] | None = None  # the lowest and the highest that the GPU may take now
    swaps: Mapping[str, float] = field(default_factory=dict)  # MiB in use by device
    jtop: str | None = None  # "4.3.2" where its service answers
    jtop_client: str | None = None  # the version of the package here
    jtop_socket: bool = False
    power_of: str | None = None
    unread: tuple[str, ...] = ()  # rails and zones that are there and did not answer
    no_access: Mapping[str, str] = field(default_factory=dict)  # device files that cannot be opened, with their group
    contained: bool = False
    image_l4t: str | None = None  # the release that a container was made for


def look(root: Path | None = None) -> Board | None:
    """The board whose files are below `root`; None off a Jetson."""
    root = board_root() if root is None else root
    if not is_jetson(root):
        return None
    nodes = find(root)
    files = SysfsReader(nodes)
    client = JtopReader(files)
    answers = client.open(OPEN_S)
    client.close()
    return Board(
        facts=jetson.facts(root),
        modes=nvpmodel.modes(root),
        left=nvpmodel.left_behind(),
        gpu_mhz=jetson.gpu_range(root),
        swaps=parse_swaps(text(root / "proc/swaps") or ""),
        jtop=_version("jetson-stats") if answers else None,
        jtop_client=_version("jetson-stats"),
        jtop_socket=(root / SOCKET).exists(),
        power_of=nodes.power_of,
        unread=tuple(_unread(nodes)),
        no_access={name: _group(root / "dev" / name) for name in DEVICES if _refused(root / "dev" / name)},
        contained=any((root / name).exists() for name in IN_CONTAINER),
        image_l4t=os.environ.get("L4T_VERSION"),
    )


def parse_swaps(found: str) -> dict[str, float]:
    """MiB in use by device, of /proc/swaps: its columns are filename, type, size, used (KiB), priority."""
    lines = [line.split() for line in found.splitlines()[1:]]
    return {Path(line[0]).name: int(line[3]) / 1024 for line in lines if len(line) >= 4 and line[3].isdigit()}


def _unread(nodes: Nodes) -> Iterator[str]:
    for rail in nodes.rails:
        if within(1.0, rail.watts) is None:
            yield rail.name
    for zone in nodes.zones:
        if within(1.0, zone.celsius) is None and not zone.name.lower().startswith(SWITCHED_OFF):
            yield zone.name


def _refused(path: Path) -> bool:
    return path.exists() and not os.access(path, os.R_OK | os.W_OK)


def _group(path: Path) -> str:
    try:
        return grp.getgrgid(path.stat().st_gid).gr_name
    except (KeyError, OSError):
        return "video"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
