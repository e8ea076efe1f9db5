"""Sweeps made by hand and written to disk as tcsweep would have: for tests of everything downstream of result.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tcsweep.job import Environment, Failure, Job, Measure, Outcome, Result, Role, Round, Skipped, Sweep
from tcsweep.store import save_outcome, save_sweep

STARTED = 1_764_000_000.0  # 2025-11-24, seconds since the epoch
JOB_S = 20.0  # from one job's start to the next one's

ENVIRONMENT = Environment(
    device="cuda:0",
    device_name="NVIDIA H100 80GB HBM3",
    gpu_uuid="GPU-3f5e",
    compute_capability="9.0",
    sm_count=132,
    device_memory_mib=81559,
    driver="570.86.15",
    cuda="12.8",
    cudnn="9.7.1",
    torch="2.9.1",
    torchvision="0.24.1",
    apex="amp",
    apex_version="0.1",
    apex_build="full",
    python="3.11.7",
    host="gpu-box",
    os="Linux 6.8",
    cpu_model="AMD EPYC 9654",
    cpu_threads=32,
    tcsweep="0.1.0",
    git_commit="0869a29d1c5b",
)


def a_round(number: int = 1, img_s: float = 1000.0, batch: int = 1, latencies: int = 70, started_at: float = STARTED):
    """One round of eight blocks of ten iterations, within 0.2% of `img_s`; latencies rise a little, block by block."""
    iteration_ms = batch / img_s * 1e3
    blocks = tuple(iteration_ms * 10 * (1 + 0.001 * (-1) ** n) for n in range(8))
    return Round(
        number=number,
        started_at=started_at,
        worker_s=2.5,
        stage_s={"start": 0.1, "context": 0.25, "build": 0.3, "input": 0.05, "first_call": 0.8, "throughput": 0.6},
        warmup_iterations=50,
        block_iterations=10,
        block_wall_ms=blocks,
        block_device_ms=tuple(b * 0.98 for b in blocks),
        latency_ms=tuple(iteration_ms * (1.1 + 0.001 * n) for n in range(latencies)),
        peak_memory_mib=512.0 + number,
        amp_backend=None,
    )


def a_result(
    job: Job,
    img_s: float = 1000.0,
    *,
    rounds: int = 3,
    role: Role = "asked",
    index: int = 0,
    environment: Environment = ENVIRONMENT,
) -> Result:
    """A measured job; its rounds lie 0.1% apart."""
    at = STARTED + JOB_S * index
    made = tuple(
        dataclasses.replace(
            a_round(n, img_s * (1 + 0.001 * (n - 2)), job.batch, started_at=at + n),
            amp_backend=None if job.amp_backend is None else "apex",
            amp_version=None if job.amp_backend is None else "0.1",
            half_dtype=None if job.precision == "fp32" else "float16",
        )
        for n in range(1, rounds + 1)
    )
    return Result(job, role, index, environment, made, started_at=at, ended_at=at + 12.5)


def a_failure(job: Job, index: int = 0, reason: str = "out of GPU memory: 90.0 GiB asked for") -> Failure:
    """A job that ran out of memory."""
    at = STARTED + JOB_S * index
    return Failure(job, "asked", index, ENVIRONMENT, "build", "gpu-memory", reason, started_at=at, ended_at=at + 3)


def a_skip(job: Job, index: int = 0, reason: str = "fp8 needs sm_89 or later") -> Skipped:
    """A job that the machine cannot do."""
    at = STARTED + JOB_S * index
    return Skipped(job, "asked", index, ENVIRONMENT, reason, started_at=at, ended_at=at)


def a_job(precision: str = "fp32", batch: int = 8, **fields: object) -> Job:
    """A job on the GPU, resolved as the sweep does it."""
    amp = "auto" if precision in ("o0", "o1", "o2", "o3") else None
    plain = Job(precision=precision, batch=batch, amp_backend=amp, device="cuda:0", measure=Measure(rounds=3))
    return dataclasses.replace(plain, **fields)  # type: ignore[arg-type]


def outcomes() -> list[Outcome]:
    """Five outcomes: a result in NHWC, one with its engine, a failure, a skip, and the baseline that tcsweep added."""
    return [
        a_result(a_job("o1", layout="nhwc"), 2860.0, index=0),
        a_result(a_job("fp16", layout="nhwc", engine="cudagraph"), 4000.0, index=1),
        a_failure(a_job("o3", batch=4096), index=2),
        a_skip(a_job("fp8"), index=3),
        a_result(a_job("fp32", layout="nhwc"), 1000.0, index=4, role="baseline"),
    ]


def write_sweep(
    folder: Path,
    made: Sequence[Outcome] | None = None,
    *,
    name: str = "2025-11-24/16-00-00",
    status: str = "finished",
    planned: Sequence[Job] = (),
) -> Path:
    """Write sweep.json and every result.json into a new folder below `folder`; returns the sweep's folder.
    `planned` jobs are in the plan but have no result yet."""
    made = outcomes() if made is None else made
    sweep_dir = folder / name
    jobs = [o.job for o in made] + list(planned)
    for outcome in made:
        save_outcome(sweep_dir, outcome)
    ended = None if status == "running" else max(o.ended_at for o in made) + 1
    sweep = Sweep(
        id=name.replace("/", "_"),
        started_at=STARTED - 2,
        command="tcsweep -m precision=o1,fp16 layout=nhwc",
        order_seed=7,
        environment=ENVIRONMENT,
        folders=tuple(j.folder for j in jobs),
        ended_at=ended,
        status=status,  # type: ignore[arg-type]
        wall_s=None if ended is None else ended - STARTED + 2,
    )
    save_sweep(sweep_dir, sweep)
    return sweep_dir
