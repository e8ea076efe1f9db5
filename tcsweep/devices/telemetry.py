"""What a GPU or a board says of itself while a worker is timed: sampled by a thread of the sweep's own process, since
one in the worker would take the GIL from its launches. Imported by the sweep: no torch here, and pynvml only inside
functions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcsweep.devices.jtop import JtopReader, board_reader
from tcsweep.devices.reader import UTILISATION_PERIOD_S, Absent, Limits, Reader, Users, within
from tcsweep.devices.sysfs_sensors import is_jetson
from tcsweep.evidence.facts import DeviceSample, DeviceState
from tcsweep.mistakes import first_line

SAMPLES_MAX = 200
PROCESSES_S = 0.5  # between two looks at the other processes: two or three calls of NVML, and no clock among them
UNKNOWN_MIB = 2048.0  # an idle GPU's driver was seen to hold 0.5 to 0.7 GiB
BUSY = 0.05  # of the GPU's time, as for a suspicion of foreign load
STOP_S = 1.0  # for the thread to end; a driver that hangs holds back nothing
NVML_SUCCESS, NVML_ERROR_NOT_FOUND = 0, 6  # <nvml.h>
BY_PROCESSES = "processes"
WHILE_IDLE = "utilisation while this sweep was idle"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Windows:
    """What the worker did when, in seconds of CLOCK_MONOTONIC, which all processes of a machine share."""

    timed: Interval  # the begin of the first timed block, the end of the last
    idle: Sequence[Interval] = ()  # times at which this sweep ran nothing on the GPU


@dataclass(frozen=True)
class Look:
    """One look at the processes on the GPU."""

    at: float
    users: Users


class Sampler:
    """Samples a device around one round, as a context manager; then `state` says what was seen. Nothing that the
    reader, `own_pids` or the driver does is raised into the sweep, and a reader that hangs is left behind.

    `reader`: of `open_reader`; with `Absent` nothing is sampled and the state says why. `period_s`: from one sample to
    the next; None: the reader's own. `own_pids`: the pids of the worker, asked at every look at the processes, so that
    a worker that is gone by the end is known all the same.
    """

    def __init__(
        self,
        reader: Reader | Absent,
        period_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        own_pids: Callable[[], set[int]] = set,
    ) -> None:
        self._reader = reader
        self._period_s = reader.period_s if period_s is None and not isinstance(reader, Absent) else period_s
        self._clock = clock
        self._own_pids = own_pids
        self._samples: list[DeviceSample] = []  # their `at_s` are the clock's
        self._looks: list[Look] = []
        self._own: set[int] = set()
        self._limits = Limits()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcsweep-telemetry", daemon=True)

    def __enter__(self) -> Sampler:
        if not isinstance(self._reader, Absent):
            with contextlib.suppress(RuntimeError):  # no more threads to be had
                self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def state(self, windows: Windows) -> DeviceState:
        """The GPU during the round whose timed blocks and idle times are given."""
        if isinstance(self._reader, Absent):
            return DeviceState(timed_s=windows.timed[1] - windows.timed[0], missing=self._reader.reason)
        seen = device_state(tuple(self._samples), tuple(self._looks), frozenset(self._own), self._limits, windows)
        return seen if seen.missing else dataclasses.replace(seen, source=self._reader.source)

    @property
    def samples(self) -> tuple[DeviceSample, ...]:
        """Those taken so far; their `at_s` are the clock's."""
        return tuple(self._samples)

    @property
    def hangs(self) -> bool:
        """Whether the reader had not come back when the sampler was left."""
        return self._ended.is_set() and self._thread.is_alive()

    def foreign_memory_mib(self) -> float | None:
        """The most that others held at any look; None where processes are invisible."""
        return foreign_memory(tuple(self._looks), frozenset(self._own), (-math.inf, math.inf))

    def _run(self) -> None:
        if isinstance(self._reader, Absent):
            return
        with contextlib.suppress(Exception):
            self._limits = self._reader.limits()
        while True:
            ended = self._ended.is_set()  # before the last sample and look, not after them
            self._tick(self._reader, ended)
            if ended:
                return
            self._ended.wait(self._period_s)

    def _tick(self, reader: Reader, last: bool) -> None:
        with contextlib.suppress(Exception):
            at = self._clock()
            fields = reader.sample()
            if any(value is not None for value in fields.values()):
                self._samples.append(DeviceSample(at, **fields))
        if last or not self._looks or self._clock() - self._looks[-1].at >= PROCESSES_S:
            with contextlib.suppress(Exception):
                self._own = self._own | self._own_pids()
            users = Users()
            with contextlib.suppress(Exception):
                users = reader.processes()
            self._looks.append(Look(self._clock(), users))


