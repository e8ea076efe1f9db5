"""What every source of a device's state answers to: NVML, jtop, a board's own files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

# NVML's nvmlUtilization_t: "the sample period may be between 1 second and 1/6 second, depending on the product".
UTILISATION_PERIOD_S = (1 / 6, 1.0)

T = TypeVar("T")


@dataclass(frozen=True)
class Absent:
    """No reader, and why."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What does not change in a round. None: not told."""

    sm_mhz_max: float | None = None
    power_limit_w: float | None = None
    utilisation_period_s: float = UTILISATION_PERIOD_S[1]  # over which the reader's utilisation is taken
    power_of: str | None = None  # the sensor and the rails that the power is of: "INA3221 VDD_IN"


@dataclass(frozen=True)
class Users:
    """The processes on a GPU, by pid. None: not told."""

    load: Mapping[int, float] | None = None  # share of the SMs' time, 0..1, since the last look; the idle are left out
    memory_mib: Mapping[int, float | None] | None = None  # of every process that has a context there


class Reader(Protocol):
    """One source of a device's state."""

    @property
    def source(self) -> str:
        """Its name for a person."""

    @property
    def period_s(self) -> float:
        """From one sample to the next, so that sampling costs under 1% of a core."""

    def sample(self) -> dict[str, Any]:
        """Fields of `DeviceSample` but `at_s`; None or left out where the source does not say."""

    def limits(self) -> Limits:
        """What does not change in a round."""

    def processes(self) -> Users:
        """Who is on the GPU, and what each used since the last call."""

    def used_memory_mib(self) -> float | None:
        """What all hold together, the driver included."""


def within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What `ask` answers; None where it fails, or takes longer: then it is left behind in its thread. A sensor that
    hangs cannot be interrupted."""
    answers: list[T] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:
            return

    thread = threading.Thread(target=run, name="tcsweep-sensors", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads to be had
        thread.start()
        thread.join(seconds)
    return answers[0] if answers else None
