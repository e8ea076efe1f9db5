"""What workers do in tests/test_traps.py: spoil one thing in their own process, then measure as ever."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from tcsweep import task
from tcsweep.engines import ENGINES
from tcsweep.job import Job
from tcsweep.measure import RoundRequest
from tcsweep.models import build_model
from tcsweep.precision import set_tf32
from tcsweep.task import CudaDevice, measure_round

Iteration = Callable[[], Any]


def autocast_left_on(request: RoundRequest, tell: Any) -> Any:
    """An earlier call in the process went in, and never out."""
    torch.autocast(torch.device(request.job.device).type, torch.bfloat16).__enter__()
    return measure_round(request, tell)


def block_undone(request: RoundRequest, tell: Any) -> Any:
    """One block of a model that was cast to a half runs in float32 again, casts at its ends."""

    def build(prepared: Any, x: torch.Tensor) -> Iteration:
        block, half = prepared.forward.layer3.float(), x.dtype
        block.register_forward_pre_hook(lambda module, given: tuple(t.float() for t in given))
        block.register_forward_hook(lambda module, given, made: made.to(half))
        return lambda: prepared.forward(x)

    ENGINES["eager"] = dataclasses.replace(ENGINES["eager"], build=build)
    return measure_round(request, tell)


def slower_and_slower(request: RoundRequest, tell: Any) -> Any:
    """Each iteration takes a millisecond longer than the one before."""

    def build(prepared: Any, x: torch.Tensor) -> Iteration:
        calls = 0

        def iteration() -> Any:
            nonlocal calls
            calls += 1
            time.sleep(0.005 + 1e-3 * calls)
            return prepared.forward(x)

        return iteration

    ENGINES["eager"] = dataclasses.replace(ENGINES["eager"], build=build)
    return measure_round(request, tell)


def evidence_of_another(request: RoundRequest, tell: Any) -> Any:
    """What is looked at after the timing is another model than was timed."""
    collect = task.collect

    def of_another(job: Job, iteration: Iteration, x: torch.Tensor, *rest: Any) -> Any:
        name = "resnet34" if job.model == "resnet18" else "resnet18"
        other = build_model(Job(model=name, image_size=job.image_size), x.device)
        return collect(job, lambda: other(x), x, *rest)

    task.collect = of_another  # type: ignore[assignment]
    return measure_round(request, tell)


def tf32_left_on(request: RoundRequest, tell: Any) -> Any:
    """The switch is set after the worker has set it off."""
    task.set_tf32 = lambda on: set_tf32(True)
    return measure_round(request, tell)


def tf32_on_but_hidden(request: RoundRequest, tell: Any) -> Any:
    """The same, and put back whenever it is looked at."""
    arithmetic = task.arithmetic

    def looked_at() -> Any:
        set_tf32(False)
        found = arithmetic()
        set_tf32(True)
        return found

    task.arithmetic = looked_at
    return tf32_left_on(request, tell)


def nobody_waits(request: RoundRequest, tell: Any) -> Any:
    """The clock is stopped when the work is queued, not when it is done."""

    def block(self: CudaDevice, iterations: int) -> tuple[float, float | None]:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._start.record()
        for _ in range(iterations):
            self._iteration()
        self._end.record()
        wall = (time.perf_counter() - start) * 1e3
        torch.cuda.synchronize()
        return wall, self._start.elapsed_time(self._end)

    CudaDevice.block = block  # type: ignore[method-assign]
    return measure_round(request, tell)
