"""Cells, baselines and speed-ups with their intervals. Pure: outcomes in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcsweep.explain import Verdict, verdicts
from tcsweep.job import Failure, Job, Outcome, Result, Skipped
from tcsweep.stats import Figures, Interval, figures, geometric_mean, log_interval, round_throughput


@dataclass(frozen=True)
class Speedup:
    """How many times the throughput of another job; 1 is equal. Without a value, `reason` says why."""

    value: float | None
    ci95: Interval | None = None  # over rounds that both jobs have; None with fewer than two
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """An outcome with everything derived from it: what every table, file and plot shows."""

    outcome: Outcome
    figures: Figures | None  # None unless it is a Result
    speedup: Speedup  # over the fp32 job of its cell
    speedup_total: Speedup  # over the reference: fp32, NCHW, eager
    verdicts: tuple[Verdict, ...]

    @property
    def job(self) -> Job:
        """The outcome's job."""
        return self.outcome.job

    @property
    def verdict(self) -> str | None:
        """The name of the gravest verdict, None without a result."""
        return self.verdicts[0].name if self.verdicts else None


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row an outcome, in the same order."""
    by_job = {one.job: one for one in outcomes}
    return [_row(one, by_job) for one in outcomes]


def _row(outcome: Outcome, by_job: Mapping[Job, Outcome]) -> Row:
    derived = figures(outcome.job, outcome.rounds) if isinstance(outcome, Result) else None
    return Row(
        outcome=outcome,
        figures=derived,
        speedup=_over(outcome, by_job.get(outcome.job.cell), "baseline"),
        speedup_total=_over(outcome, by_job.get(outcome.job.reference), "reference"),
        verdicts=verdicts(outcome, derived) if isinstance(outcome, Result) and derived else (),
    )


def _over(outcome: Outcome, base: Outcome | None, what: str) -> Speedup:
    if not isinstance(outcome, Result):
        return Speedup(None, reason="not measured")
    if base is None:
        return Speedup(None, reason=f"no {what}")
    if isinstance(base, (Failure, Skipped)):
        return Speedup(None, reason=f"no {what}: {base.job.precision} {base.status}: {base.reason}")
    if outcome.job == base.job:
        return Speedup(1.0, Interval(1.0, 1.0))
    ratios = round_ratios(outcome, base)
    if not ratios:
        return Speedup(None, reason=f"no round in common with its {what}")
    return Speedup(geometric_mean(ratios), log_interval(ratios))


def round_ratios(outcome: Result, base: Result) -> list[float]:
    """Throughput over the base's, round by round, where both have the round."""
    rates = {r.number: round_throughput(base.job.batch, r) for r in base.rounds}
    return [round_throughput(outcome.job.batch, r) / rates[r.number] for r in outcome.rounds if r.number in rates]
