"""Energy of an image: a phase of its own, in which nothing is timed for throughput. Knows no torch and no NVML."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcsweep.evidence.facts import Energy

LEAD_S = 0.3  # under load before the first reading that counts: power follows load with a delay
BLOCK_S = 0.03  # between two readings


@dataclass(frozen=True)
class Reading:
    """The energy counter at one moment."""

    at_s: float
    joules: float
    iterations: int  # done until then


def measure_energy(
    block: Callable[[int], object],
    iteration_ms: float,
    batch: int,
    phase_s: float,
    joules: Callable[[], float] | None,
    clock: Callable[[], float],
) -> Energy:
    """Run blocks of iterations for `phase_s` seconds, reading the counter after each. `block` runs so many and waits
    for them."""
    if joules is None:
        return Energy(missing="this device has no energy counter that could be read")
    size = max(1, math.ceil(BLOCK_S / (iteration_ms / 1e3)))
    began, done = clock(), 0
    readings: list[Reading] = []
    while (now := clock()) - began < LEAD_S + phase_s or len(readings) < 2:
        if now - began >= LEAD_S:
            readings.append(Reading(now, joules(), done))
        block(size)
        done += size
        if now - began > 10 * (LEAD_S + phase_s):
            break
    return between_steps(readings, batch)


def between_steps(readings: Sequence[Reading], batch: int) -> Energy:
    """The energy between the first and the last reading at which the counter had moved: it moves in steps of 0.1 s or
    so, and what lies between two steps is known exactly, what lies beyond them is not."""
    if any(math.isnan(r.joules) for r in readings):
        return Energy(missing="the energy counter stopped answering")
    steps = [after for before, after in itertools.pairwise(readings) if after.joules != before.joules]
    if len(steps) < 2 or steps[-1].joules <= steps[0].joules:
        return Energy(missing="the energy counter did not move twice")
    first, last = steps[0], steps[-1]
    return Energy(last.joules - first.joules, last.at_s - first.at_s, (last.iterations - first.iterations) * batch)
