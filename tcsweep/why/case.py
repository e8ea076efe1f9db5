"""What a job is explained from, and what an explanation is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tcsweep.attribution import kinds
from tcsweep.evidence.facts import Evidence, Kernel, Kernels, Layers, LayerWork
from tcsweep.evidence.figures import roof_rates
from tcsweep.evidence.physics import layer_s
from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Job, Result
from tcsweep.precision import PRECISIONS
from tcsweep.speedup import Row
from tcsweep.stats import Interval

MOVING = ("batch norm", "elementwise", "pooling", "copy", "layout conversion")
LEAST_GAIN = 1.05  # times as fast, under which it is not worth a word


@dataclass(frozen=True)
class Cause:
    """One reason why a job takes as long as it does."""

    name: str  # "launch-bound"
    text: str  # with its figures
    gain: Interval | None = None  # times as fast without it, at least and at most; None: not to be told
    advice: str | None = None  # overrides that would run here
    brief: str = ""  # the figures alone, for a terminal's line
    remark: str = ""  # after the gain, where no override mends it

    @property
    def gain_text(self) -> str:
        """ "up to 1.9x", or "1.2x to 1.6x"; empty where it is not told."""
        if self.gain is None or self.gain.high < LEAST_GAIN:
            return ""
        low, high = f"{self.gain.low:.2g}", f"{self.gain.high:.2g}"
        return f"{low}x to {high}x" if self.gain.low > 1 and low != high else f"up to {high}x"


@dataclass(frozen=True)
class TimedLayer:
    """A convolution or linear layer with what it took of an iteration."""

    work: LayerWork
    ms: float  # all its kernels
    kernels: tuple[Kernel, ...]  # their times as profiled by layer; on a CPU none
    roof_ms: float | None  # by the device's measured rates: the longer of its traffic and its arithmetic
    traffic_ms: float | None  # of the copy rate

    @property
    def depthwise_or_grouped(self) -> bool:
        """Whether its channels are multiplied in groups."""
        return self.work.groups > 1


class Neighbours:
    """A sweep's measured jobs, found by what they have in common. Made once for all of a sweep's rows: each finds its
    own without going through all."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._cells: dict[Job, list[Row]] = {}
        self._batches: dict[Job, list[Row]] = {}
        self._engines: dict[Job, list[Row]] = {}
        for row in rows:
            if row.figures is not None:
                self._cells.setdefault(row.job.cell, []).append(row)
                self._batches.setdefault(_any_batch(row.job), []).append(row)
                self._engines.setdefault(_any_engine(row.job), []).append(row)

    def of_cell(self, job: Job) -> Sequence[Row]:
        """Those that differ in precision and repeat only."""
        return self._cells.get(job.cell, ())

    def of_other_batches(self, job: Job) -> Sequence[Row]:
        """Those that differ in their batch only."""
        return self._batches.get(_any_batch(job), ())

    def of_other_engines(self, job: Job) -> Sequence[Row]:
        """Those that differ in their engine, and in what runs an O level, only."""
        return self._engines.get(_any_engine(job), ())


def _any_batch(job: Job) -> Job:
    return dataclasses.replace(job, batch=1)


def _any_engine(job: Job) -> Job:
    # apex's casts cannot be captured, the twin's can: one job under two engines may have two backends.
    return dataclasses.replace(job, engine="eager", amp_backend=None)


