"""Cells, baselines and speed-ups with their intervals. Pure: outcomes in, rows out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcsweep.evidence.figures import Seen, seen
from tcsweep.explain import SUSPECT, Verdict, verdicts
from tcsweep.job import Failure, Job, Outcome, Result, Skipped
from tcsweep.stats import Figures, Interval, figures, geometric_mean, log_interval, round_throughput

OK = "ok"  # the verdict where none holds


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
    seen: Seen | None = None  # None unless it is a Result

    @property
    def job(self) -> Job:
        """The outcome's job."""
        return self.outcome.job

    @property
    def verdict(self) -> str | None:
        """The name of the gravest verdict, "ok" where none holds, None without a result."""
        if not isinstance(self.outcome, Result):
            return None
        return self.verdicts[0].name if self.verdicts else OK


@dataclass(frozen=True)
class Judged:
    """An outcome with its own figures and verdicts, before it is compared."""

    outcome: Outcome
    figures: Figures | None
    verdicts: tuple[Verdict, ...]

    @property
    def suspicion(self) -> str | None:
        """Why it must not be compared, None where it may."""
        return next(("; ".join(v.reasons) for v in self.verdicts if v.name == SUSPECT), None)


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row an outcome, in the same order."""
    judged = [_judged(one) for one in outcomes]
    by_job = {one.outcome.job: one for one in judged}
    return [_row(one, by_job) for one in judged]


def _judged(outcome: Outcome) -> Judged:
    if not isinstance(outcome, Result):
        return Judged(outcome, None, ())
    derived = figures(outcome.job, outcome.rounds)
    return Judged(outcome, derived, verdicts(outcome, derived))


def _row(one: Judged, by_job: Mapping[Job, Judged]) -> Row:
    return Row(
        outcome=one.outcome,
        figures=one.figures,
        speedup=_over(one, by_job.get(one.outcome.job.cell), "baseline"),
        speedup_total=_over(one, by_job.get(one.outcome.job.reference), "reference"),
        verdicts=one.verdicts,
        seen=seen(one.outcome, one.figures) if isinstance(one.outcome, Result) and one.figures else None,
    )


def _over(one: Judged, other: Judged | None, what: str) -> Speedup:
    outcome, base = one.outcome, other.outcome if other else None
    if not isinstance(outcome, Result):
        return Speedup(None, reason="not measured")
    if one.suspicion:
        return Speedup(None, reason=f"suspect: {one.suspicion}")
    if other is not None and other.suspicion:
        return Speedup(None, reason=f"no {what}: {other.outcome.job.precision} suspect: {other.suspicion}")
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
