"""The host while a worker times: what it may use of the CPUs, and what others took. Read from /proc and /sys."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tcsweep.devices.cpu import control_groups, quota
from tcsweep.evidence.facts import HostState

T = TypeVar("T")
TICKS_MIN = 20  # of all CPUs together, 10 ms each: in less, one tick is 5% of the load
TICKS_UNSURE = 2  # by which the difference of two counts of whole ticks may be off, the system's and our own
CPU_FIELDS = 8  # user nice system idle iowait irq softirq steal; proc(5): guest time stands in user already
IDLE_FIELDS = (3, 4)  # idle, iowait


@dataclass(frozen=True)
class Ticks:
    """CPU time so far, in the clock ticks of /proc."""

    total: int  # of all CPUs, idle ones included
    busy: int  # of all CPUs; time stolen by other virtual machines is load, too
    own: int  # of this process and its descendants, those that ended included


def watch(threads: int | None = None, root: Path = Path("/")) -> Callable[[], HostState]:
    """Begin to watch; call what is returned after the timed blocks, in the same process, for the host during them.
    `threads` are torch's. A figure that cannot be read is None; nothing is raised. The two calls scan /proc, which
    takes milliseconds: keep them out of what is timed."""
    ticks_before, throttled_before = _tried(ticks, root), _tried(throttled, root)
    swapped_before = _tried(swapped_mib, root)

    def state() -> HostState:
        ticks_after, throttled_after = _tried(ticks, root), _tried(throttled, root)
        swapped_after = _tried(swapped_mib, root)
        return HostState(
            cpu_quota=_tried(cpu_quota, root),
            affinity=_tried(affinity, root),
            threads=threads,
            throttled=throttled_since(throttled_before, throttled_after),
            load_1m=_tried(load_1m, root),
            foreign_load=foreign_load(ticks_before, ticks_after),
            swapped_mib=None if swapped_before is None or swapped_after is None else swapped_after - swapped_before,
        )

    return state


def foreign_load(before: Ticks | None, after: Ticks | None) -> float | None:
    """The share of all CPUs' time, 0..1, that others took at least between two readings; None over too short a time to
    tell."""
    if before is None or after is None or after.total - before.total < TICKS_MIN:
        return None
    foreign = (after.busy - before.busy) - (after.own - before.own) - TICKS_UNSURE
    return min(max(foreign / (after.total - before.total), 0.0), 1.0)


def throttled_since(before: dict[str, int] | None, after: dict[str, int] | None) -> int | None:
    """The periods in which a group ran out of its quota; of groups inside each other, the most of any one: one period
    may count in all. None where no group counts them."""
    grown = [count - before[group] for group, count in (after or {}).items() if before and group in before]
    return max(grown, default=None)


def ticks(root: Path) -> Ticks:
    """CPU time until now. Raises OSError, ValueError or IndexError where /proc does not tell."""
    name, *fields = (root / "proc/stat").read_text().partition("\n")[0].split()
    times = [int(field) for field in fields[:CPU_FIELDS]]
    if name != "cpu" or len(times) < 4:
        raise ValueError("no line of all CPUs in /proc/stat")
    idle = sum(times[i] for i in IDLE_FIELDS if i < len(times))
    return Ticks(sum(times), sum(times) - idle, own_ticks(root))


def own_ticks(root: Path) -> int:
    """CPU time of this process and its descendants, and of all those that ended and were waited for."""
    pid, *_ = _stat((root / "proc/self/stat").read_text())
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            one, parents[one], used[one] = _stat(path.read_text(errors="replace"))
    return sum(time for one, time in used.items() if _is_of(one, pid, parents))


def _stat(text: str) -> tuple[int, int, int]:
    """Pid, parent, and utime + stime + cutime + cstime (fields 14 to 17) of a /proc/*/stat; a name may hold blanks
    and brackets."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()  # from field 3
    return int(head.split(" ", 1)[0]), int(fields[1]), sum(int(field) for field in fields[11:15])


def _is_of(one: int, ancestor: int, parents: dict[int, int]) -> bool:
    """Whether a process is another one, or descends from it."""
    seen = set()  # pids are read one by one and may be used anew meanwhile: a ring is possible
    while one not in seen:
        if one == ancestor:
            return True
        seen.add(one)
        one = parents.get(one, one)
    return False


def throttled(root: Path) -> dict[str, int]:
    """`nr_throttled` of each control group that counts it; version 1 and 2."""
    found: dict[str, int] = {}
    for folder in control_groups(root, _cgroup(root)):
        with contextlib.suppress(OSError):
            if count := re.search(r"^nr_throttled (\d+)$", (folder / "cpu.stat").read_text(), re.MULTILINE):
                found[str(folder)] = int(count[1])
    return found


def swapped_mib(root: Path) -> float:
    """MiB moved to and from swap since the start, by all processes. Raises where the kernel does not count it."""
    counts = dict(line.split() for line in (root / "proc/vmstat").read_text().splitlines())
    pages = sum(int(counts[name]) for name in ("pswpin", "pswpout"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_quota(root: Path) -> float | None:
    """CPUs that the control groups allow; None: no limit."""
    return quota(root, _cgroup(root))


def affinity(root: Path) -> int | None:
    """CPUs that this process may run on, from `Cpus_allowed_list: 0-3,8`."""
    found = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)$", (root / "proc/self/status").read_text(), re.MULTILINE)
    if not found:
        return None
    ends = [part.split("-") for part in found[1].split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def load_1m(root: Path) -> float:
    """The load average over the last minute."""
    return float((root / "proc/loadavg").read_text().split()[0])


def _cgroup(root: Path) -> str:
    return (root / "proc/self/cgroup").read_text()


def _tried(read: Callable[[Path], T], root: Path) -> T | None:
    try:
        return read(root)
    except (OSError, ValueError, LookupError):
        return None
