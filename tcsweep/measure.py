"""The clockwork of one round: warm-up, timed blocks, latency. It sees a device and a clock, never torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tcsweep.evidence.facts import Work
from tcsweep.job import Job, Measure
from tcsweep.stats import LATENCY_FLOORS, block_interval, has_trend

BLOCK_S = 0.03  # a block long enough that its two synchronisations weigh nothing, short enough for 15 in half a second
BLOCKS_MAX = 100  # about; long rounds have longer blocks
BLOCKS_MIN = 5  # for an interval, where time allows
BLOCKS_LEAST = 2  # where it does not
WARMUP_SHARE = 0.25  # of a round's time at most, so that a slow device has some left to be measured
WARMUP_TIMES_MIN = 10  # so that the last half is long enough for a trend to show


class Device(Protocol):
    """What is measured."""

    def block(self, iterations: int) -> tuple[float, float | None]:
        """Run so many iterations, synchronised at both ends; wall and device milliseconds (None on a CPU)."""

    def one(self) -> float:
        """Run one iteration and wait for it; wall milliseconds."""


Clock = Callable[[], float]  # seconds, monotonic


@dataclass(frozen=True)
class Hint:
    """What round 1 found and later rounds reuse."""

    warmup_iterations: int
    block_iterations: int


@dataclass(frozen=True)
class RoundRequest:
    """One round to measure. Times are of CLOCK_MONOTONIC, which all processes of a machine share."""

    job: Job
    number: int
    asked_at: float  # when the sweep asked for the worker
    deadline: float  # the end of this round's share of the job's budget
    hint: Hint | None = None
    reference: Reference | None = None
    gathers: bool = False  # whether to collect the job's evidence after the timing


@dataclass(frozen=True)
class Reference:
    """What jobs of one model share: made once, in a worker of its own."""

    path: str | None  # file with the float32 outputs, and with what calibrates random weights
    work: Work
    rates: dict[str, float] = field(default_factory=dict)  # see Evidence
    missing: str | None = None  # why there is no file


@dataclass(frozen=True)
class Samples:
    """The raw times of a round, in milliseconds."""

    warmup_iterations: int
    warmed_up: bool
    block_iterations: int
    block_wall_ms: tuple[float, ...]
    block_device_ms: tuple[float, ...] | None
    converged: bool
    latency_ms: tuple[float, ...]
    stage_s: dict[str, float]
    timed_from: float = 0.0  # of the watch's clock
    timed_until: float = 0.0


@dataclass(frozen=True)
class Watch:
    """The time a round has, and whom it tells. `deadline` is of the same clock; `tell` is called between blocks."""

    clock: Clock
    deadline: float = math.inf
    tell: Callable[[str, float, float | None], None] = lambda stage, iteration_ms, half_width: None

    @property
    def late(self) -> bool:
        """Whether the round's share of the budget is spent."""
        return self.clock() >= self.deadline


def run_round(device: Device, settings: Measure, watch: Watch, hint: Hint | None = None) -> Samples:
    """Warm up, time blocks, then measure latency: one whole round."""
    start = watch.clock()
    warm_iterations, warmed_up, iteration_ms = warm_up(device, settings, watch, hint)
    warm = watch.clock()
    size = block_size(settings, iteration_ms, hint)
    walls, devices, converged = timed_blocks(device, settings, watch, size)
    timed = watch.clock()
    latencies = latency(device, settings, watch)
    end = watch.clock()
    return Samples(
        warmup_iterations=warm_iterations,
        warmed_up=warmed_up,
        block_iterations=size,
        block_wall_ms=tuple(walls),
        block_device_ms=None if None in devices else tuple(d for d in devices if d is not None),
        converged=converged,
        latency_ms=tuple(latencies),
        stage_s={"warmup": warm - start, "throughput": timed - warm, "latency": end - timed},
        timed_from=warm,
        timed_until=timed,
    )


