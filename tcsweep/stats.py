"""Pure statistics of samples and rounds. Throughput in images a second, times in milliseconds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tcsweep.job import Job, Round

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom (Abramowitz and Stegun, table 26.10).
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
# Two-sided 99.9% quantiles of the same (scipy.stats.t.ppf(0.9995, dof)).
_T9995 = (
    636.6192, 31.5991, 12.9240, 8.6103, 6.8688, 5.9588, 5.4079, 5.0413, 4.7809, 4.5869,
    4.4370, 4.3178, 4.2208, 4.1405, 4.0728, 4.0150, 3.9651, 3.9216, 3.8834, 3.8495,
    3.8193, 3.7921, 3.7676, 3.7454, 3.7251, 3.7066, 3.6896, 3.6739, 3.6594, 3.6460,
)  # fmt: skip

# Samples that a latency percentile needs (MLPerf LoadGen: an upper bound at 99% confidence, one sample over).
LATENCY_FLOORS = {50: 11, 90: 64, 95: 130, 99: 662}

# A job stops after 3 rounds where chance made them alike, so that a plain t interval holds the mean 92 to 95 times of
# 100, the fewest where processes differ by 2 to 3%. So much wider it is 95 or more whatever they differ by (simulated
# normal logarithms, docs/intervals.md), and 90 where their distribution is skewed.
STOPPING = 1.2

DRIFT_BLOCKS = 5  # fewer in a round say nothing of its course
DRIFT_JOBS = 50  # jobs of a sweep whose drift intervals hold together
AUTOCORRELATION_MAX = 0.95  # above, a round is one long wave


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the width over the middle: 0.02 is plus or minus 2%."""
        return (self.high - self.low) / (self.high + self.low)

    def overlaps(self, other: Interval) -> bool:
        """Whether the two have a point in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Figures:
    """What a job's rounds say. None where there is too little to say it."""

    throughput_img_s: float
    throughput_ci95: Interval | None  # over rounds, log scale; None with one round
    throughput_ci95_within: Interval | None  # from the blocks of the rounds; too narrow for comparisons of processes
    wall_ms: float  # a batch, host clock
    device_ms: float | None  # a batch, CUDA events
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    latency_ms_p95: float | None
    latency_ms_p99: float | None
    peak_memory_mib: float | None
    setup_s: float
    rounds: int
    sustained_s: float  # seconds of timed blocks, all rounds
    energy_j_per_img: float | None = None  # of the whole device, idle power included; mean over rounds


@dataclass(frozen=True)
class Drift:
    """How block time changes from the start to the end of a round's timed blocks: 0.05 is 5% slower at the end."""

    change: float  # mean over rounds
    ci95: Interval  # of one job among 50: see `drift`. Around 0, so its `half_width` means nothing


def t975(dof: int) -> float:
    """The 97.5% quantile of Student's t, good to 1e-4; past the table by Abramowitz and Stegun 26.7.5."""
    return _quantile(dof, _T975, 1.959964)


def t9995(dof: int) -> float:
    """The 99.95% quantile of Student's t, good to 2e-3; past the table as `t975`."""
    return _quantile(dof, _T9995, 3.290527)


def _quantile(dof: int, table: Sequence[float], z: float) -> float:
    if dof < 1:
        raise ValueError("an interval needs at least one degree of freedom")
    if dof <= len(table):
        return table[dof - 1]
    return z + (z**3 + z) / (4 * dof) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * dof**2)


def log_interval(values: Sequence[float]) -> Interval | None:
    """t interval of the geometric mean of positive values; None for fewer than two."""
    if len(values) < 2:
        return None
    logs = [math.log(v) for v in values]
    mean = statistics.fmean(logs)
    half = t975(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(mean - half), math.exp(mean + half))


def rounds_interval(rates: Sequence[float]) -> Interval | None:
    """The 95% interval of a job's throughput, from those of its rounds; None for fewer than two."""
    interval = log_interval(rates)
    if interval is None:
        return None
    middle, half = math.sqrt(interval.low * interval.high), STOPPING * math.log(interval.high / interval.low) / 2
    return Interval(middle * math.exp(-half), middle * math.exp(half))


