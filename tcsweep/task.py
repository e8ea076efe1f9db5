"""What a worker does: one round of one job. Runs in a process of its own that ends with it, so it sets global
state freely."""

from __future__ import annotations

import dataclasses
import gc
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tcsweep.devices.energy import measure as measure_energy
from tcsweep.devices.root import board_root
from tcsweep.engines import ENGINES
from tcsweep.evidence.arithmetic import arithmetic
from tcsweep.evidence.collect import collect
from tcsweep.evidence.facts import Energy
from tcsweep.evidence.host import watch as watch_host
from tcsweep.evidence.numerics import Reference, apply_calibration, load_reference
from tcsweep.failures import classify
from tcsweep.job import Job, Round
from tcsweep.measure import RoundRequest, Samples, Watch, run_round
from tcsweep.models import build_input, build_model, memory_format, weights_sha256
from tcsweep.precision import PRECISIONS, allow_patched_torch, mixed_dtypes_explained, set_tf32
from tcsweep.worker import Broken, Tell


class CpuDevice:
    """Times iterations on the CPU, which is synchronous."""

    def __init__(self, iteration: Callable[[], Any]) -> None:
        self._iteration = iteration

    def block(self, iterations: int) -> tuple[float, float | None]:
        """Wall milliseconds; there is no device time."""
        iteration = self._iteration
        start = time.perf_counter()
        for _ in range(iterations):
            iteration()
        return (time.perf_counter() - start) * 1e3, None

    def one(self) -> float:
        """Wall milliseconds of one iteration."""
        return self.block(1)[0]


class CudaDevice:
    """Times iterations on a GPU: the host's clock around a synchronised block, events at the same ends."""

    def __init__(self, iteration: Callable[[], Any]) -> None:
        self._iteration = iteration
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def block(self, iterations: int) -> tuple[float, float | None]:
        """Wall and device milliseconds. The whole device is waited for, side streams included."""
        iteration = self._iteration
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._start.record()
        for _ in range(iterations):
            iteration()
        self._end.record()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3
        return wall, self._start.elapsed_time(self._end)

    def one(self) -> float:
        """Wall milliseconds of one iteration."""
        iteration = self._iteration
        torch.cuda.synchronize()
        start = time.perf_counter()
        iteration()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3


