"""The model and the input of a job, built in a worker."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import torch
import torchvision
from torch import nn

from tcsweep.job import Job

SEED_OFFSET_INPUT = 1  # the input's seed lies beside the model's, so that a new model leaves the input as it was


class HostMemoryError(MemoryError):
    """The input alone would not fit into the memory that is free."""


def build_model(job: Job, device: torch.device) -> nn.Module:
    """The float32 model in eval mode, random weights seeded by `job.seed` and drawn on the device, where that takes
    milliseconds. Auxiliary heads are off: they do nothing in eval. Raises what torchvision or the state dict raises."""
    _check_size(job)
    torch.manual_seed(job.seed)
    builder = torchvision.models.get_model_builder(job.model)
    kwargs: dict[str, Any] = {}
    named = job.weights if job.weights and os.sep not in job.weights else None
    if job.model in ("inception_v3", "googlenet") and named is None:
        # Their own initialisation draws truncated normals for minutes (torchvision issue 1797).
        kwargs |= {"init_weights": False, "aux_logits": False}
    if named is None:
        kwargs |= size_argument(job.model, job.image_size)
    with device if job.weights is None else contextlib.nullcontext():
        model: nn.Module = builder(weights=named, **kwargs)
    if job.weights and not named:
        state = torch.load(job.weights, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if kwargs.get("aux_logits") is False:
            state = {k: v for k, v in state.items() if not k.startswith(("aux1.", "aux2.", "AuxLogits."))}
        model.load_state_dict(state)
    return model.to(device).eval()


def _check_size(job: Job) -> None:
    """Say which sizes a vision transformer takes: torchvision says that a shape is indivisible, not by what."""
    patch = int(job.model.rpartition("_")[2]) if job.model.startswith("vit_") else 1
    if job.image_size % patch:
        raise ValueError(f"{job.model} takes multiples of {patch} pixels, not model.image_size={job.image_size}")


def weights_sha256(job: Job) -> str | None:
    """The digest of a state dict's file; None where the weights are drawn, or torchvision's, which names tell."""
    if not job.weights or os.sep not in job.weights:
        return None
    digest = hashlib.sha256()
    with open(job.weights, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def size_argument(model: str, size: int) -> dict[str, Any]:
    """What the builders of models that are built for one input size call it (torchvision 0.16 to 0.29)."""
    if model.startswith("vit_"):
        return {"image_size": size}
    return {"input_size": (size, size)} if model.startswith("maxvit_") else {}


def build_input(job: Job, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A random batch (batch, 3, size, size), resident on the device in the job's layout and the precision's dtype.
    Raises HostMemoryError before a CPU allocation that cannot fit: the kernel would kill the process instead."""
    shape = (job.batch, 3, job.image_size, job.image_size)
    if device.type == "cpu":
        _check_host_memory(job.batch * 3 * job.image_size**2 * torch.finfo(dtype).bits // 8)
    generator = torch.Generator(device=device).manual_seed(job.seed + SEED_OFFSET_INPUT)
    x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    return x.to(memory_format=memory_format(job.layout))


def memory_format(layout: str) -> torch.memory_format:
    """torch's name of a layout."""
    return torch.channels_last if layout == "nhwc" else torch.contiguous_format


def _check_host_memory(needed: int) -> None:
    import psutil

    available = psutil.virtual_memory().available
    if needed > available:
        raise HostMemoryError(
            f"the input alone needs {needed / 2**30:,.1f} GiB of host memory, {available / 2**30:,.1f} GiB are free"
        )