@dataclass(frozen=True)
class Case:
    """A measured job with what it is explained from."""

    row: Row
    result: Result
    evidence: Evidence
    others: Neighbours

    @functools.cached_property
    def baseline(self) -> Result | None:
        """The fp32 job of its cell."""
        found = (r.outcome for r in self.others.of_cell(self.job) if r.job.is_baseline)
        return next((one for one in found if isinstance(one, Result)), None)

    @property
    def job(self) -> Job:
        """The job."""
        return self.row.job

    @property
    def kernels(self) -> Kernels:
        """Of one profiled iteration."""
        return self.evidence.kernels

    @property
    def environment(self) -> Environment:
        """Where it ran."""
        return self.result.environment

    @property
    def on_gpu(self) -> bool:
        """Whether it ran on a GPU."""
        return self.environment.device.startswith("cuda")

    @property
    def half(self) -> bool:
        """Whether its label promises half precision."""
        return PRECISIONS[self.job.precision].promise.half

    @property
    def iteration_ms(self) -> float:
        """Wall time of one iteration."""
        assert self.row.figures is not None
        return self.job.batch / self.row.figures.throughput_img_s * 1e3

    @property
    def running_ms(self) -> float:
        """Time with a kernel running; on a CPU all of it."""
        if not self.kernels.kernels:
            return self.iteration_ms
        return self.kernels.union_ms or self.kernels.device_ms

    @property
    def busy(self) -> float:
        """Share of an iteration with a kernel running."""
        return min(self.running_ms / self.iteration_ms, 1.0)

    @functools.cached_property
    def ms_by_kind(self) -> dict[str, float]:
        """Of the running time; on a CPU told by the modules' classes."""
        if self.kernels.kernels:
            return self.kernels.ms_by_kind
        found = kinds(self.evidence)
        total = sum(found.values())
        return {kind: ms * self.running_ms / total for kind, ms in found.items()}

    def ms(self, *kinds: str) -> float:
        """Time of some kinds of work."""
        return sum(self.ms_by_kind.get(kind, 0.0) for kind in kinds)

    def share(self, *kinds: str) -> float:
        """Their share of the running time."""
        return self.ms(*kinds) / self.running_ms

    @functools.cached_property
    def layers(self) -> Layers:
        """Its own, or eager's of the same job, whose kernels an engine that replays them has."""
        own = self.evidence.layers or Layers("", missing="the result is of an older version")
        if own.layers:
            return own
        for row in self.others.of_other_engines(self.job):
            evidence = row.outcome.evidence if isinstance(row.outcome, Result) else None
            if row.verdict != SUSPECT and evidence and evidence.layers and evidence.layers.layers:
                return evidence.layers
        return own

    @functools.cached_property
    def timed(self) -> tuple[TimedLayer, ...]:
        """Convolutions and linear layers that were seen by themselves, scaled to the running time."""
        layers, works = self.layers, [w for w in self.evidence.work.layers if w.kind in ("convolution", "linear")]
        if not layers.ms:
            return ()
        scale = self.running_ms / layers.ms
        by_name = {layer.name: layer for layer in layers.layers}
        names = [work.name for work in self.evidence.work.layers]
        alone = [w for w in works if w.name in by_name and names.count(w.name) == 1]
        return tuple(
            TimedLayer(w, by_name[w.name].ms * scale, by_name[w.name].kernels, *self._roof_ms(w)) for w in alone
        )

    def _roof_ms(self, layer: LayerWork) -> tuple[float | None, float | None]:
        rates = roof_rates(self.result)
        if rates is None:
            return None, None
        size, flops_s, bytes_s = rates
        images = self.job.batch * 1e3
        whole = layer_s(layer, self.job.batch, size, flops_s, bytes_s) * images
        return whole, layer_s(dataclasses.replace(layer, flops=0.0), self.job.batch, size, flops_s, bytes_s) * images

    def fastest_of_cell(self) -> tuple[Row | None, float]:
        """The fastest other job that differs in its precision only, and how many times this one's throughput it has."""
        able = [r for r in self.others.of_cell(self.job) if r is not self.row and r.verdict != SUSPECT]
        return self.fastest(able)

    def fastest(self, rows: Sequence[Row]) -> tuple[Row | None, float]:
        """The fastest of some jobs, and how many times this one's throughput it has; without any, 1."""
        best = max(rows, key=lambda r: r.figures.throughput_img_s if r.figures else 0.0, default=None)
        if best is None or best.figures is None or self.row.figures is None:
            return None, 1.0
        return best, best.figures.throughput_img_s / self.row.figures.throughput_img_s

    def without(self, ms: float) -> Interval | None:
        """At the most, so many milliseconds of running time less."""
        left = self.running_ms - ms
        return Interval(1.0, self.running_ms / left) if ms > 0 and left > 0 else None


Rule = Callable[[Case], "Cause | None"]
