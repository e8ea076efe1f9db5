"""The energy that a device has used: a GPU by NVML's counter, a Jetson by its board's power, sampled. No torch here,
and pynvml only inside functions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

from tcsweep.devices.jtop import OPEN_S, JtopReader
from tcsweep.devices.reader import Absent, Reader, within
from tcsweep.devices.sysfs_sensors import Nodes, SysfsReader, find, is_jetson
from tcsweep.devices.telemetry import Sampler, nvml_device
from tcsweep.evidence.energy import Power, measure_energy, measure_sampled
from tcsweep.evidence.facts import Energy

GAP_S, JTOP_GAP_S = 0.5, 2.5  # jtop answers once a second
PERIOD_S = 0.05  # between two samples of a board's power: an INA3221 averages over tens of milliseconds


def joules(uuid: str | None) -> Callable[[], float] | None:
    """A reader of the joules that the GPU with this UUID has used since its driver was loaded; None where there is no
    counter or it is mute. A difference of two reads is the energy between them; the counter moves in steps of about
    0.1 s on an H100, so take phases of 3 s or more. A read that fails is tried once more; if that fails too it is
    NaN, which no sum or difference hides."""
    found = nvml_device(uuid)
    if isinstance(found, Absent):
        return None
    library, handle = found

    def read() -> float:
        for _ in range(2):
            with contextlib.suppress(Exception):
                return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # millijoules
        return math.nan

    return None if math.isnan(read()) else read


class PowerLog:
    """A board's power, sampled by a thread of this process while nothing is timed, as a context manager: a sensor that
    hangs holds back nothing."""

    def __init__(self, reader: Reader, gap_s: float) -> None:
        self.gap_s = gap_s
        self.source = f"sampled board power, {reader.limits().power_of}"
        self._sampler = Sampler(reader, PERIOD_S)

    def __enter__(self) -> PowerLog:
        self._sampler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._sampler.__exit__(*error)

    @property
    def powers(self) -> tuple[Power, ...]:
        """What was read so far, without the samples in which the board's power was not to be had."""
        return tuple(Power(s.at_s, s.power_w) for s in self._sampler.samples if s.power_w is not None)


def power_log(root: Path) -> PowerLog | None:
    """A log of the power of the Jetson whose files are below `root`: by its sensors' files, which answer faster than
    jtop does, else by jtop; None where neither tells it."""
    files = SysfsReader(within(OPEN_S, lambda: find(root)) or Nodes(), on_gpu=False)
    if (within(OPEN_S, files.sample) or {}).get("power_w") is not None:
        return PowerLog(files, GAP_S)
    client = JtopReader(files, on_gpu=False)
    if client.open(OPEN_S) and client.sample().get("power_w") is not None:
        return PowerLog(client, JTOP_GAP_S)
    return None


def measure(
    block: Callable[[int], object],
    iteration_ms: float,
    batch: int,
    phase_s: float,
    *,
    on_gpu: bool,
    uuid: str | None,
    root: Path,
) -> Energy:
    """The energy of images on the GPU with this UUID, or on the board whose files are below `root`, in a phase of so
    many seconds. `block` runs so many iterations and waits for them."""
    if is_jetson(root):
        log = power_log(root)
        if log is None:
            return Energy(missing="no sensor tells this board's power")
        return measure_sampled(block, iteration_ms, batch, phase_s, log, time.monotonic)
    if not on_gpu:
        return Energy(missing="a CPU: its energy is not read")
    found = measure_energy(block, iteration_ms, batch, phase_s, joules(uuid), time.monotonic)
    return found if found.missing else dataclasses.replace(found, source="NVML's energy counter")
