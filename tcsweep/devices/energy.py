"""The energy that a GPU has used, by NVML's counter. No torch here, and pynvml only inside functions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

from tcsweep.devices.telemetry import Absent, nvml_device


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
