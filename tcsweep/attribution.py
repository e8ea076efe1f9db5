"""Where the time of a job went against its baseline: by kind of kernel, before and after, adding up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcsweep.explain import SUSPECT
from tcsweep.job import Result
from tcsweep.speedup import Row

WAITING = "waiting for the host"


@dataclass(frozen=True)
class Part:
    """A share of an iteration in the baseline and in the job, in milliseconds."""

    kind: str
    before_ms: float
    after_ms: float

    @property
    def speedup(self) -> float | None:
        """How many times as fast; None where nothing of it is left."""
        return self.before_ms / self.after_ms if self.after_ms > 0 else None

    @property
    def saved_ms(self) -> float:
        """What it contributes to the whole's gain; negative where it got slower."""
        return self.before_ms - self.after_ms


def attribution(row: Row, rows: Sequence[Row]) -> tuple[Part, ...]:
    """The parts of a job's iteration, the one that saved most first; their sums are both jobs' whole iterations. Empty
    where the sweep has no baseline of it that can be believed, or kernels were not seen in both."""
    baseline = next((r for r in rows if r.job.is_baseline and r.job.cell == row.job.cell), None)
    if baseline is None or baseline is row:
        return ()
    before, after = (_parts(one) for one in (baseline, row))
    if not before or not after:
        return ()
    kinds = dict.fromkeys([*before, *after])
    parts = [Part(kind, before.get(kind, 0.0), after.get(kind, 0.0)) for kind in kinds]
    return tuple(sorted(parts, key=lambda part: -part.saved_ms))


def _parts(row: Row) -> dict[str, float]:
    """Milliseconds of one iteration by kind. Kernels that overlap share the time in which any of them ran, and what is
    left of the iteration the GPU waited."""
    evidence = row.outcome.evidence if isinstance(row.outcome, Result) else None
    if evidence is None or not evidence.kernels.kernels or row.figures is None or row.verdict == SUSPECT:
        return {}
    kernels = evidence.kernels
    iteration_ms = row.job.batch / row.figures.throughput_img_s * 1e3
    running_ms = min(kernels.union_ms or kernels.device_ms, iteration_ms)
    found = {kind: ms * running_ms / kernels.device_ms for kind, ms in kernels.ms_by_kind.items()}
    return {**found, WAITING: iteration_ms - running_ms}
