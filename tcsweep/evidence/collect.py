"""A job's evidence, collected in its worker after the timing, on the very callable that was timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tcsweep.engines import ENGINES
from tcsweep.engines import Observed as Observing
from tcsweep.evidence.clock import sm_clock
from tcsweep.evidence.facts import Dtypes, Evidence, Kernels, Layers, Numerics, Work
from tcsweep.evidence.kernels import BUSY_ITERATIONS, BUSY_MS, profiled
from tcsweep.evidence.layers import ON_GPU, layers
from tcsweep.evidence.numerics import Reference as Outputs
from tcsweep.evidence.numerics import compare, run_through, structured_inputs
from tcsweep.job import Job
from tcsweep.measure import Reference
from tcsweep.mistakes import first_line

NUMERICS_S = 3.0  # a slow job compares fewer inputs, one batch at least


def collect(
    job: Job,
    iteration: Callable[[], Any],
    x: torch.Tensor,
    iteration_ms: float,
    shared: Reference | None,
    outputs: Outputs | None,
) -> Evidence:
    """Profile, then compare outputs with the reference's and see the dtypes on the way. What fails is said."""
    seconds: dict[str, float] = {}
    observing = ENGINES[job.engine].observed(iteration)
    with _timed(seconds, "kernels"):
        kernels = _kernels(iteration, iteration_ms, x.is_cuda)
    with _timed(seconds, "layers"):
        by_layer = _layers(job, iteration, iteration_ms, x.is_cuda, kernels)
    with _timed(seconds, "clock"):
        sm_mhz = _sm_mhz(iteration, iteration_ms) if x.is_cuda else None
    with _timed(seconds, "numerics and dtypes"):
        numerics = _numerics(observing, x, iteration_ms, shared, outputs)
        dtypes = _dtypes(observing)
    return Evidence(
        dtypes=dtypes,
        kernels=kernels,
        numerics=numerics,
        work=shared.work if shared else Work(missing="not counted"),
        rates=shared.rates if shared else {},
        seconds=seconds,
        sm_mhz_in_band=sm_mhz,
        layers=by_layer,
    )


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[what] = round(time.monotonic() - start, 4)


def _said(error: Exception) -> str:
    return first_line(str(error)) or type(error).__name__


def _kernels(iteration: Callable[[], Any], iteration_ms: float, on_gpu: bool) -> Kernels:
    if not on_gpu:
        return Kernels(missing="a CPU runs no GPU kernels")
    return profiled(iteration, iteration_ms)


def _layers(job: Job, iteration: Callable[[], Any], iteration_ms: float, on_gpu: bool, kernels: Kernels) -> Layers:
    if not ENGINES[job.engine].layerwise:
        return Layers("", missing=f"engine={job.engine} launches all layers at once: engine=eager tells them apart")
    if on_gpu and kernels.missing:
        return Layers(ON_GPU, missing=kernels.missing)
    return layers(iteration, iteration_ms, on_gpu)


def _sm_mhz(iteration: Callable[[], Any], iteration_ms: float) -> float | None:
    """The SM clock under the job's own load: the GPU counts right behind iterations that are still queued."""
    measure = sm_clock()
    if measure is None:
        return None
    for _ in range(max(1, min(BUSY_ITERATIONS, int(BUSY_MS / max(iteration_ms, 1e-3))))):
        iteration()
    return measure()


def _numerics(
    observing: Observing, x: torch.Tensor, iteration_ms: float, shared: Reference | None, outputs: Outputs | None
) -> Numerics:
    if outputs is None:
        return Numerics(missing=(shared and shared.missing) or "no float32 outputs to compare with")
    calls = max(1, int(NUMERICS_S / (iteration_ms / 1e3)))
    number = min(len(outputs.outputs), calls * len(x))
    try:
        inputs = structured_inputs(number, x.shape[-1], outputs.seed, x.device)
        wanted = dataclasses.replace(outputs, outputs=outputs.outputs[:number])
        return compare(run_through(observing, x, inputs), wanted)
    except Exception as error:
        return Numerics(missing=_said(error))


def _dtypes(observing: Observing) -> Dtypes:
    try:
        if observing.dtypes.missing is not None:
            observing()
    except Exception as error:
        return Dtypes(observing.dtypes.source, missing=_said(error))
    return observing.dtypes
