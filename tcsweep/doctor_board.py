"""What `doctor` says of a Jetson, and the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tcsweep.devices.board import Board
from tcsweep.devices.nvpmodel import Mode
from tcsweep.doctor_rows import Row, container

# The CUDA that each JetPack's driver serves (NVIDIA's JetPack release notes); a newer major release does not run.
CUDA = {"4": 10, "5": 11, "6": 12, "7": 13}


def rows(board: Board, cuda: str | None) -> list[Row]:
    """A row for each thing; `cuda`: the version that this torch was built with."""
    release = str(board.facts.get("l4t") or "")
    jetpack = board.facts.get("jetpack")
    said = f"{release or 'release unknown'}{f' (JetPack {jetpack})' if jetpack else ''}"
    module = board.facts.get("module")
    return [
        Row("module", "ok", str(module)) if module else Row("module", "warn", "not told: its device tree is hidden"),
        Row("Jetson Linux", "ok" if release else "warn", said, "" if release else _MOUNT_RELEASE),
        power_mode(board),
        clocks(board),
        swap(board.swaps),
        jtop(board),
        sensors(board),
        *_access(board.no_access),
        *_container_age(board, cuda),
    ]


_MOUNT_RELEASE = "in a container, add -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"


def fastest(modes: Sequence[Mode]) -> Mode | None:
    """The mode without limits, else the one of the most watts; None where no name tells."""

    def rank(mode: Mode) -> float:
        if mode.short.startswith("maxn"):
            return 1e6 + len(mode.short)  # MAXN_SUPER is over MAXN
        watts = re.match(r"(\d+)w", mode.short)
        return float(watts[1]) if watts else -1.0

    best = max(modes, key=rank, default=None)
    return best if best is not None and rank(best) >= 0 else None


def power_mode(board: Board) -> Row:
    """The power mode against the fastest; a mode that a killed sweep left is one to go back from."""
    now, best = board.facts.get("power_mode"), fastest(board.modes)
    if board.left is not None and str(board.left) != now:
        said = f"{now or 'unknown'}, left by a sweep that was killed; it was {board.left}"
        return Row("power mode", "warn", said, f"sudo nvpmodel -m {board.left.number}")
    if not now:
        mend = "nvpmodel -q; in a container it is not there: ask the host"
        return Row("power mode", "warn", "cannot be read: results will not say it", mend)
    if best is not None and str(best) != now:
        return Row("power mode", "warn", f"{now}; the fastest is {best}", f"sudo nvpmodel -m {best.number}")
    return Row("power mode", "ok", str(now))


def clocks(board: Board) -> Row:
    """Whether jetson_clocks holds the GPU's clock at the mode's highest."""
    if board.gpu_mhz is None:
        return Row("GPU clock", "warn", "cannot be read", "on the host: sudo jetson_clocks --show")
    low, high = board.gpu_mhz
    if low == high:
        return Row("GPU clock", "ok", f"locked at {high:.0f} MHz")
    said = f"{low:.0f} to {high:.0f} MHz, not locked: rounds differ more"
    return Row("GPU clock", "warn", said, "sudo jetson_clocks (until the next reboot or change of power mode)")


def swap(used_mib: Mapping[str, float]) -> Row:
    """Swap in use: a job that is swapped measures memory, not the network."""
    busy = {name: mib for name, mib in used_mib.items() if mib >= 1}
    if not busy:
        kinds = ", ".join(used_mib)
        return Row("swap", "ok", f"{kinds}: not in use" if kinds else "none")
    said = f"{sum(busy.values()):.0f} MiB in use ({', '.join(busy)}): timings may wait for it"
    return Row("swap", "warn", said, "close other programs, then: sudo swapoff -a && sudo swapon -a")


def jtop(board: Board) -> Row:
    """jetson-stats: not needed, since the sensors' files are read where it does not answer."""
    if board.jtop:
        return Row("jtop", "ok", f"jetson-stats {board.jtop} answers")
    if board.jtop_client is None:
        return Row("jtop", "ok", "not installed: the sensors' files are read")
    version = f"jetson-stats {board.jtop_client}"
    if not board.jtop_socket:
        mend = "on the host: sudo systemctl restart jtop; in a container: -v /run/jtop.sock:/run/jtop.sock"
        return Row("jtop", "warn", f"{version} is here, its service is not", mend)
    said = f"{version} gets no answer: another version than the service's, or no right to ask"
    return Row("jtop", "warn", said, 'sudo usermod -aG jtop "$USER", log in again; jtop --version here and on the host')


def sensors(board: Board) -> Row:
    """What the board's power is of, and the rails and zones that do not answer."""
    if board.unread:
        said = f"no answer: {', '.join(board.unread)}; power is of {board.power_of or 'nothing known'}"
        return Row("sensors", "warn", said, "ls -l /sys/class/hwmon/*/ /sys/class/thermal/*/temp; a reboot may help")
    if board.power_of is None:
        return Row("sensors", "warn", "no rail that is the board's power: no energy, no throughput per watt")
    return Row("sensors", "ok", f"power of {board.power_of}")


def _access(refused: Mapping[str, str]) -> list[Row]:
    if not refused:
        return []
    groups = list(dict.fromkeys(refused.values()))
    said = f"/dev/{', /dev/'.join(refused)} cannot be opened"
    return [Row("groups", "fail", said, f'sudo usermod -aG {",".join(groups)} "$USER", then log in again')]


def _container_age(board: Board, cuda: str | None) -> list[Row]:
    """Whether a container's libraries are of this board's release."""
    release, jetpack = str(board.facts.get("l4t") or ""), str(board.facts.get("jetpack") or "")
    facts = {"l4t": release or None, "jetpack": jetpack or None}
    made_for = re.search(r"\d+", board.image_l4t or "")
    if board.contained and made_for and release and made_for[0] != release.split(".")[0]:
        said = f"made for L4T {board.image_l4t}, this board has {release}"
        return [Row("container", "fail", said, container(facts) or "")]
    newest = CUDA.get(jetpack)
    if cuda and newest and int(cuda.split(".")[0]) > newest:
        said = f"this torch is built with CUDA {cuda}, JetPack {jetpack} serves {newest}"
        return [Row("container" if board.contained else "CUDA of torch", "warn", said, container(facts) or "")]
    return [Row("container", "ok", "of this board's release")] if board.contained and release else []
