from __future__ import annotations

import math
import random

import pytest

from tcsweep.job import Job, Round
from tcsweep.stats import (
    Drift,
    Figures,
    Interval,
    block_interval,
    drift,
    figures,
    has_trend,
    lag1,
    log_interval,
    log_ratio_interval,
    percentile,
    round_throughput,
    rounds_interval,
    t975,
    t9995,
)


def one_round(number: int = 1, walls: tuple[float, ...] = (100.0, 100.0), **changes: object) -> Round:
    facts: dict[str, object] = {
        "number": number,
        "started_at": 0.0,
        "worker_s": 3.0,
        "stage_s": {"start": 0.1, "context": 0.2, "build": 0.3, "input": 0.1, "first_call": 1.0, "warmup": 0.5},
        "warmup_iterations": 5,
        "block_iterations": 2,
        "block_wall_ms": walls,
        "block_device_ms": None,
        "latency_ms": (),
        "peak_memory_mib": 100.0,
    }
    return Round(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("dof", [1, 2, 3, 5, 10, 30, 31, 40, 60, 120, 1000])
def test_student_quantiles_agree_with_scipy(dof: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert t975(dof) == pytest.approx(float(scipy_stats.t.ppf(0.975, dof)), abs=2e-4)


@pytest.mark.parametrize("dof", [1, 2, 5, 10, 30, 31, 40, 60, 120, 1000])
def test_far_student_quantiles_agree_with_scipy(dof: int) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    assert t9995(dof) == pytest.approx(float(scipy_stats.t.ppf(0.9995, dof)), abs=2e-3)


def test_a_quantile_without_a_degree_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="degree of freedom"):
        t975(0)


def test_the_interval_over_rounds_is_a_t_interval_of_logarithms() -> None:
    interval = log_interval([100.0, 110.0, 121.0])
    # logs are equally spaced by ln 1.1: mean ln 110, deviation ln 1.1
    half = 4.3027 * math.log(1.1) / math.sqrt(3)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((110 * math.exp(-half), 110 * math.exp(half)))


def test_one_round_has_no_interval() -> None:
    assert log_interval([100.0]) is None


def test_half_width_is_relative_to_the_middle() -> None:
    assert Interval(98.0, 102.0).half_width == pytest.approx(0.02)


def test_intervals_overlap_when_they_share_a_point() -> None:
    assert Interval(1, 2).overlaps(Interval(2, 3))
    assert not Interval(1, 2).overlaps(Interval(2.1, 3))


def test_intervals_over_rounds_hold_the_mean_in_95_of_100_cases() -> None:
    random_source = random.Random(7)
    held = 0
    for _ in range(2000):
        interval = log_interval([math.exp(random_source.gauss(math.log(100), 0.05)) for _ in range(3)])
        assert interval is not None
        held += interval.low <= 100 <= interval.high
    assert 0.935 <= held / 2000 <= 0.965


def test_blocks_that_follow_each_other_are_joined_before_the_interval() -> None:
    random_source, level, walls = random.Random(3), 0.0, []
    for _ in range(200):
        level = 0.9 * level + random_source.gauss(0, 1)
        walls.append(100 + level)
    joined, naive = block_interval(walls), block_interval(walls, least=200)
    assert joined is not None
    assert naive is not None
    assert joined.half_width > 2 * naive.half_width


def test_lag_one_autocorrelation_of_an_alternation_is_minus_one() -> None:
    assert lag1([1.0, -1.0] * 50) == pytest.approx(-0.99)
    assert lag1([5.0, 5.0, 5.0]) == 0.0


@pytest.mark.parametrize(
    ("times", "trend"),
    [
        ([10.0, 9.0, 8.0, 7.0, 6.0, 5.0], True),
        ([5.0, 6.0, 7.0, 8.0, 9.0, 10.0], True),
        ([5.0, 6.0, 5.0, 6.0, 5.0, 6.0], False),
        ([5.0] * 20, False),
        ([3.0, 2.0, 1.0], False),  # too few to tell
    ],
)
def test_a_trend_is_a_rise_or_a_fall(times: list[float], trend: bool) -> None:
    assert has_trend(times) is trend


def test_noise_is_called_a_trend_in_about_5_of_100_cases() -> None:
    random_source = random.Random(11)
    found = sum(has_trend([random_source.gauss(10, 1) for _ in range(20)]) for _ in range(1000))
    assert 25 <= found <= 75


@pytest.mark.parametrize(("p", "floor"), [(50, 11), (90, 64), (95, 130), (99, 662)])
def test_a_percentile_needs_enough_samples(p: int, floor: int) -> None:
    samples = [float(i) for i in range(1, floor + 1)]
    assert percentile(samples[1:], p) is None
    assert percentile(samples, p) == math.ceil(p / 100 * floor)


def test_throughput_counts_the_images_of_all_blocks() -> None:
    assert round_throughput(8, one_round(walls=(100.0, 300.0))) == pytest.approx(8 * 2 * 2 / 0.4)


def test_figures_are_those_of_all_rounds() -> None:
    rounds = [
        one_round(1, (100.0, 100.0), latency_ms=(50.0,) * 6, block_device_ms=(90.0, 90.0)),
        one_round(2, (100.0, 100.0), latency_ms=(60.0,) * 5, block_device_ms=(90.0, 90.0), peak_memory_mib=120.0),
    ]
    assert figures(Job(batch=4), rounds) == Figures(
        throughput_img_s=pytest.approx(80.0),
        throughput_ci95=Interval(pytest.approx(80.0), pytest.approx(80.0)),
        throughput_ci95_within=Interval(pytest.approx(80.0), pytest.approx(80.0)),
        wall_ms=pytest.approx(50.0),
        device_ms=pytest.approx(45.0),
        latency_ms_p50=50.0,
        latency_ms_p90=None,
        latency_ms_p95=None,
        latency_ms_p99=None,
        peak_memory_mib=120.0,
        setup_s=pytest.approx(1.7),
        rounds=2,
        sustained_s=pytest.approx(0.4),
    )


def test_figures_of_one_round_have_no_interval_over_rounds() -> None:
    found = figures(Job(batch=1), [one_round(walls=(100.0, 104.0, 96.0, 100.0, 100.0))])
    assert found.throughput_ci95 is None
    assert found.throughput_ci95_within is not None


def blocks(
    source: random.Random, n: int, cv: float, r: float = 0.0, trend: float = 0.0, step: float = 0.0, at: float = 0.5
) -> tuple[float, ...]:
    """Block times with autocorrelation `r`, that rise by `trend` to the end and by `step` at the share `at` of them."""
    level, walls = source.gauss(0, cv), []
    for i in range(n):
        level = r * level + math.sqrt(1 - r * r) * source.gauss(0, cv)
        course = math.log1p(trend) * i / (n - 1) + (math.log1p(step) if i >= at * n else 0.0)
        walls.append(30 * math.exp(level + course))
    return tuple(walls)


def suspicious(found: Drift | None) -> bool:
    assert found is not None
    return abs(found.change) >= 0.03 and not found.ci95.overlaps(Interval(0.0, 0.0))


def suspected(jobs: int, rounds: int, n: int, cv: float, **course: float) -> int:
    source = random.Random(f"{rounds}/{n}/{cv}/{course}")
    made = ([one_round(k, blocks(source, n, cv, **course)) for k in range(rounds)] for _ in range(jobs))
    return sum(suspicious(drift(one)) for one in made)


@pytest.mark.parametrize(("n", "r"), [(20, 0.0), (25, 0.3), (25, 0.5), (50, 0.0), (50, 0.6)])
def test_of_a_thousand_launch_bound_jobs_of_three_rounds_at_most_three_seem_to_drift(n: int, r: float) -> None:
    assert suspected(1000, 3, n, 0.16, r=r) <= 3


@pytest.mark.parametrize(("rounds", "most"), [(1, 8), (2, 3), (5, 1)])
def test_of_500_launch_bound_jobs_few_seem_to_drift_whatever_their_rounds(rounds: int, most: int) -> None:
    assert suspected(500, rounds, 30, 0.16, r=0.5) <= most


@pytest.mark.parametrize(("n", "cv", "least"), [(20, 0.005, 98), (25, 0.01, 95), (50, 0.02, 97)])
@pytest.mark.parametrize("trend", [0.07, -0.07])
def test_a_trend_of_7_percent_in_quiet_blocks_of_one_round_is_found(
    n: int, cv: float, least: int, trend: float
) -> None:
    assert suspected(100, 1, n, cv, trend=trend) >= least


@pytest.mark.parametrize("at", [0.25, 0.5, 0.75])
@pytest.mark.parametrize(("cv", "step"), [(0.005, 0.1), (0.02, 1.0)])
def test_a_step_in_a_round_is_drift(at: float, cv: float, step: float) -> None:
    assert suspected(100, 1, 25, cv, step=step, at=at) >= 95


def test_a_clock_that_halves_midway_doubles_the_block_time() -> None:
    found = drift([one_round(walls=(30.0,) * 10 + (60.0,) * 10)])
    assert found == Drift(pytest.approx(1.0), Interval(pytest.approx(1.0), pytest.approx(1.0)))


def test_drift_is_the_mean_over_rounds_and_rounds_that_disagree_widen_its_interval() -> None:
    rising = tuple(30 * 1.01**i * (1 + 1e-4 * (-1) ** i) for i in range(10))
    falling = tuple(30 / 1.01**i * (1 + 1e-4 * (-1) ** i) for i in range(10))
    change = 9 * math.log(1.01)
    same = drift([one_round(1, rising), one_round(2, rising)])
    apart = drift([one_round(1, rising), one_round(2, falling), one_round(3, rising)])
    bounds = [pytest.approx(math.expm1(change), abs=2e-3)] * 2
    assert same == Drift(pytest.approx(math.expm1(change), abs=1e-3), Interval(*bounds))
    # The t interval of 1, -1, 1 times `change`: deviation 2 / sqrt(3), over sqrt(3), 4.3027 times.
    low, high = (math.expm1(change * (1 / 3 + sign * 4.3027 * 2 / 3)) for sign in (-1, 1))
    assert apart == Drift(
        pytest.approx(math.expm1(change / 3), abs=1e-3),
        Interval(pytest.approx(low, abs=3e-3), pytest.approx(high, abs=3e-3)),
    )


def test_one_odd_block_is_no_drift() -> None:
    assert not suspicious(drift([one_round(walls=(30.0, 30.1) * 12 + (90.0,))]))
    assert not suspicious(drift([one_round(walls=(90.0,) + (30.0, 30.1) * 12)]))


def test_blocks_that_say_nothing_give_a_finite_interval() -> None:
    found = drift([one_round(walls=(30.0, 90.0, 30.0, 31.0, 90.0))])
    assert found is not None
    assert math.isfinite(found.ci95.high)


def test_fewer_than_five_blocks_in_every_round_have_no_drift() -> None:
    short = one_round(1, (30.0, 31.0, 32.0, 33.0))
    assert drift([short, short]) is None
    assert drift([]) is None
    assert drift([short, one_round(2, (30.0,) * 5)]) == Drift(0.0, Interval(0.0, 0.0))


def test_the_ratio_of_two_samples_that_are_no_pairs_has_welchs_interval() -> None:
    # logs 1, 2, 3 against 0, 0.5: scipy.stats.ttest_ind(..., equal_var=False) has 2.635 degrees of freedom, we take 2
    found = log_ratio_interval([math.exp(1), math.exp(2), math.exp(3)], [1.0, math.exp(0.5)])
    half = 4.3027 * math.sqrt(1 / 3 + 0.125 / 2)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((math.exp(1.75 - half), math.exp(1.75 + half)))


def test_a_ratio_without_spread_is_certain_and_one_round_gives_no_interval() -> None:
    assert log_ratio_interval([4.0, 4.0], [2.0, 2.0]) == Interval(2.0, 2.0)
    assert log_ratio_interval([4.0, 4.0], [2.0]) is None
    assert log_ratio_interval([4.0], [2.0, 2.0]) is None


def test_welchs_interval_holds_the_true_ratio_about_95_times_in_100() -> None:
    source = random.Random(5)

    def rates(mean: float, spread: float, n: int) -> list[float]:
        return [math.exp(source.gauss(math.log(mean), spread)) for _ in range(n)]

    found = [log_ratio_interval(rates(300, 0.05, 3), rates(100, 0.01, 5)) for _ in range(2000)]
    held = sum(one is not None and one.low <= 3 <= one.high for one in found) / len(found)
    assert 0.94 <= held <= 0.99


def test_the_interval_over_rounds_is_wider_than_a_plain_one_by_what_stopping_early_costs() -> None:
    plain, found = log_interval([100.0, 101.0, 103.0]), rounds_interval([100.0, 101.0, 103.0])
    assert plain is not None
    assert found is not None
    assert math.log(found.high / found.low) == pytest.approx(1.2 * math.log(plain.high / plain.low))
    assert found.high * found.low == pytest.approx(plain.high * plain.low)
    assert rounds_interval([100.0]) is None


def test_95_of_100_intervals_of_sweeps_that_stop_early_hold_the_mean() -> None:
    source = random.Random(7)
    for scatter in (0.005, 0.025, 0.1):
        held = 0
        for _ in range(4000):
            rates = [math.exp(source.gauss(0, scatter)) for _ in range(3)]
            while len(rates) < 5 and (found := rounds_interval(rates)) is not None and found.half_width > 0.02:
                rates.append(math.exp(source.gauss(0, scatter)))
            found = rounds_interval(rates)
            assert found is not None
            held += found.low <= 1.0 <= found.high
        assert held / 4000 >= 0.94  # 0.95 less three standard errors
