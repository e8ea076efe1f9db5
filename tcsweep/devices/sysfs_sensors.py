"""A Jetson's own sensors, read from sysfs: power by rail, temperatures, the GPU's clock and load, what holds it back.
A file that cannot be read, is empty, or holds no number is absent, never 0. No torch here."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcsweep.devices.reader import Limits, Users
from tcsweep.devices.root import number, text

SOURCE = "INA3221 and thermal nodes in sysfs"
PERIOD_S = 0.2  # on a core of a board, three to four times slower than those of a PC, that is under 1% of it
LOAD_PERIOD_S = 0.5  # that the GPU's load looks back at most: an assumption, its driver does not say
SLOW_S = 1.0  # between two looks at what changes slowly: temperatures, cooling
OFFLINE_C = -100.0  # a zone whose unit is switched off says -256
SOFTWARE_THERMAL = 0x20  # the same bit as NVML's for heat

# The input of a module or of a board, above all its other rails. POM_5V_IN: Jetson Nano; VIN: Thor's developer kit.
INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")
# Rails that together are a module's power where no input is measured, from the Jetson Linux Developer Guide's tables of
# INA3221 channels. Orin's VDDQ_VDD2_1V8AO is left out: "also included in VIN_SYS_5V0 power".
SUMS = (
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # AGX Thor, its input not read
)
UNCONNECTED = "NC"
GPU_CLOCK = re.compile(r"\.(gpu|g[a-z]\d+b)$|^gpu-gpc-0$")  # 17000000.gv11b, 17000000.ga10b, 57000000.gpu; Thor
GPU_LOADS = ("sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load")  # else beside the GPU's other files
# Cooling devices whose state says nothing of a clock held down: fans, alerts, voltage that follows temperature.
NOT_THROTTLING = re.compile(r"fan|surface|shutdown|vts|floor|scaling", re.IGNORECASE)


@dataclass(frozen=True)
class Rail:
    """One supply: its power is the product of its files."""

    name: str  # the board's label, "VDD_IN"
    chip: str  # "INA3221"
    files: tuple[Path, ...]
    unit: float  # of the product, in a watt

    def watts(self) -> float | None:
        """Its power; None where a file does not answer, or the current is said to flow backwards."""
        values = [reading(file) for file in self.files]
        if any(value is None or value < 0 for value in values):
            return None
        return math.prod(value for value in values if value is not None) / self.unit


@dataclass(frozen=True)
class Zone:
    """One thermal zone."""

    name: str  # without "-therm" or "-thermal" at its end
    temp: Path  # millidegrees Celsius
    passive_c: float | None  # its lowest passive trip point, from which the kernel holds clocks down

    def celsius(self) -> float | None:
        """Its temperature; None where it does not answer or its unit is switched off."""
        value = reading(self.temp)
        return None if value is None or value / 1e3 < OFFLINE_C else value / 1e3


@dataclass(frozen=True)
class Nodes:
    """The files of a board's sensors. Empty where it has none."""

    rails: tuple[Rail, ...] = ()
    zones: tuple[Zone, ...] = ()
    cooling: tuple[Path, ...] = ()  # cur_state of what holds clocks down
    over_current: Mapping[str, Path] | None = None  # cumulative counts of events, by name: oc1, oc2, oc3
    clock: Path | None = None  # the GPU's folder below devfreq; hertz
    loads: tuple[Path, ...] = ()  # the GPU's, per mille

    @property
    def power_rails(self) -> tuple[str, ...]:
        """The rails whose sum is the board's power; empty where none are known to be."""
        return power_rails([rail.name for rail in self.rails])

    @property
    def power_of(self) -> str | None:
        """The sensor and the rails of the board's power: "INA3221 VDD_IN"."""
        names = self.power_rails
        chips = {rail.name: rail.chip for rail in self.rails}
        return f"{chips[names[0]]} {' + '.join(names)}" if names else None

    def __bool__(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.rails or self.zones or self.clock or self.loads)


