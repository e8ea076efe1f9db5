"""Energy of an image: a phase of its own, in which nothing is timed for throughput. Knows no torch and no NVML."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from tcsweep.evidence.facts import Energy

LEAD_S = 0.3  # under load before the first reading that counts: power follows load with a delay
BLOCK_S = 0.03  # between two readings


@dataclass(frozen=True)
class Power:
    """A board's power at one moment."""

    at_s: float
    watts: float


class Log(AbstractContextManager[Any], Protocol):
    """Samples a board's power from its entry to its exit, by the clock that `measure_sampled` is given."""

    source: str  # where the power is from
    gap_s: float  # between two samples at most, so that what lies between them is known well enough

    @property
    def powers(self) -> Sequence[Power]:
        """What was read so far, in order."""


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


def measure_sampled(
    block: Callable[[int], object],
    iteration_ms: float,
    batch: int,
    phase_s: float,
    log: Log,
    clock: Callable[[], float],
) -> Energy:
    """Run blocks of iterations for `phase_s` seconds while `log` samples the board's power, for a board without an
    energy counter."""
    size = max(1, math.ceil(BLOCK_S / (iteration_ms / 1e3)))
    with log:
        _run(block, size, clock() + LEAD_S, clock)
        began = clock()
        done = _run(block, size, began + phase_s, clock)
        ended = clock()
    joules = integral_j(log.powers, began, ended, log.gap_s)
    if joules is None:
        return Energy(missing="the sensor of the board's power stopped answering")
    return Energy(joules, ended - began, done * batch, source=log.source)


def _run(block: Callable[[int], object], size: int, until: float, clock: Callable[[], float]) -> int:
    """Run blocks until then, one at least; the iterations done."""
    done = 0
    while not done or clock() < until:
        block(size)
        done += size
    return done


def integral_j(powers: Sequence[Power], began: float, ended: float, gap_s: float) -> float | None:
    """The energy between two moments by the trapezoid rule, power taken as linear between samples and as constant after
    the last. None where the samples do not begin before the first moment, or leave more than `gap_s` unknown."""
    first = bisect_right([p.at_s for p in powers], began) - 1
    if first < 0:
        return None
    joules = 0.0
    for before, after in itertools.pairwise([*powers[first:], Power(max(ended, powers[-1].at_s), powers[-1].watts)]):
        start, end = max(before.at_s, began), min(after.at_s, ended)
        if start >= end:
            continue
        if after.at_s - before.at_s > gap_s:
            return None
        joules += (end - start) * (_watts(before, after, start) + _watts(before, after, end)) / 2
    return joules


def _watts(before: Power, after: Power, at_s: float) -> float:
    share = (at_s - before.at_s) / (after.at_s - before.at_s)
    return before.watts + share * (after.watts - before.watts)
