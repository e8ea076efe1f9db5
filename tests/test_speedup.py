from __future__ import annotations

import math

import pytest

from tcsweep.job import Environment, Failure, Job, Outcome, Result, Skipped
from tcsweep.speedup import Speedup, rows
from tcsweep.stats import Interval

from .test_stats import one_round


def result(job: Job, *rates: float, index: int = 0) -> Result:
    """A result whose rounds run at the given images a second; nan leaves a round out."""
    rounds = tuple(
        one_round(i + 1, (job.batch * 2 / rate * 1e3,) * 2) for i, rate in enumerate(rates) if not math.isnan(rate)
    )
    return Result(job, "asked", index, Environment(), rounds, 0.0, 1.0)


def speedups(*outcomes: Outcome) -> list[Speedup]:
    return [row.speedup for row in rows(outcomes)]


def test_a_speedup_is_taken_round_by_round() -> None:
    fp32, o1 = result(Job(), 100, 200, 400), result(Job(precision="o1", amp_backend="torch"), 300, 600, 1200)
    # rounds drift by 4 times, the ratio not at all
    assert speedups(fp32, o1) == [
        Speedup(1.0, Interval(1.0, 1.0)),
        Speedup(pytest.approx(3.0), Interval(pytest.approx(3.0), pytest.approx(3.0))),
    ]


def test_a_speedups_interval_is_a_t_interval_of_log_ratios() -> None:
    half = 4.3027 * math.log(1.1) / math.sqrt(3)
    (_, found) = speedups(result(Job(), 100, 100, 100), result(Job(precision="fp16"), 200, 220, 242))
    assert found.ci95 is not None
    assert (found.ci95.low, found.ci95.high) == pytest.approx((2.2 * math.exp(-half), 2.2 * math.exp(half)))


def test_rounds_that_one_of_the_two_lacks_are_left_out() -> None:
    (_, found) = speedups(result(Job(), 100, 100), result(Job(precision="fp16"), 200, math.nan, 900))
    assert found == Speedup(pytest.approx(2.0), None)


def test_no_round_in_common_is_said() -> None:
    (_, found) = speedups(result(Job(), 100), result(Job(precision="fp16"), math.nan, 200))
    assert found == Speedup(None, None, "no round in common with its baseline")


def test_a_baseline_of_another_cell_is_no_baseline() -> None:
    (_, found) = speedups(result(Job(batch=8), 100), result(Job(precision="fp16"), 200))
    assert found == Speedup(None, None, "no baseline")


def test_a_failed_baseline_gives_its_reason_and_no_number() -> None:
    failed = Failure(Job(), "asked", 0, Environment(), "first_call", "gpu-memory", "out of GPU memory", 0.0, 1.0)
    (_, found) = speedups(failed, result(Job(precision="fp16"), 200))
    assert found == Speedup(None, None, "no baseline: fp32 failed: out of GPU memory")


def test_a_job_without_a_result_has_no_speedup() -> None:
    skipped = Skipped(Job(precision="tf32"), "asked", 0, Environment(), "a CPU has no TF32", 0.0, 0.0)
    assert speedups(skipped, result(Job(), 1)) == [
        Speedup(None, None, "not measured"),
        Speedup(1.0, Interval(1.0, 1.0)),
    ]


def test_the_total_speedup_is_over_nchw_eager_fp32() -> None:
    outcomes = [
        result(Job(), 100),
        result(Job(layout="nhwc"), 50),
        result(Job(layout="nhwc", precision="fp16"), 200),
    ]
    assert [(r.speedup.value, r.speedup_total.value) for r in rows(outcomes)] == [
        (1.0, 1.0),
        (1.0, pytest.approx(0.5)),
        (pytest.approx(4.0), pytest.approx(2.0)),
    ]


def test_a_repeat_is_compared_with_the_same_baseline() -> None:
    outcomes = [result(Job(), 100), result(Job(repeat=1), 110)]
    assert [r.speedup.value for r in rows(outcomes)] == [1.0, pytest.approx(1.1)]


def test_few_rounds_make_a_row_wide_and_the_rest_is_unverified() -> None:
    wide, narrow = result(Job(), 100), result(Job(precision="fp16"), 200, 200, 200)
    assert [r.verdict for r in rows([wide, narrow])] == ["wide", "unverified"]
    assert [v.name for v in rows([wide])[0].verdicts] == ["wide", "unverified"]