def occupants(reader: Reader) -> str | None:
    """Who is on a GPU on which this sweep runs nothing yet, in words; None where nobody seems to be."""
    held: Mapping[int, float | None] = {}
    used: float | None = None
    load: float | None = None
    with contextlib.suppress(Exception):
        users = reader.processes()
        held = users.memory_mib or {}
        if users == Users():  # a source that knows no processes, such as a Jetson's files
            load = (within(STOP_S, reader.sample) or {}).get("utilisation")
    with contextlib.suppress(Exception):
        used = reader.used_memory_mib()
    if held:
        each = (f"pid {pid} {'an unknown part' if mib is None else _gib(mib)}" for pid, mib in sorted(held.items()))
        return f"held by others: {', '.join(each)}"
    if used is not None and used >= UNKNOWN_MIB:
        return f"{_gib(used)} held by processes that cannot be seen from here"
    if load is not None and load >= BUSY:
        return f"{load:.0%} busy with processes that cannot be seen from here"
    return None


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB"


# --- what was seen, from numbers alone ---


def device_state(
    samples: Sequence[DeviceSample], looks: Sequence[Look], own: frozenset[int], limits: Limits, windows: Windows
) -> DeviceState:
    """The state of samples and looks, whose times are CLOCK_MONOTONIC's; `own` are pids of this sweep."""
    began, ended = windows.timed
    if not samples:
        return DeviceState(timed_s=ended - began, missing="the GPU stopped telling anything about itself")
    if _is_stuck(samples):
        samples = [dataclasses.replace(s, utilisation=None) for s in samples]
    load, source = load_of_processes(looks, own, windows.timed), BY_PROCESSES
    if load is None:
        load, source = load_while_idle(samples, limits.utilisation_period_s, windows.idle), WHILE_IDLE
    return DeviceState(
        samples=tuple(dataclasses.replace(s, at_s=s.at_s - began) for s in thinned(samples, windows.timed)),
        timed_s=ended - began,
        sm_mhz_max=limits.sm_mhz_max,
        power_limit_w=limits.power_limit_w,
        foreign_load=load,
        foreign_source=None if load is None else source,
        foreign_memory_mib=foreign_memory(looks, own, windows.timed),
        power_of=limits.power_of,
        over_current=over_current(samples, windows.timed),
    )


def over_current(samples: Sequence[DeviceSample], timed: Interval) -> dict[str, int] | None:
    """How far each counter rose from the last sample before the timed blocks to the first one after them, or from what
    there is; None where nothing counts. A counter that fell began anew: what it says now was counted since."""
    counted = [(s.at_s, s.over_current) for s in samples if s.over_current is not None]
    first = max((i for i, (at, _) in enumerate(counted) if at <= timed[0]), default=0)
    last = min((i for i, (at, _) in enumerate(counted) if at >= timed[1]), default=len(counted) - 1)
    risen: dict[str, int] = {}
    for (_, before), (_, after) in itertools.pairwise(counted[first : last + 1]):
        for name in before.keys() & after.keys():
            step = after[name] - before[name]
            risen[name] = risen.get(name, 0) + (step if step >= 0 else after[name])
    return dict(sorted(risen.items())) or None


