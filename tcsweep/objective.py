"""What a job gives back to Hydra: one figure, for a sweeper that searches instead of going through a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tcsweep.mistakes import unknown
from tcsweep.speedup import Row

Direction = Literal["maximize", "minimize"]  # Optuna's words


@dataclass(frozen=True)
class Objective:
    """A figure of a row, and which way is better."""

    name: str
    direction: Direction
    of: Callable[[Row], float | None]

    @property
    def worst(self) -> float:
        """What a job without the figure gives back; nan would stop a study. A rate is never under 0."""
        return 0.0 if self.direction == "maximize" else math.inf


def _figure(name: str) -> Callable[[Row], float | None]:
    return lambda row: getattr(row.figures, name) if row.figures else None


ENERGY = "energy_j_per_img"
_SMALLER = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p95", "latency_ms_p99", "wall_ms", "device_ms")
OBJECTIVES: dict[str, Objective] = {
    o.name: o
    for o in (
        Objective("throughput_img_s", "maximize", _figure("throughput_img_s")),
        Objective("speedup", "maximize", lambda row: row.speedup.value),
        Objective("speedup_total", "maximize", lambda row: row.speedup_total.value),
        *(Objective(n, "minimize", _figure(n)) for n in (*_SMALLER, "peak_memory_mib", "setup_s", ENERGY)),
    )
}
COMPARING = ("speedup", "speedup_total")  # they need the baseline and the reference measured


def named(name: str) -> Objective:
    """An objective by its name; raises Mistake for a figure that is not measured."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]


def value(rows: Sequence[Row], objective: Objective, latency_ms_p50_max: float | None = None) -> float:
    """The mean of a job's repeats; the worst value where one has no figure, or a median latency over the bound or not
    measured."""
    if latency_ms_p50_max is not None:
        latencies = [row.figures.latency_ms_p50 if row.figures else None for row in rows]
        if any(latency is None or latency > latency_ms_p50_max for latency in latencies):
            return objective.worst
    figures = [objective.of(row) for row in rows]
    measured = [f for f in figures if f is not None]
    return sum(measured) / len(measured) if measured and len(measured) == len(figures) else objective.worst
