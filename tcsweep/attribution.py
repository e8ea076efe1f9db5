"""Where the time of a job went against its baseline: by kind of work and by layer, before and after, adding up to the
whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcsweep.evidence.facts import Evidence, Kind
from tcsweep.explain import SUSPECT
from tcsweep.job import Result
from tcsweep.speedup import Row

WAITING = "waiting for the host"
BETWEEN = "between the layers"  # what a container's forward does itself: residual sums, concatenations
OTHERS = "the other {} layers"
# What a module of this class does, where no kernel's name tells: on a CPU.
MODULES: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"^(Conv(Transpose)?\dd|Linear|NonDynamicallyQuantizableLinear)$"), "convolution/GEMM"),
    (re.compile(r"Attention"), "attention"),
    (re.compile(r"BatchNorm"), "batch norm"),
    (re.compile(r"Pool\d?d?$"), "pooling"),
    (re.compile(r"(ReLU|GELU|SiLU|Sigmoid|swish|Tanh|Dropout|Identity|StochasticDepth|\wELU)\d?$"), "elementwise"),
)


@dataclass(frozen=True)
class Part:
    """A share of an iteration in the baseline and in the job, in milliseconds."""

    name: str  # a kind of work, or a layer's path
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


Split = Callable[[Evidence], dict[str, float]]  # milliseconds of an iteration by name; empty where not seen


def attribution(row: Row, rows: Sequence[Row]) -> tuple[Part, ...]:
    """The parts of a job's iteration by kind, the one that saved most first; their sums are both whole iterations.
    Empty where the sweep has no baseline of it that can be believed, or what ran was not seen in both."""
    return _compared(row, rows, kinds)


def by_layer(row: Row, rows: Sequence[Row]) -> tuple[Part, ...]:
    """The same by layer, of eager jobs."""
    return _compared(row, rows, _layers)


def longest(parts: Sequence[Part], most: int) -> tuple[Part, ...]:
    """The parts that saved or cost most, and all others as one: the sum stays."""
    if len(parts) <= most + 1:
        return tuple(parts)
    ranked = sorted(parts, key=lambda part: -abs(part.saved_ms))
    rest = ranked[most:]
    other = Part(OTHERS.format(len(rest)), sum(p.before_ms for p in rest), sum(p.after_ms for p in rest))
    return (*sorted(ranked[:most], key=lambda part: -part.saved_ms), other)


def _compared(row: Row, rows: Sequence[Row], split: Split) -> tuple[Part, ...]:
    baseline = next((r for r in rows if r.job.is_baseline and r.job.cell == row.job.cell), None)
    if baseline is None or baseline is row:
        return ()
    before, after = (_whole(one, split) for one in (baseline, row))
    if not before or not after:
        return ()
    names = dict.fromkeys([*before, *after])
    parts = [Part(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names]
    return tuple(sorted(parts, key=lambda part: -part.saved_ms))


def _whole(row: Row, split: Split) -> dict[str, float]:
    """Milliseconds of one iteration by name. What overlaps shares the time in which any of it ran, and what is left of
    the iteration the GPU waited."""
    evidence = row.outcome.evidence if isinstance(row.outcome, Result) else None
    if evidence is None or row.figures is None or row.verdict == SUSPECT:
        return {}
    found = split(evidence)
    total = sum(found.values())
    if total <= 0:
        return {}
    iteration_ms = row.job.batch / row.figures.throughput_img_s * 1e3
    if not evidence.kernels.kernels:  # a CPU does all of it itself
        return {name: ms * iteration_ms / total for name, ms in found.items()}
    running_ms = min(evidence.kernels.union_ms or evidence.kernels.device_ms, iteration_ms)
    return {**{name: ms * running_ms / total for name, ms in found.items()}, WAITING: iteration_ms - running_ms}


def kinds(evidence: Evidence) -> dict[str, float]:
    """Milliseconds by kind of kernel; where none were seen, by what the modules' classes do."""
    if evidence.kernels.kernels:
        return evidence.kernels.ms_by_kind
    found: dict[str, float] = {}
    for layer in evidence.layers.layers if evidence.layers else ():
        kind = kind_of_module(layer.module)
        found[kind] = found.get(kind, 0.0) + layer.ms
    return found


def kind_of_module(module: str) -> str:
    """What a module of this class does; containers: between the layers."""
    return next((kind for pattern, kind in MODULES if pattern.search(module)), _other(module))


def _other(module: str) -> str:
    return "other" if "Norm" in module and "Activation" not in module else BETWEEN


def _layers(evidence: Evidence) -> dict[str, float]:
    return {layer.name or BETWEEN: layer.ms for layer in (evidence.layers.layers if evidence.layers else ())}