class Stages:
    """Names each stage as it begins and keeps how long it took."""

    def __init__(self, tell: Tell, began: float) -> None:
        self._tell = tell
        self.seconds = {"start": time.monotonic() - began}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what follows a failure knows its name."""
        self._tell.stage(name)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


def measure_round(request: RoundRequest, tell: Tell) -> Round:
    """Measure one round of a job, in this process, which must be fresh."""
    started_at = time.time()
    job, precision = request.job, PRECISIONS[request.job.precision]
    device = torch.device(job.device)
    on_gpu = device.type == "cuda"
    stages = Stages(tell, request.asked_at)
    warnings.simplefilter("ignore", FutureWarning)
    with stages.stage("context"):
        set_tf32(precision.tf32)
        torch.backends.cudnn.benchmark = True
        if on_gpu:
            torch.cuda.set_device(device)
            torch.zeros(1, device=device)
            torch.cuda.synchronize()
    # Not in inference mode: its tensors could be neither cast in place nor cached as apex caches them.
    with stages.stage("build"), torch.no_grad():
        reference = _reference(request)
        model = build_model(job, device)
        if reference is not None:
            apply_calibration(model, reference.calibration)
        model = model.to(memory_format=memory_format(job.layout))
        prepared = precision.prepare(model, device, job.amp_backend)
    tell.turn()
    with torch.inference_mode():
        with stages.stage("input"):
            x = build_input(job, prepared.input_dtype, device)
            iteration = ENGINES[job.engine].build(prepared, x)
        gc.disable()  # no collection inside a timed region
        with stages.stage("first_call"), mixed_dtypes_explained(job.precision):
            iteration()
            if on_gpu:
                torch.cuda.synchronize()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()  # autotuning tries workspaces that no later call needs
        before, host = arithmetic(), watch_host(torch.get_num_threads())
        samples = run_round(
            CudaDevice(iteration) if on_gpu else CpuDevice(iteration),
            job.measure,
            Watch(time.monotonic, request.deadline, _teller(tell)),
            request.hint,
        )
        host_state, after = host(), arithmetic()
        energy = _energy(job, iteration, samples, stages) if job.measure.energy_s > 0 else None
    measured = Round(
        number=request.number,
        started_at=started_at,
        worker_s=time.monotonic() - request.asked_at,
        stage_s={**stages.seconds, **samples.stage_s},
        warmup_iterations=samples.warmup_iterations,
        block_iterations=samples.block_iterations,
        block_wall_ms=samples.block_wall_ms,
        block_device_ms=samples.block_device_ms,
        latency_ms=samples.latency_ms,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _host_memory_mib(),
        host_memory_mib=_host_memory_mib(),
        reserved_memory_mib=torch.cuda.memory_reserved() / 2**20 if on_gpu else None,
        warmed_up=samples.warmed_up,
        converged=samples.converged,
        amp_backend=prepared.amp_backend,
        amp_version=prepared.amp_version,
        half_dtype=prepared.half_dtype,
        notes=prepared.notes,
        timed_from=samples.timed_from,
        timed_until=samples.timed_until,
        arithmetic_before=before,
        arithmetic_after=after,
        host_state=host_state,
        energy=energy,
        weights_sha256=weights_sha256(job),
    )
    if not request.gathers:
        return measured
    with stages.stage("evidence"), torch.inference_mode():
        evidence = collect(job, iteration, x, _iteration_ms(measured), request.reference, reference)
    return dataclasses.replace(
        measured,
        evidence=evidence,
        worker_s=time.monotonic() - request.asked_at,
        stage_s={**measured.stage_s, "evidence": stages.seconds["evidence"]},
    )


def _energy(job: Job, iteration: Callable[[], Any], samples: Samples, stages: Stages) -> Energy:
    """A phase of its own: the device is asked in between, which the timed blocks must not be."""
    on_gpu = job.device.startswith("cuda")
    timer = CudaDevice(iteration) if on_gpu else CpuDevice(iteration)
    iteration_ms = statistics.fmean(samples.block_wall_ms) / samples.block_iterations
    with stages.stage("energy"):
        # torch 2.4 and later tell the UUID
        uuid = getattr(torch.cuda.get_device_properties(torch.device(job.device)), "uuid", None) if on_gpu else None
        return measure_energy(
            timer.block,
            iteration_ms,
            job.batch,
            job.measure.energy_s,
            on_gpu=on_gpu,
            uuid=None if uuid is None else str(uuid),
            root=board_root(),
        )


def _reference(request: RoundRequest) -> Reference | None:
    path = request.reference and request.reference.path
    return load_reference(Path(path)) if path else None


class _AtOnce(Tell):
    """For all jobs of a process but the first: its turn has come."""

    def turn(self) -> None:
        """Go on."""


def measure_together(requests: Sequence[RoundRequest], tell: Tell) -> None:
    """Measure one round of several jobs in this one process, in their order, and hand each over as it ends. What a job
    leaves behind in the process, the next one runs with."""
    allow_patched_torch()
    tell.turn()
    at_once = _AtOnce(tell.pipe)
    for index, request in enumerate(requests):
        asked_at = time.monotonic()
        share_s = request.deadline - request.asked_at
        request = dataclasses.replace(request, asked_at=asked_at, deadline=asked_at + share_s)
        try:
            tell.value(index, measure_round(request, at_once))
        except Exception as error:
            tell.value(index, Broken(at_once.last_stage, *classify(error)))
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _iteration_ms(measured: Round) -> float:
    return sum(measured.block_wall_ms) / len(measured.block_wall_ms) / measured.block_iterations


def _teller(tell: Tell) -> Callable[[str, float, float | None], None]:
    """Pass on the stage when it changes, an estimate of the throughput phase 4 times a second at most."""
    last_stage, last_at = "", 0.0

    def pass_on(stage: str, iteration_ms: float, half_width: float | None) -> None:
        nonlocal last_stage, last_at
        now = time.monotonic()
        if stage != last_stage:
            tell.stage(stage)
        elif now - last_at < 0.25:
            return
        last_stage, last_at = stage, now
        tell.estimate(iteration_ms, half_width)

    return pass_on


def _host_memory_mib() -> float:
    """The largest resident set that this process has had."""
    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