def thinned(samples: Sequence[DeviceSample], timed: Interval, most: int = SAMPLES_MAX) -> tuple[DeviceSample, ...]:
    """At most so many of the samples, evenly taken, with the lowest and the highest SM clock in the timed blocks and
    outside them, and there the first of each set of throttle reasons, as far as they fit."""
    if len(samples) <= most:
        return tuple(samples)
    kept: dict[int, None] = {}
    for inside in (True, False):
        clocked = [i for i, s in enumerate(samples) if s.sm_mhz is not None and _within(s.at_s, timed) == inside]
        if clocked:
            kept[min(clocked, key=lambda i: samples[i].sm_mhz or 0.0)] = None
            kept[max(clocked, key=lambda i: samples[i].sm_mhz or 0.0)] = None
    reasons: dict[tuple[int | None, bool], int] = {}
    for index, sample in enumerate(samples):
        reasons.setdefault((sample.throttle, _within(sample.at_s, timed)), index)
    kept |= dict.fromkeys(reasons.values())
    chosen = list(kept)[:most]
    rest = [i for i in range(len(samples)) if i not in kept]
    room = min(most - len(chosen), len(rest))
    chosen += [rest[i * len(rest) // room] for i in range(room)]
    return tuple(samples[i] for i in sorted(chosen))


def load_of_processes(looks: Sequence[Look], own: frozenset[int], timed: Interval) -> float | None:
    """The share of the SMs' time that foreign processes took during the timed blocks: the mean of what each look
    tells of the time since the one before, weighted by how much of that time was timed. None where it cannot be
    told: a list on which our own worker never stands (none at all, or another pid namespace's) shows nobody."""
    if not any(own & set(pids) for pids in (*_seen(looks, "load"), *_seen(looks, "memory_mib"))):
        return None
    weight = weighted = 0.0
    anyone = False
    for before, look in itertools.pairwise(looks):
        shared = min(look.at, timed[1]) - max(before.at, timed[0])
        if look.users.load is None or shared <= 0:
            continue
        anyone = anyone or bool(look.users.load)
        foreign = sum(share for pid, share in look.users.load.items() if pid not in own)
        weight += shared
        weighted += shared * min(foreign, 1.0)
    return weighted / weight if anyone else None  # a GPU that nobody used while we timed on it: it does not tell


def load_while_idle(samples: Sequence[DeviceSample], period_s: float, idle: Sequence[Interval]) -> float | None:
    """The least utilisation that says something of a time when this sweep was idle; None without such a sample. A
    value read at t is of a whole period that ended up to a period ago: only where the two periods before t are idle
    is nothing of it our own."""
    told = [
        s.utilisation
        for s in samples
        if s.utilisation is not None and any(start <= s.at_s - 2 * period_s and s.at_s <= end for start, end in idle)
    ]
    return min(told, default=None)


def foreign_memory(looks: Sequence[Look], own: frozenset[int], timed: Interval) -> float | None:
    """The most MiB that foreign processes held at one look during the timed blocks, else at the last before them;
    None where processes are invisible or do not tell."""
    if not any(own & set(pids) for pids in _seen(looks, "memory_mib")):
        return None
    looks = [look for look in looks if look.users.memory_mib is not None and look.at <= timed[1]]
    sums = []
    for look in [one for one in looks if one.at >= timed[0]] or looks[-1:]:
        held = [mib for pid, mib in (look.users.memory_mib or {}).items() if pid not in own]
        if None in held:
            return None
        sums.append(sum(mib for mib in held if mib is not None))
    return max(sums, default=None)


def _seen(looks: Sequence[Look], field: str) -> Iterator[Mapping[int, float | None]]:
    return (told for look in looks if (told := getattr(look.users, field)) is not None)


def _is_stuck(samples: Sequence[DeviceSample]) -> bool:
    """Whether the utilisation is 0 throughout a round that ran on this GPU: then it is no reading."""
    return not any(s.utilisation for s in samples)


def _within(at: float, interval: Interval) -> bool:
    return interval[0] <= at <= interval[1]


# --- NVML ---

# Field of DeviceSample: NVML's getters, the first that answers; the names of constants passed; what 1 is in its unit.
_FIELDS: Mapping[str, tuple[tuple[str, ...], str | None, float]] = {
    "sm_mhz": (("nvmlDeviceGetClockInfo",), "NVML_CLOCK_SM", 1.0),
    "memory_mhz": (("nvmlDeviceGetClockInfo",), "NVML_CLOCK_MEM", 1.0),
    "temperature_c": (("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"), "NVML_TEMPERATURE_GPU", 1.0),
    "power_w": (("nvmlDeviceGetPowerUsage",), None, 1e-3),
}
_THROTTLE = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
_POWER_LIMIT = ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit")
_RUNNING = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


class NvmlReader:
    """NVML's answers about one GPU. A getter that refuses leaves its own field empty, no other."""

    source = "NVML"
    period_s = 0.1

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle
        self._last_seen_us = 0  # NVML's own timestamp

    def sample(self) -> dict[str, Any]:
        """Fields of `DeviceSample` but `at_s`."""
        fields: dict[str, Any] = {}
        for name, (getters, constant, unit) in _FIELDS.items():
            about = () if constant is None else (getattr(self._library, constant),)
            fields[name] = _scaled(self._ask(getters, *about), unit)
        rates = self._ask(("nvmlDeviceGetUtilizationRates",))
        fields["utilisation"] = None if rates is None else rates.gpu / 100
        throttle = self._ask(_THROTTLE)
        return {**fields, "throttle": None if throttle is None else int(throttle)}

    def limits(self) -> Limits:
        """The highest SM clock, the power limit in force, and the period of the utilisation."""
        clock = self._ask(("nvmlDeviceGetMaxClockInfo",), self._library.NVML_CLOCK_SM)
        return Limits(_scaled(clock, 1.0), _scaled(self._ask(_POWER_LIMIT), 1e-3), self._utilisation_period_s())

    def processes(self) -> Users:
        """Each process' share of the SMs since the last call, and the memory of all that have a context."""
        return Users(self._load(), self._memory_mib())

    def used_memory_mib(self) -> float | None:
        """What all hold together, the driver included."""
        told = self._ask(("nvmlDeviceGetMemoryInfo",))
        return None if told is None else told.used / 2**20

    def _load(self) -> dict[int, float] | None:
        try:
            told = self._library.nvmlDeviceGetProcessUtilization(self._handle, self._last_seen_us)
        except Exception as error:  # an idle GPU is told as an error
            return {} if getattr(error, "value", None) in (NVML_SUCCESS, NVML_ERROR_NOT_FOUND) else None
        shares: dict[int, list[float]] = {}
        for one in told:
            self._last_seen_us = max(self._last_seen_us, one.timeStamp)
            if one.smUtil <= 100:  # NVML is known to leave an entry unfilled
                shares.setdefault(one.pid, []).append(one.smUtil / 100)
        return {pid: statistics.fmean(values) for pid, values in shares.items()}

    def _memory_mib(self) -> dict[int, float | None] | None:
        lists = [told for getter in _RUNNING if (told := self._ask((getter,))) is not None]
        held: dict[int, float | None] = {}
        for one in (process for told in lists for process in told):
            mib = None if one.usedGpuMemory is None else one.usedGpuMemory / 2**20
            known = held.get(one.pid)
            held[one.pid] = mib if known is None else max(known, mib or 0.0)
        return held if lists else None

    def _utilisation_period_s(self) -> float:
        """The time between the newest values of NVML's own buffer, held within what NVML documents; else its
        longest."""
        shortest, longest = UTILISATION_PERIOD_S
        with contextlib.suppress(Exception):
            kind = self._library.NVML_GPU_UTILIZATION_SAMPLES
            _, values = self._library.nvmlDeviceGetSamples(self._handle, kind, 0)
            stamps = sorted(value.timeStamp / 1e6 for value in values if value.timeStamp)[-20:]
            steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
            return float(min(max(max(steps), shortest), longest))
        return longest

    def _ask(self, getters: Sequence[str], *about: Any) -> Any:
        for getter in getters:
            with contextlib.suppress(Exception):  # refused, missing in this pynvml, or in the driver's library
                return getattr(self._library, getter)(self._handle, *about)
        return None


def open_reader(uuid: str | None, root: Path = Path("/"), on_gpu: bool = True) -> Reader | Absent:
    """A reader of a device's state, or why there is none. On a Jetson, whose files are below `root`, jtop's or the
    board's own files, also for its CPU: NVML initialises there but answers next to nothing. Elsewhere NVML's of the GPU
    with this UUID ("GPU-..."; torch's own lacks the prefix, and may be given): absent where NVML is missing, mismatched
    with its driver, without that GPU, or mute, and for a MIG instance."""
    if is_jetson(root):
        board = board_reader(root, on_gpu)
        if not isinstance(board, Absent) or not on_gpu:
            return board
    if not on_gpu:
        return Absent("a CPU: see the host's state")
    found = nvml_device(uuid)
    if isinstance(found, Absent):
        return found
    reader = NvmlReader(*found)
    if all(value is None for value in reader.sample().values()):
        return Absent("NVML initialises but answers nothing about this GPU")
    return reader


def close_reader(reader: Reader | Absent) -> None:
    """Let go of what a reader holds: jtop's connection."""
    if isinstance(reader, JtopReader):
        reader.close()


def nvml_device(uuid: str | None) -> tuple[Any, Any] | Absent:
    """pynvml, initialised, and its handle of the GPU with this UUID; never by index, whose order is not CUDA's."""
    if uuid is None:
        return Absent("the GPU's UUID is not known (torch before 2.4 does not tell it)")
    if uuid.startswith("MIG-"):
        return Absent("a MIG instance: NVML tells the state of whole GPUs")
    try:
        import pynvml
    except Exception as error:
        return Absent(f"NVML cannot be used: {first_line(str(error))}")
    try:
        pynvml.nvmlInit()
    except Exception as error:
        return Absent(f"NVML does not initialise: {first_line(str(error))}")
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except Exception as error:
        return Absent(f"NVML does not find GPU {uuid}: {first_line(str(error))}")
    with contextlib.suppress(Exception):  # refused by GPUs that cannot be divided
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:  # CUDA uses no divided GPU as a whole
            return Absent("a MIG instance: NVML tells the state of whole GPUs")
    return pynvml, handle


def _scaled(value: Any, unit: float) -> float | None:
    return None if value is None else value * unit
