"""Cells, baselines and speed-ups with their intervals. Pure: outcomes in, rows out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcsweep.evidence.figures import Seen, seen
from tcsweep.explain import SUSPECT, WIDE, Verdict, verdicts
from tcsweep.job import Failure, Job, Outcome, Result, Skipped
from tcsweep.stats import (
    Figures,
    Interval,
    figures,
    geometric_mean,
    log_interval,
    log_ratio_interval,
    round_throughput,
)

OK = "ok"  # the verdict where none holds
REPEATS_APART = 0.02  # less between repeats is the noise that any machine has


@dataclass(frozen=True)
class Speedup:
    """How many times the throughput of another job; 1 is equal. Without a value, `reason` says why."""

    value: float | None
    ci95: Interval | None = None  # over rounds that both jobs have, or of two sweeps; None with fewer than two
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
    judged = _repeats_compared([_judged(one) for one in outcomes])
    by_job = {one.outcome.job: one for one in judged}
    return [_row(one, by_job) for one in judged]


def _judged(outcome: Outcome) -> Judged:
    if not isinstance(outcome, Result):
        return Judged(outcome, None, ())
    derived = figures(outcome.job, outcome.rounds)
    return Judged(outcome, derived, verdicts(outcome, derived))


def _repeats_compared(judged: Sequence[Judged]) -> list[Judged]:
    """The same, with a verdict where one point, asked for more than once, gave unlike figures."""
    points: dict[Job, list[Judged]] = {}
    for one in judged:
        points.setdefault(dataclasses.replace(one.outcome.job, repeat=0), []).append(one)
    apart = {point: said for point, repeats in points.items() if (said := _order_effect(repeats))}
    return [
        dataclasses.replace(one, verdicts=_with_reason(one.verdicts, said)) if one.figures and said else one
        for one in judged
        for said in (apart.get(dataclasses.replace(one.outcome.job, repeat=0)),)
    ]


def _with_reason(verdicts: Sequence[Verdict], reason: str) -> tuple[Verdict, ...]:
    """The verdicts with one more reason to be wide."""
    known = next((v for v in verdicts if v.name == WIDE), Verdict(WIDE, ()))
    more = dataclasses.replace(known, reasons=(*known.reasons, reason))
    return (*(v for v in verdicts if v.name != WIDE), more)


def _order_effect(repeats: Sequence[Judged]) -> str | None:
    found = [one.figures for one in repeats if one.figures is not None]
    intervals = [f.throughput_ci95 or f.throughput_ci95_within for f in found]
    rates = [f.throughput_img_s for f in found]
    if len(rates) < 2 or max(rates) < (1 + REPEATS_APART) * min(rates):
        return None
    pairs = itertools.combinations([i for i in intervals if i is not None], 2)
    if all(a.overlaps(b) for a, b in pairs):
        return None
    return f"order effect: the same point gave {min(rates):.4g} to {max(rates):.4g} img/s"


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
    if "stored" in (outcome.role, base.role):  # of two sweeps: their rounds are no pairs
        return _unpaired(outcome, base)
    ratios = round_ratios(outcome, base)
    if not ratios:
        return Speedup(None, reason=f"no round in common with its {what}")
    return Speedup(geometric_mean(ratios), log_interval(ratios))


def _unpaired(outcome: Result, base: Result) -> Speedup:
    rates, others = ([round_throughput(one.job.batch, r) for r in one.rounds] for one in (outcome, base))
    return Speedup(geometric_mean(rates) / geometric_mean(others), log_ratio_interval(rates, others))


def round_ratios(outcome: Result, base: Result) -> list[float]:
    """Throughput over the base's, round by round, where both have the round."""
    rates = {r.number: round_throughput(base.job.batch, r) for r in base.rounds}
    return [round_throughput(outcome.job.batch, r) / rates[r.number] for r in outcome.rounds if r.number in rates]
