"""Facts to verdicts: pure rules, one function a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcsweep.job import Result
from tcsweep.stats import Figures


@dataclass(frozen=True)
class Verdict:
    """One finding: its name, the reasons with their figures, and what to try next."""

    name: str  # "wide" | "unverified"
    reasons: tuple[str, ...]
    advice: str | None = None


def wide(result: Result, derived: Figures) -> Verdict | None:
    """A figure that is usable but wide: few rounds, an unsteady round, or a broad interval."""
    settings, reasons = result.job.measure, []
    if derived.rounds < settings.rounds:
        reasons.append(f"{derived.rounds} of {settings.rounds} rounds ({result.stopped or 'stopped'})")
    # Noise alone looks like a trend in one warm-up of twenty, so one round of several says nothing.
    if sum(not r.warmed_up for r in result.rounds) > len(result.rounds) / 2:
        reasons.append("times still changed when the warm-up ended")
    interval = derived.throughput_ci95 or derived.throughput_ci95_within
    limit = settings.rounds_ci if derived.throughput_ci95 else max(settings.within_ci, settings.rounds_ci)
    if interval is None:
        reasons.append("too few samples for an interval")
    elif interval.half_width > limit:
        reasons.append(f"interval of ±{interval.half_width:.1%}, over ±{limit:.1%}")
    return Verdict("wide", tuple(reasons), "repeat with measure=thorough on a quiet machine") if reasons else None


def unverified(result: Result, derived: Figures) -> Verdict | None:
    """Nothing was observed of what ran, so nothing can be said of it."""
    return Verdict("unverified", ("dtypes and kernels were not observed",))


RULES: tuple[Callable[[Result, Figures], Verdict | None], ...] = (wide, unverified)


def verdicts(result: Result, derived: Figures) -> tuple[Verdict, ...]:
    """Every verdict that holds, gravest first."""
    return tuple(v for rule in RULES if (v := rule(result, derived)) is not None)
