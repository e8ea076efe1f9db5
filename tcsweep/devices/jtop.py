"""A Jetson's state by jetson-stats, where its service runs. jtop is imported only here, only in a thread, and nothing
that it does, hanging included, reaches the sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcsweep.devices.reader import Absent, Limits, Reader, Users, within
from tcsweep.devices.sysfs_sensors import (
    OFFLINE_C,
    PERIOD_S,
    SysfsReader,
    find,
    power_fields,
    power_rails,
    temperature_of,
)

OPEN_S = 4.0  # for the service's first answer: it reads once a second or oftener
STALE_S = 3.0  # an answer older than this is none: the service is known to stop sending without an error
FOLLOW_S = 0.1  # between two questions at least, whatever the client does
CLOSE_S = 1.0
ROUNDING_W = 0.001  # jtop's rails are whole milliwatts
KILOHERTZ_FROM = 10_000  # no GPU runs at 10 GHz, and none at under 10 MHz
NOTHING = "the board's sensors answer nothing"


def board_reader(root: Path, on_gpu: bool = True) -> Reader | Absent:
    """jtop where its service answers, else the sensors' files below `root`; absent where neither tells anything."""
    nodes = within(OPEN_S, lambda: find(root))
    if nodes is None:
        return Absent("the board's sensors hang")
    files = SysfsReader(nodes, on_gpu)
    client = JtopReader(files, on_gpu)
    if client.open(OPEN_S):
        return client
    if not nodes or not any(value is not None for value in (within(OPEN_S, files.sample) or {}).values()):
        return Absent(NOTHING)
    return files


class JtopReader:
    """Each answer of jtop is one sample. It answers about once a second, and asking oftener would have its service work
    harder beside the measurement: samples in between, and what it does not tell, such as over-current, are by the
    sensors' files, and so is everything once it has stopped."""

    period_s = PERIOD_S

    def __init__(self, files: SysfsReader, on_gpu: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._on_gpu = on_gpu
        self._clock = clock
        self._told: tuple[float, dict[str, Any]] | None = None  # when, and what
        self._taken: float | None = None  # the answer that has been a sample
        self._opened, self._ended = threading.Event(), threading.Event()
        self._limits = Limits()
        self._thread = threading.Thread(target=self._follow, name="tcsweep-jtop", daemon=True)

    def open(self, timeout_s: float) -> bool:
        """Whether the service answered something within the time: False where it is not installed, is refused, is of
        another version than its client, hangs, or tells nothing."""
        with contextlib.suppress(RuntimeError):  # no more threads to be had
            self._thread.start()
            self._opened.wait(timeout_s)
        if self._told is None:
            self._ended.set()
        return self._told is not None

    def close(self) -> None:
        """Leave the service; a client that hangs is left behind."""
        self._ended.set()
        self._thread.join(CLOSE_S)

    @property
    def source(self) -> str:
        """Its name, or that of the files once it has stopped."""
        return "jtop" if self._fresh() else f"{self._files.source} (jtop stopped)"

    def sample(self) -> dict[str, Any]:
        """Fields of `DeviceSample` but `at_s`."""
        told, files = self._told, self._files.sample()
        if told is None or told[0] == self._taken or not self._fresh():
            return files
        self._taken = told[0]
        return {**files, **told[1]}

    def limits(self) -> Limits:
        """The highest GPU clock in this power mode, and what the power is of."""
        return self._limits if self._fresh() else self._files.limits()

    def processes(self) -> Users:
        """Nobody: jtop tells processes by name, not what each used."""
        return Users()

    def used_memory_mib(self) -> float | None:
        """Not told: the GPU's memory is the board's."""
        return None

    def _fresh(self) -> bool:
        """Whether jtop told something lately."""
        return self._told is not None and self._clock() - self._told[0] <= STALE_S

    def _follow(self) -> None:
        try:
            with importlib.import_module("jtop").jtop() as client:
                while not self._ended.is_set() and client.ok():
                    self._limits = limits_of(client, self._on_gpu, self._files.limits())
                    fields = fields_of(client, self._on_gpu)
                    self._told = (self._clock(), fields) if fields else None
                    self._opened.set()
                    self._ended.wait(FOLLOW_S)
        except (Exception, SystemExit):
            return
        finally:
            self._opened.set()


# --- jtop's dictionaries: milliwatts, degrees, clocks; keys come and go with its versions ---


def fields_of(client: Any, on_gpu: bool) -> dict[str, Any]:
    """The fields of `DeviceSample` that a client tells, without those that it does not. Its load of the GPU is left
    out: 0 also where it could not be read, and on Thor worked out from the power."""
    zones = zones_c(_asked(client, "temperature"))
    power, _ = board_power(_asked(client, "power"))
    fields = {
        **power,
        "temperatures_c": zones or None,
        "temperature_c": temperature_of(zones, on_gpu),
        "sm_mhz": _gpu_mhz(client, "cur") if on_gpu else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def limits_of(client: Any, on_gpu: bool, files: Limits) -> Limits:
    """What does not change in a round: the files' limits, with what the client tells."""
    highest = _gpu_mhz(client, "max") if on_gpu else None
    _, power_of = board_power(_asked(client, "power"))
    return dataclasses.replace(files, sm_mhz_max=highest or files.sm_mhz_max, power_of=power_of or files.power_of)


def board_power(power: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The power fields, and the rails that the board's power is of. jtop's total is an input's, or where it found none
    the sum of every rail that answered, those that others feed included, and 0 for no rail: a sum is not taken, but the
    rails that are known to be a module's."""
    rails = {name: watts for name, one in _mapping(power.get("rail")).items() if (watts := _watts(one)) is not None}
    tot = _mapping(power.get("tot"))
    input_name, input_w = tot.get("name"), _watts(tot)
    if isinstance(input_name, str) and input_name and input_w is not None:
        rails.setdefault(input_name, input_w)
    known = power_rails(list(rails))
    fields = power_fields(rails, known)
    if not known and input_w is not None and abs(input_w - math.fsum(rails.values())) > ROUNDING_W:
        return {**fields, "power_w": input_w}, "jtop's total"
    return fields, " + ".join(known) or None


def zones_c(temperature: Mapping[str, Any]) -> dict[str, float]:
    """The temperature of each zone that is on."""
    found: dict[str, float] = {}
    for name, one in temperature.items():
        celsius = _finite(one.get("temp") if isinstance(one, Mapping) else one)
        on = one.get("online", True) if isinstance(one, Mapping) else True
        if on and celsius is not None and celsius > OFFLINE_C and "pmic" not in name.lower():
            found[name] = celsius
    return found


def _watts(one: Any) -> float | None:
    """A rail's power; None where it is off, or its current flows backwards."""
    milliwatts = _number(one, "power")
    if milliwatts is None or milliwatts < 0 or not _mapping(one).get("online", True):
        return None
    return milliwatts / 1e3


def _gpu_mhz(client: Any, which: str) -> float | None:
    """A clock of the GPU: kilohertz from devfreq, megahertz from NVML, 0 where it could not be read."""
    gpu = next((_mapping(one) for one in _asked(client, "gpu").values()), {})
    clock = _number(gpu.get("freq"), which)
    if not clock or clock < 0:
        return None
    return clock / 1e3 if clock > KILOHERTZ_FROM else clock


def _asked(client: Any, name: str) -> Mapping[str, Any]:
    """One of the client's properties; empty where this version has it not, or fails."""
    try:
        return _mapping(getattr(client, name))
    except Exception:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(of: Any, name: str) -> float | None:
    return _finite(_mapping(of).get(name))


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