class SysfsReader:
    """A Jetson's state by its own files. `on_gpu`: the job's device is the GPU; else the GPU's clock and load are left
    out, and the temperature is the CPU's."""

    source = SOURCE
    period_s = PERIOD_S

    def __init__(self, nodes: Nodes, on_gpu: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.nodes = nodes
        self._on_gpu = on_gpu
        self._clock = clock
        self._slow: dict[str, Any] = {}
        self._slow_at = -math.inf

    def sample(self) -> dict[str, Any]:
        """Fields of `DeviceSample` but `at_s`. Temperatures and cooling are looked at once a second."""
        if self._clock() - self._slow_at >= SLOW_S:
            self._slow_at, self._slow = self._clock(), self._heat()
        rails = {rail.name: watts for rail in self.nodes.rails if (watts := rail.watts()) is not None}
        return {**self._gpu(), **self._slow, **power_fields(rails, self.nodes.power_rails), **self._over_current()}

    def limits(self) -> Limits:
        """The highest GPU clock in this power mode, and what the power is of."""
        folder = self.nodes.clock if self._on_gpu else None
        highest = _in_units(reading(folder / "max_freq"), 1e6) if folder else None
        return Limits(highest, utilisation_period_s=LOAD_PERIOD_S, power_of=self.nodes.power_of)

    def processes(self) -> Users:
        """Nobody: a Jetson does not tell its users which processes are on its GPU."""
        return Users()

    def used_memory_mib(self) -> float | None:
        """Not told: the GPU's memory is the board's."""
        return None

    def _gpu(self) -> dict[str, Any]:
        if not self._on_gpu:
            return {}
        load = next((value for file in self.nodes.loads if (value := reading(file)) is not None), None)
        hertz = reading(self.nodes.clock / "cur_freq") if self.nodes.clock else None
        return {"sm_mhz": _in_units(hertz, 1e6), "utilisation": _in_units(load, 1e3)}

    def _heat(self) -> dict[str, Any]:
        seen = {zone.name: celsius for zone in self.nodes.zones if (celsius := zone.celsius()) is not None}
        states = [state for file in self.nodes.cooling if (state := reading(file)) is not None]
        trips = [seen[z.name] >= z.passive_c for z in self.nodes.zones if z.passive_c is not None and z.name in seen]
        held_down = any(state > 0 for state in states) or any(trips)
        return {
            "temperature_c": temperature_of(seen, self._on_gpu),
            "temperatures_c": seen or None,
            "throttle": None if not (states or trips) else SOFTWARE_THERMAL if held_down else 0,
        }

    def _over_current(self) -> dict[str, Any]:
        counts = {name: reading(file) for name, file in (self.nodes.over_current or {}).items()}
        told = {name: int(count) for name, count in counts.items() if count is not None}
        return {"over_current": told or None}


def reading(path: Path) -> float | None:
    """The finite number in a file; None where there is none."""
    value = number(path)
    return None if value is None or not math.isfinite(value) else value


def power_rails(names: Sequence[str]) -> tuple[str, ...]:
    """Of these rails, those that together are the board's power: the input, else a set that is known to be whole and
    in which none feeds another; empty where neither is there, since any other sum is wrong by an unknown factor."""
    for name in INPUTS:
        if name in names:
            return (name,)
    return next((rails for rails in SUMS if set(rails) <= set(names)), ())


def power_fields(rails_w: Mapping[str, float], total: Sequence[str]) -> dict[str, Any]:
    """The power fields of a sample; without the board's power where one of its rails did not answer."""
    known = total and all(name in rails_w for name in total)
    return {
        "rails_w": dict(rails_w) or None,
        "power_w": math.fsum(rails_w[name] for name in total) if known else None,
    }


def temperature_of(zones_c: Mapping[str, float], on_gpu: bool) -> float | None:
    """The temperature of the GPU or the CPU; where its zone is off or absent, the junction's."""
    wanted = ("gpu" if on_gpu else "cpu", "tj")
    lower = {name.lower(): celsius for name, celsius in zones_c.items()}
    return next((lower[name] for name in wanted if name in lower), None)


# --- what a board has ---


def is_jetson(root: Path) -> bool:
    """Whether the machine whose files are below `root` is a Jetson; true in a container, which may lack the release."""
    if (root / "etc/nv_tegra_release").is_file():
        return True
    return "nvidia,tegra" in (device_tree("compatible", root) or "")


def device_tree(name: str, root: Path) -> str | None:
    """A file of the device tree, or the copy that run.sh puts in a container: Docker hides the folder itself."""
    return text(root / "proc/device-tree" / name) or text(root / "run/host/device-tree" / name) or None


def find(root: Path) -> Nodes:
    """The sensors of the board whose files are below `root`. Labels, names and trip points are read here, once."""
    return Nodes(
        rails=tuple(_first_of_each([*_iio_rails(root), *_hwmon_rails(root)])),
        zones=tuple(_first_of_each(_zones(root))),
        cooling=tuple(_cooling(root)),
        over_current=_over_current(root),
        clock=next(gpu_clocks(root), None),
        loads=tuple(_gpu_loads(root)),
    )


def _iio_rails(root: Path) -> Iterator[Rail]:
    """L4T R32: `rail_name_0` and `in_power0_input` in milliwatts."""
    for folder in _folders(root, "sys/bus/i2c/devices/*/iio*device*", "sys/bus/i2c/drivers/ina3221x/*/iio*device*"):
        for label in sorted(folder.glob("rail_name_*")):
            file = folder / f"in_power{label.name.removeprefix('rail_name_')}_input"
            if (name := text(label)) and name != UNCONNECTED and file.is_file():
                yield Rail(name, "INA3221", (file,), 1e3)


def _hwmon_rails(root: Path) -> Iterator[Rail]:
    """L4T R34 and later: millivolts and milliamperes of an INA3221's three channels (the seventh voltage is a sum over
    shunts), microwatts of an INA238. Other chips, such as a USB port's, measure no rail."""
    for folder in _hwmons(root):
        chip = text(folder / "name")
        if chip == "ina3221":
            for channel in (1, 2, 3):
                name = text(folder / f"in{channel}_label")
                files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
                on = reading(folder / f"in{channel}_enable") != 0
                if name and name != UNCONNECTED and on and all(file.is_file() for file in files):
                    yield Rail(name, "INA3221", files, 1e6)
        elif chip == "ina238" and (folder / "power1_input").is_file():
            yield Rail(text(folder / "label") or "VIN", "INA238", (folder / "power1_input",), 1e6)


def _zones(root: Path) -> Iterator[Zone]:
    for folder in _folders(root, "sys/class/thermal/thermal_zone*", "sys/devices/virtual/thermal/thermal_zone*"):
        name = re.sub(r"[-_]therm(al)?$", "", text(folder / "type") or "")
        if name and "pmic" not in name.lower() and (folder / "temp").is_file():  # PMIC: 100 C, whatever it is
            yield Zone(name, folder / "temp", _passive_c(folder))


def _passive_c(zone: Path) -> float | None:
    trips = [
        value / 1e3
        for kind in zone.glob("trip_point_*_type")
        if text(kind) == "passive"
        and (value := reading(kind.with_name(kind.name.removesuffix("type") + "temp"))) is not None
        and value > 0
    ]
    return min(trips, default=None)


def _cooling(root: Path) -> Iterator[Path]:
    for folder in _folders(root, "sys/class/thermal/cooling_device*", "sys/devices/virtual/thermal/cooling_device*"):
        kind = text(folder / "type")
        if kind and not NOT_THROTTLING.search(kind) and (folder / "cur_state").is_file():
            yield folder / "cur_state"


def _over_current(root: Path) -> dict[str, Path] | None:
    """The counters of the hwmon that is named soctherm_oc, but for those that hold nothing back."""
    found: dict[str, Path] = {}
    for folder in (f for f in _hwmons(root) if text(f / "name") == "soctherm_oc"):
        for file in sorted(folder.glob("oc*_event_cnt")):
            name = file.name.removesuffix("_event_cnt")
            if file.is_file() and reading(folder / f"{name}_throt_en") != 0:
                found.setdefault(name, file)
    return found or None


def gpu_clocks(root: Path) -> Iterator[Path]:
    """The folders of the GPU's clock; the first is the one to read."""
    for folder in _folders(root, "sys/class/devfreq/*"):
        if GPU_CLOCK.search(folder.name):
            yield folder


def _gpu_loads(root: Path) -> Iterator[Path]:
    files = [root / load for load in GPU_LOADS] + [folder / "device/load" for folder in gpu_clocks(root)]
    platform = _folders(root, "sys/devices/*", "sys/devices/platform/*")
    files += [folder / "load" for folder in platform if GPU_CLOCK.search(folder.name)]
    return (file for file in files if file.is_file())


def _hwmons(root: Path) -> list[Path]:
    places = ("sys/class/hwmon", "sys/bus/i2c/devices/*/hwmon", "sys/bus/i2c/drivers/ina3221/*/hwmon")
    return _folders(root, *(f"{place}/hwmon*" for place in places))


def _folders(root: Path, *patterns: str) -> list[Path]:
    """The folders of every pattern, by name with numbers as numbers; what is found by two is the same sensor twice."""
    found = {path.resolve(): path for pattern in reversed(patterns) for path in root.glob(pattern)}
    return sorted(found.values(), key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])


def _first_of_each(named: Any) -> Iterator[Any]:
    """The first of each name."""
    seen: set[str] = set()
    for one in named:
        if one.name not in seen:
            seen.add(one.name)
            yield one


def _in_units(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
