"""Trees of whole Jetsons: their sensors, and what says which board and which power mode it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import sensor_trees
from .sensor_trees import write

CPU = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_max_freq"


@dataclass(frozen=True)
class Board:
    """What is written beside the sensors' files; a mode's clocks are its GPU's and CPU's limits in MHz."""

    model: str
    compatible: str
    modes: dict[str, tuple[int, int]]
    mode: int
    release: str | None = None  # where the sensors' tree has none


RELEASES = {
    35: "# R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref",
    36: "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic",
}
XAVIER = {
    "MAXN": (1377, 2265), "MODE_10W": (520, 1200), "MODE_15W": (670, 1200), "MODE_30W_ALL": (900, 1200),
}  # fmt: skip
ORIN = {"MAXN": (1300, 2201), "MODE_15W": (421, 1113), "MODE_30W": (625, 1728), "MODE_50W": (829, 1497)}
BOARDS = {
    "xavier_r32": Board("Jetson-AGX", "nvidia,p2972-0000 nvidia,tegra194", XAVIER, 0),
    "xavier_r35": Board("Jetson-AGX", "nvidia,p2972-0000 nvidia,tegra194", XAVIER, 2),
    "agx_orin_r35": Board("NVIDIA Jetson AGX Orin", "nvidia,p3737-0000+p3701-0005 nvidia,tegra234", ORIN, 0),
    "orin_nano_r36": Board(
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005-super nvidia,tegra234",
        {"15W": (612, 1510), "25W": (918, 1344), "MAXN_SUPER": (1020, 1728)}, 2, RELEASES[36],
    ),
    "thor_r38": Board(
        "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p3971-0089+p3834-0008 nvidia,tegra264",
        {"MAXN": (1575, 2601), "120W": (1386, 2601)}, 0,
    ),
}  # fmt: skip


def board(root: Path, name: str) -> Path:
    """Write a whole board below `root`, with a program `bin/nvpmodel` that reads and switches its mode there."""
    sensor_trees.board(root, name)
    one = BOARDS[name]
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "model").write_bytes(one.model.encode() + b"\0")
    (tree / "compatible").write_bytes(one.compatible.replace(" ", "\0").encode() + b"\0")
    if one.release:
        write(root, {"etc/nv_tegra_release": one.release})
    lines = "\n".join(f"< POWER_MODEL ID={n} NAME={mode} >" for n, mode in enumerate(one.modes))
    write(root, {"etc/nvpmodel.conf": f"< PARAM TYPE=FILE NAME=CPU_ONLINE >\n{lines}\n< PM_CONFIG DEFAULT=0 >"})
    write(root, {"proc/meminfo": "MemTotal: 31345116 kB\nMemAvailable: 20000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB"})
    write(root, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimdhp"})
    switch_files(root, name, one.mode)
    nvpmodel(root, name)
    return root


def switch_files(root: Path, name: str, number: int) -> None:
    """The files as they are in a mode."""
    gpu, cpu = list(BOARDS[name].modes.values())[number]
    (clock,) = (f for f in (root / "sys/class/devfreq").iterdir() if not f.name.startswith("gpu-nvd"))
    write(root, {f"{clock.relative_to(root)}/max_freq": gpu * 1_000_000, CPU.format(0): cpu * 1000, CPU.format(1): 0})
    write(root, {"var/lib/nvpmodel/status": f"pmode:{number:04d} fmode:quiet", "mode": number})


def nvpmodel(root: Path, name: str, before_switch: str = "") -> Path:
    """The program, as a script of the shell; `before_switch` runs before a mode is set."""
    modes = BOARDS[name].modes
    (clock,) = (f for f in (root / "sys/class/devfreq").iterdir() if not f.name.startswith("gpu-nvd"))
    cases = "\n".join(
        f"{n}) echo {gpu}000000 >{clock}/max_freq; echo {cpu}000 >{root / CPU.format(0)};;"
        for n, (gpu, cpu) in enumerate(modes.values())
    )
    names = " ".join(modes)
    program = root / "bin/nvpmodel"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"""#!/bin/sh
if [ "$1" = -q ]; then
  n=$(cat {root}/mode); i=0
  for name in {names}; do [ $i = $n ] && echo "NV Power Mode: $name" && echo $n; i=$((i+1)); done
  exit 0
fi
echo "$*" >>{root}/switches
{before_switch}
case $2 in
{cases}
*) echo "NVPM ERROR: invalid mode"; exit 255;;
esac
echo $2 >{root}/mode
""")
    program.chmod(0o755)
    return program


def switches(root: Path) -> list[str]:
    """The numbers of the modes that were asked for, in order."""
    file = root / "switches"
    return [line.removeprefix("-m ") for line in file.read_text().splitlines()] if file.exists() else []
