"""What all jobs of one model share, made in a worker of its own: float32 outputs, counted work, this device's rates."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tcsweep.evidence.facts import Work
from tcsweep.job import Job
from tcsweep.measure import Reference
from tcsweep.mistakes import first_line

if TYPE_CHECKING:
    from tcsweep.devices.rates import RatesKey
    from tcsweep.worker import Tell

INPUTS_GPU, INPUTS_CPU = 64, 16  # images compared


@dataclass(frozen=True)
class ReferenceRequest:
    """Which model, on which device, and where the file goes."""

    job: Job
    path: str
    rates_key: RatesKey
    rates_folder: str
    keeps: dict[str, float] = field(default_factory=dict)  # rates of this sweep's device, once measured


def model_of(job: Job) -> tuple[object, ...]:
    """Equal for jobs whose float32 outputs are the same."""
    return job.model, job.weights, job.image_size, job.seed, job.device


def make(request: ReferenceRequest, tell: Tell) -> Reference:
    """Make the reference, count the work, and measure the rates where that was not done. What fails is said."""
    import torch

    from tcsweep.evidence.numerics import make_reference, save_reference
    from tcsweep.precision import set_tf32

    job = request.job
    tell.stage("reference")
    tell.turn()
    set_tf32(False)
    device = torch.device(job.device)
    work = _counted(job)
    missing: str | None = None
    try:
        number = INPUTS_GPU if device.type == "cuda" else INPUTS_CPU
        save_reference(make_reference(job, number, device), Path(request.path))
    except Exception as error:
        missing = first_line(str(error)) or type(error).__name__
    rates = request.keeps or _rates(request)
    path = request.path if missing is None and os.path.exists(request.path) else None
    return Reference(path, work, rates, missing)


def _counted(job: Job) -> Work:
    from tcsweep.evidence.work import count

    return count(job.model, job.image_size)


def _rates(request: ReferenceRequest) -> dict[str, float]:
    from tcsweep.devices.rates import cached_rates, measure_rates

    try:
        folder = Path(request.rates_folder)
        rates = cached_rates(request.rates_key, folder, lambda: measure_rates(request.job.device))
    except Exception:  # a yardstick only: without it there is no roof
        return {}
    return {**{name: tflops * 1e12 for name, tflops in rates.gemm_tflops.items()}, "copy": rates.copy_gb_s * 1e9}
