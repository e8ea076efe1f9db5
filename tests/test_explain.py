from __future__ import annotations

import dataclasses

import pytest

from tcsweep.explain import RULES, Verdict, verdicts, wide
from tcsweep.job import Environment, Job, Measure, Result, Round
from tcsweep.stats import Figures, Interval, figures

from .test_speedup import result
from .test_stats import one_round

ADVICE = "repeat with measure=thorough on a quiet machine"
UNVERIFIED = Verdict("unverified", ("dtypes and kernels were not observed",))


def a_result(*rounds: Round, stopped: str | None = None, **settings: object) -> Result:
    job = Job(measure=Measure(**settings))  # type: ignore[arg-type]
    return Result(job, "asked", 0, Environment(), rounds, 0.0, 1.0, stopped)


def judge(measured: Result) -> Verdict | None:
    return wide(measured, figures(measured.job, measured.rounds))


def with_interval(over_rounds: float | None, within: float | None, **settings: object) -> tuple[Result, Figures]:
    """A result of three rounds and its figures, with intervals of these half-widths around 100 images a second."""
    measured = a_result(*(one_round(n) for n in (1, 2, 3)), **settings)
    derived = figures(measured.job, measured.rounds)
    around = [None if h is None else Interval(100 * (1 - h), 100 * (1 + h)) for h in (over_rounds, within)]
    return measured, dataclasses.replace(derived, throughput_ci95=around[0], throughput_ci95_within=around[1])


def test_a_narrow_result_of_all_its_rounds_is_not_wide() -> None:
    assert judge(result(Job(), 100, 100, 100)) is None


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        ("budget", "2 of 3 rounds (budget)"),
        ("interrupted", "2 of 3 rounds (interrupted)"),
        (None, "2 of 3 rounds (stopped)"),
    ],
)
def test_fewer_rounds_than_asked_for_are_wide(stopped: str | None, reason: str) -> None:
    assert judge(a_result(one_round(1), one_round(2), stopped=stopped)) == Verdict("wide", (reason,), ADVICE)


@pytest.mark.parametrize(("unsteady", "is_wide"), [(0, False), (1, False), (2, True), (3, True)])
def test_most_rounds_must_have_been_warm(unsteady: int, is_wide: bool) -> None:
    found = judge(a_result(*(one_round(n, warmed_up=n > unsteady) for n in (1, 2, 3))))
    expected = Verdict("wide", ("times still changed when the warm-up ended",), ADVICE)
    assert found == (expected if is_wide else None)


def test_half_of_the_rounds_is_not_most() -> None:
    assert judge(a_result(one_round(1, warmed_up=False), one_round(2), rounds=2)) is None


def test_an_interval_over_rounds_is_held_to_the_limit_over_rounds() -> None:
    assert wide(*with_interval(0.019, 0.5, rounds_ci=0.02)) is None
    assert wide(*with_interval(0.0345, 0.001, rounds_ci=0.02)) == Verdict(
        "wide", ("interval of ±3.5%, over ±2.0%",), ADVICE
    )


@pytest.mark.parametrize(
    ("rounds_ci", "within_ci", "limit"), [(0.02, 0.005, "2.0%"), (0.005, 0.02, "2.0%")], ids=["rounds", "within"]
)
def test_an_interval_within_rounds_is_held_to_the_laxer_limit(rounds_ci: float, within_ci: float, limit: str) -> None:
    limits = {"rounds_ci": rounds_ci, "within_ci": within_ci}
    assert wide(*with_interval(None, 0.019, **limits)) is None
    assert wide(*with_interval(None, 0.03, **limits)) == Verdict("wide", (f"interval of ±3.0%, over ±{limit}",), ADVICE)


def test_one_block_is_too_few_for_an_interval() -> None:
    assert judge(a_result(one_round(walls=(100.0,)), rounds=1)) == Verdict(
        "wide", ("too few samples for an interval",), ADVICE
    )


def test_every_reason_is_given() -> None:
    found = judge(a_result(one_round(walls=(100.0, 140.0), warmed_up=False), stopped="budget"))
    reasons = (
        "1 of 3 rounds (budget)",
        "times still changed when the warm-up ended",
        "interval of ±100.0%, over ±2.0%",  # two blocks so far apart that the interval reaches down to nothing
    )
    assert found == Verdict("wide", reasons, ADVICE)


def test_verdicts_are_all_that_hold_gravest_first() -> None:
    narrow, few = result(Job(), 100, 100, 100), result(Job(), 100)
    assert [rule.__name__ for rule in RULES] == ["wide", "unverified"]
    assert verdicts(narrow, figures(narrow.job, narrow.rounds)) == (UNVERIFIED,)
    assert verdicts(few, figures(few.job, few.rounds)) == (
        Verdict("wide", ("1 of 3 rounds (stopped)",), ADVICE),
        UNVERIFIED,
    )