def log_ratio_interval(values: Sequence[float], others: Sequence[float]) -> Interval | None:
    """Welch's t interval of the ratio of two geometric means, of positive values that are no pairs; None where one side
    has fewer than two. Degrees of freedom by Welch and Satterthwaite, rounded down."""
    if min(len(values), len(others)) < 2:
        return None
    sides = [[math.log(v) for v in side] for side in (values, others)]
    shares = [statistics.variance(logs) / len(logs) for logs in sides]
    middle = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    if not sum(shares):
        return Interval(math.exp(middle), math.exp(middle))
    freedom = sum(shares) ** 2 / sum(share**2 / (len(logs) - 1) for share, logs in zip(shares, sides))
    half = t975(int(freedom + 1e-9)) * math.sqrt(sum(shares))
    return Interval(math.exp(middle - half), math.exp(middle + half))


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; a single value comes back to the last digit."""
    return values[0] if len(values) == 1 else statistics.geometric_mean(values)


def lag1(values: Sequence[float]) -> float:
    """Lag-1 autocorrelation; 0 where it is undefined."""
    mean = statistics.fmean(values)
    total = sum((v - mean) ** 2 for v in values)
    if len(values) < 3 or total == 0:
        return 0.0
    return sum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / total


def block_interval(block_ms: Sequence[float], least: int = 5) -> Interval | None:
    """t interval of the mean block time, neighbouring blocks joined until their lag-1 autocorrelation is under 0.2
    or fewer than `least` would be left. None for fewer than two blocks."""
    blocks = list(block_ms)
    while lag1(blocks) >= 0.2 and len(blocks) // 2 >= least:
        blocks = [(a + b) / 2 for a, b in zip(blocks[::2], blocks[1::2])]
    if len(blocks) < 2:
        return None
    mean = statistics.fmean(blocks)
    half = t975(len(blocks) - 1) * statistics.stdev(blocks) / math.sqrt(len(blocks))
    return Interval(max(mean - half, mean * 1e-9), mean + half)


def has_trend(times: Sequence[float]) -> bool:
    """Whether times rise or fall over the sequence: Mann-Kendall at 5%, two-sided. Fewer than 5 cannot tell: False."""
    n = len(times)
    if n < 5:
        return False
    s = sum((b > a) - (b < a) for i, a in enumerate(times) for b in times[i + 1 :])
    variance = n * (n - 1) * (2 * n + 5) / 18
    return (abs(s) - 1) / math.sqrt(variance) > 1.959964


def drift(rounds: Sequence[Round]) -> Drift | None:
    """The relative change of block time over a round's timed blocks, mean over rounds; None where no round has
    `DRIFT_BLOCKS` blocks, and rounds with fewer are left out.

    In each round it is that of a fitted line, or of a single step where that leaves less than half of the line's
    squares. The interval is the wider of two. From the scatter around the fits: for first-order autocorrelation the
    variance is taken (1 + r) / (1 - r) times and the degrees of freedom as many times fewer, down to half. From how
    the rounds differ: at least the t interval over the changes of three rounds or more.
    It holds for all of `DRIFT_JOBS` jobs at once with 95% (Bonferroni: 99.9% for each): a job called suspect by
    mistake loses its speed-up, and with 95% for each, one noisy job in 20 would.
    """
    fits = [_fit_change(r.block_wall_ms) for r in rounds if len(r.block_wall_ms) >= DRIFT_BLOCKS]
    if not fits:
        return None
    change = statistics.fmean(f.change for f in fits)
    r = _autocorrelation(fits)
    inflation = (1 + r) / (1 - r)
    within = math.sqrt(inflation * sum(f.error**2 for f in fits)) / len(fits)
    free = max(1, int(sum(len(f.residuals) / min(inflation, 2) - f.parameters for f in fits)))
    half = t9995(free) * within
    if len(fits) > 1:
        between = statistics.stdev(f.change for f in fits) / math.sqrt(len(fits))
        # Of two rounds a t interval is 13 times its standard error: it would never find anything.
        quantile = max(t9995(free), t975(len(fits) - 1)) if len(fits) > 2 else t9995(free)
        half = max(half, quantile * between)
    half = min(half, 100.0)  # e**100 times: says nothing, and is finite
    return Drift(math.expm1(change), Interval(math.expm1(change - half), math.expm1(change + half)))


@dataclass(frozen=True)
class _Fit:
    """Logarithms of block times, explained by a line or a step."""

    change: float  # from start to end, in logarithms
    error: float  # its standard error where residuals are independent
    residuals: tuple[float, ...]
    parameters: int


def _fit_change(block_ms: Sequence[float]) -> _Fit:
    logs = [math.log(b) for b in block_ms]
    line = _fit_line(logs)
    # A step around a line leaves residuals that look like slow noise, and would hide itself.
    step = min((_fit_step(logs, at) for at in _step_places(len(logs))), key=_squares)
    return step if _squares(step) < _squares(line) / 2 else line


def _step_places(n: int) -> range:
    """Where a step may be: a fifth of the blocks, and 2, on either side, so that one odd block is none."""
    least = max(2, n // 5)
    return range(least, n - least + 1)


def _fit_line(logs: Sequence[float]) -> _Fit:
    n, mean = len(logs), statistics.fmean(logs)
    at = [i - (n - 1) / 2 for i in range(n)]
    spread = sum(x * x for x in at)
    slope = sum(x * y for x, y in zip(at, logs)) / spread
    residuals = tuple(y - mean - slope * x for x, y in zip(at, logs))
    deviation = math.sqrt(sum(e * e for e in residuals) / (n - 2))
    return _Fit(slope * (n - 1), deviation * (n - 1) / math.sqrt(spread), residuals, 2)


def _fit_step(logs: Sequence[float], at: int) -> _Fit:
    n, before, after = len(logs), statistics.fmean(logs[:at]), statistics.fmean(logs[at:])
    residuals = tuple(y - (before if i < at else after) for i, y in enumerate(logs))
    deviation = math.sqrt(sum(e * e for e in residuals) / (n - 3))
    return _Fit(after - before, deviation * math.sqrt(1 / at + 1 / (n - at)), residuals, 3)


def _squares(fit: _Fit) -> float:
    return sum(e * e for e in fit.residuals)


def _autocorrelation(fits: Sequence[_Fit]) -> float:
    """Lag-1 autocorrelation of all residuals, from 0 to `AUTOCORRELATION_MAX`. What a line leaves of n values of noise
    shows it too low by about (2 + 4 r) / n: that is undone."""
    squares = sum(_squares(f) for f in fits)
    if squares == 0:
        return 0.0
    found = sum(a * b for f in fits for a, b in itertools.pairwise(f.residuals)) / squares
    n = sum(len(f.residuals) for f in fits) / len(fits)
    return min(max(0.0, (found + 2 / n) / (1 - 4 / n)), AUTOCORRELATION_MAX)


def percentile(samples: Sequence[float], p: int) -> float | None:
    """Nearest-rank percentile; None with fewer samples than `LATENCY_FLOORS` asks for."""
    if len(samples) < LATENCY_FLOORS[p]:
        return None
    return sorted(samples)[math.ceil(p / 100 * len(samples)) - 1]


def round_throughput(batch: int, one: Round) -> float:
    """Images a second of one round, all of its timed blocks."""
    return batch * one.block_iterations * len(one.block_wall_ms) / (sum(one.block_wall_ms) / 1e3)


def figures(job: Job, rounds: Sequence[Round]) -> Figures:
    """The figures of a job: means are geometric over rounds, latencies pooled. Needs at least one round."""
    rates = [round_throughput(job.batch, r) for r in rounds]
    throughput = geometric_mean(rates)
    within = [block_interval(r.block_wall_ms) for r in rounds]
    halves = [w.half_width for w in within if w is not None]
    half = math.sqrt(sum(h * h for h in halves)) / len(halves) if halves else None
    latencies = [ms for r in rounds for ms in r.latency_ms]
    devices = [
        sum(r.block_device_ms) / len(r.block_device_ms) / r.block_iterations for r in rounds if r.block_device_ms
    ]
    energies = [r.energy.joules / r.energy.images for r in rounds if r.energy and r.energy.joules and r.energy.images]
    peaks = [r.peak_memory_mib for r in rounds if r.peak_memory_mib is not None]
    return Figures(
        throughput_img_s=throughput,
        throughput_ci95=rounds_interval(rates),
        throughput_ci95_within=None if half is None else Interval(throughput * (1 - half), throughput * (1 + half)),
        wall_ms=job.batch / throughput * 1e3,
        device_ms=geometric_mean(devices) if devices else None,
        latency_ms_p50=percentile(latencies, 50),
        latency_ms_p90=percentile(latencies, 90),
        latency_ms_p95=percentile(latencies, 95),
        latency_ms_p99=percentile(latencies, 99),
        peak_memory_mib=max(peaks) if peaks else None,
        setup_s=statistics.fmean(r.setup_s for r in rounds),
        rounds=len(rounds),
        sustained_s=sum(sum(r.block_wall_ms) for r in rounds) / 1e3,
        energy_j_per_img=statistics.fmean(energies) if energies else None,
    )