def warm_up(device: Device, settings: Measure, watch: Watch, hint: Hint | None) -> tuple[int, bool, float]:
    """Iterate until the times show no trend over their last half; with a hint, as often as round 1 did.
    Returns iterations, whether no trend was left, and milliseconds an iteration of the last half."""
    start, done, step = watch.clock(), 0, 1
    ceiling_s = min(settings.warmup_s_max, WARMUP_SHARE * (watch.deadline - start))
    times: list[float] = []
    while True:
        wall, _ = device.block(step)
        done += step
        times.append(wall / step)
        last_half = times[len(times) // 2 :]
        watch.tell("warmup", times[-1], None)
        elapsed = watch.clock() - start
        if hint is not None and done >= hint.warmup_iterations:
            break
        if done >= settings.warmup_iterations_min:
            if done >= settings.warmup_iterations_max or elapsed >= ceiling_s:
                break
            if (
                hint is None
                and elapsed >= settings.warmup_s_min
                and len(times) >= WARMUP_TIMES_MIN
                and not has_trend(last_half)
            ):
                break
        # Pieces of a twentieth of the floor: enough of them for a trend, few enough to waste nothing.
        step = max(1, int(settings.warmup_s_min / 20 / (times[-1] / 1e3)))
        step = min(step, settings.warmup_iterations_max - done)
        if hint is not None:
            step = min(step, hint.warmup_iterations - done)
        step = max(step, 1)
    return done, not has_trend(last_half), sum(last_half) / len(last_half)


def block_size(settings: Measure, iteration_ms: float, hint: Hint | None) -> int:
    """Iterations a block. An exact number of iterations is cut into equal blocks, `BLOCKS_MIN` or more if it can."""
    if hint is not None:
        return hint.block_iterations
    block_s = max(BLOCK_S, settings.timed_s_max / BLOCKS_MAX)
    wanted = max(1, math.ceil(block_s / (iteration_ms / 1e3)))
    if settings.iterations is None:
        return wanted
    divisors = [d for d in range(1, settings.iterations + 1) if settings.iterations % d == 0]
    fitting = [d for d in divisors if settings.iterations // d >= BLOCKS_MIN] or [1]
    return next((d for d in fitting if d >= wanted), fitting[-1])


def timed_blocks(
    device: Device, settings: Measure, watch: Watch, size: int
) -> tuple[list[float], list[float | None], bool]:
    """Blocks until the interval is narrow, the time is up, or the exact number of iterations is done.
    Returns wall and device milliseconds of each block, and whether the interval became narrow enough."""
    walls: list[float] = []
    devices: list[float | None] = []
    total_s = 0.0
    while True:
        wall, on_device = device.block(size)
        walls.append(wall)
        devices.append(on_device)
        total_s += wall / 1e3
        interval = block_interval(walls)
        half_width = interval.half_width if interval else None
        narrow = half_width is not None and len(walls) >= BLOCKS_MIN and half_width <= settings.within_ci
        watch.tell("throughput", sum(walls) / len(walls) / size, half_width)
        if settings.iterations is not None:
            if len(walls) * size >= settings.iterations:
                return walls, devices, narrow
        elif narrow and total_s >= settings.timed_s_min:
            return walls, devices, True
        elif len(walls) >= BLOCKS_LEAST and (total_s >= settings.timed_s_max or watch.late):
            return walls, devices, narrow


def latency(device: Device, settings: Measure, watch: Watch) -> list[float]:
    """One batch in flight, until the phase's time is up, but this round's share of the median's 11 samples where the
    budget allows; never more than the 99th percentile needs."""
    least = math.ceil(LATENCY_FLOORS[50] / settings.rounds)
    samples: list[float] = []
    start = watch.clock()
    while settings.latency_s_max > 0 and len(samples) < LATENCY_FLOORS[99] and not watch.late:
        if len(samples) >= least and watch.clock() - start >= settings.latency_s_max:
            break
        samples.append(device.one())
    return samples
