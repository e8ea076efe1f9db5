"""Whether a job can fit into the memory of a board, before it is tried: on a Jetson the CPU and the GPU share one
memory, and a job that takes all of it takes the board down. What is certain not to fit is refused, nothing else."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tcsweep.devices.cpu import control_groups
from tcsweep.devices.root import text
from tcsweep.evidence.facts import Work
from tcsweep.job import Environment, Job
from tcsweep.precision import PRECISIONS

MEBI = 2**20


def least_mib(job: Job, work: Work) -> float | None:
    """MiB that a job needs at the very least: its weights once, and the input and output of its largest layer for the
    whole batch. None where the layers could not be counted."""
    if not work.layers:
        return None
    activations = PRECISIONS[job.precision].promise.element_bytes
    weights = 4 if job.precision == "o1" else activations  # o1 casts them anew in each call
    largest = max(layer.input_elements + layer.output_elements for layer in work.layers)
    total = weights * sum(layer.weight_elements for layer in work.layers) + activations * job.batch * largest
    return total / MEBI


def room_mib(root: Path) -> float | None:
    """MiB that can be had without swapping: the system's MemAvailable, which counts what the page cache gives back
    (CUDA's "free" on a Jetson does not), and no more than the control group's limit leaves. None where it is not told.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text(root / "proc/meminfo") or "", re.MULTILINE)
    rooms = [int(found[1]) / 1024] if found else []
    for folder in control_groups(root, text(root / "proc/self/cgroup") or ""):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            rooms.append((limit - used + int(cached[1] if cached else 0)) / MEBI)
    return min(rooms, default=None)


def misfit(job: Job, environment: Environment, work: Work, root: Path) -> str | None:
    """Why a job is not tried; None where it may fit, or where running out of memory is harmless: on a GPU with a memory
    of its own."""
    if environment.device.startswith("cuda") and not environment.shared_memory:
        return None
    least, room = least_mib(job, work), room_mib(root)
    if least is None or room is None or least <= room:
        return None
    needs = f"needs at least {least:,.0f} MiB, and {room:,.0f} MiB of this machine's memory can be had"
    return f"{needs}: a smaller batch or a half precision may fit; fit=try tries it all the same"
