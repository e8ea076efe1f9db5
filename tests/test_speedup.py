from __future__ import annotations

import dataclasses
import math

import pytest

from tcsweep.evidence.facts import Dtypes, Kernels, Numerics
from tcsweep.job import Environment, Failure, Job, Outcome, Result, Skipped
from tcsweep.speedup import Speedup, rows
from tcsweep.stats import Interval

from .evident import STATE, TF32_ON, clean, operators, samples
from .test_stats import one_round

UNSEEN = Kernels(missing="no right to profile")  # decides nothing where no operator is in float32


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
    assert [r.verdict for r in rows([wide, narrow])] == ["unverified", "unverified"]
    assert [[v.name for v in r.verdicts] for r in rows([wide, narrow])] == [["unverified", "wide"], ["unverified"]]


def test_a_row_whose_verdicts_find_nothing_is_ok_and_one_without_a_result_has_none() -> None:
    failed = Failure(Job(), "asked", 0, Environment(), "first_call", "gpu-memory", "out of GPU memory", 0.0, 1.0)
    assert [(r.verdict, r.verdicts) for r in rows([clean(), failed])] == [("ok", ()), (None, ())]


# --- suspects are not compared ---

WHY = "observed float16 in 54 of 54 operators, labelled float32"


def suspicious(precision: str = "fp32", img_s: float = 1000.0, **job: object) -> Result:
    """A result labelled fp32 or tf32 whose operators were float16."""
    return clean(
        precision, img_s, dtypes=Dtypes("ATen operators of one call", operators("float16")), job=job, kernels=UNSEEN
    )


def test_a_suspect_job_has_no_speedup_and_the_others_of_its_cell_do() -> None:
    base, bad, good = rows([clean(), suspicious("tf32", 2000.0), clean("fp16", 3000.0, kernels=UNSEEN)])
    assert bad.speedup == bad.speedup_total == Speedup(None, None, f"suspect: {WHY}")
    assert (bad.verdict, base.speedup.value, good.speedup.value) == ("suspect", 1.0, pytest.approx(3.0))


def test_every_suspicion_is_in_the_reason() -> None:
    bad = clean(round_changes={"arithmetic_after": TF32_ON}, numerics=Numerics(64, 1e-3))
    reasons = (
        "TF32 was on, labelled fp32",
        "the process's arithmetic switches changed during the timing",
        "the output is 1.0e-03 off float32's, over 1e-04",
    )
    assert rows([bad])[0].speedup == Speedup(None, None, f"suspect: {'; '.join(reasons)}")


def test_a_suspect_baseline_leaves_no_speedup_in_its_cell_and_other_cells_keep_theirs() -> None:
    found = rows(
        [
            suspicious(),
            clean("o1", 2000.0, kernels=UNSEEN),
            clean("fp16", 3000.0, kernels=UNSEEN),
            clean("fp32", 500.0, batch=4),
            clean("fp16", 1500.0, batch=4, kernels=UNSEEN),
        ]
    )
    spoiled = Speedup(None, None, f"no baseline: fp32 suspect: {WHY}")
    assert [r.speedup for r in found[:3]] == [Speedup(None, None, f"suspect: {WHY}"), spoiled, spoiled]
    assert [r.speedup.value for r in found[3:]] == [1.0, pytest.approx(3.0)]


def test_a_suspect_reference_takes_the_total_speedup_only() -> None:
    found = rows(
        [
            suspicious(),  # NCHW: the reference of all
            clean("fp32", 1000.0, job={"layout": "nhwc"}),
            clean("fp16", 3000.0, job={"layout": "nhwc"}, kernels=UNSEEN),
        ]
    )
    no_total = Speedup(None, None, f"no reference: fp32 suspect: {WHY}")
    assert [r.speedup.value for r in found] == [None, 1.0, pytest.approx(3.0)]
    assert [r.speedup_total for r in found[1:]] == [no_total, no_total]


def test_a_failed_baseline_that_is_the_reference_too_leaves_neither() -> None:
    failed = Failure(clean().job, "asked", 0, Environment(), "build", "gpu-memory", "out of GPU memory", 0.0, 1.0)
    row = rows([failed, clean("fp16", kernels=UNSEEN)])[1]
    assert (row.speedup.reason, row.speedup_total.reason) == (
        "no baseline: fp32 failed: out of GPU memory",
        "no reference: fp32 failed: out of GPU memory",
    )


def test_a_suspect_job_says_so_although_its_baseline_failed() -> None:
    failed = Failure(clean().job, "asked", 0, Environment(), "build", "gpu-memory", "out of GPU memory", 0.0, 1.0)
    assert rows([failed, suspicious("tf32")])[1].speedup == Speedup(None, None, f"suspect: {WHY}")


# --- one point asked for more than once ---


def test_repeats_that_lie_apart_are_wide_by_an_order_effect_and_others_are_not() -> None:
    found = rows([clean("fp32", rate, job={"repeat": n}) for n, rate in enumerate((1000.0, 1003.0, 1050.0))])
    reason = "order effect: the same point gave 1000 to 1050 img/s"
    assert [[(v.name, v.reasons) for v in r.verdicts] for r in found] == [[("wide", (reason,))]] * 3
    assert [r.verdicts for r in rows([clean("fp32"), clean("fp32", 1010.0, job={"repeat": 1})])] == [(), ()]
    assert [r.verdicts for r in rows([clean("fp32"), clean("fp32", 1050.0, job={"layout": "nhwc"})])] == [(), ()]


def test_an_order_effect_joins_the_other_reasons_to_be_wide() -> None:
    states = dataclasses.replace(STATE, samples=samples(*[990.0] * 6))
    low = clean("fp32", 1050.0, job={"repeat": 1}, round_changes={"device_state": states})
    assert [v.reasons for v in rows([clean("fp32"), low])[1].verdicts] == [
        ("SM clock 990 of 1980 MHz", "order effect: the same point gave 1000 to 1050 img/s")
    ]
