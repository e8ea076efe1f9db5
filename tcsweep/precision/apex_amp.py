"""o0 to o3 through NVIDIA's real apex. Its amp checks that every parameter and buffer is float32 and on CUDA, and that
cuDNN is enabled; O1 patches torch for the life of the process and nothing in apex takes that back."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
from torch import nn

from tcsweep.devices.apex import ApexFacts, find_apex
from tcsweep.precision import Prepared


def prepare(model: nn.Module, device: torch.device, level: str) -> Prepared:
    """The model as `apex.amp.initialize` returns it for this level, with float32 input."""
    facts = find_apex()
    if facts.state != "amp":
        raise RuntimeError(f"NVIDIA's apex with amp was not found (state: {facts.state})")
    model.to(device, torch.float32)  # a buffer left on the CPU makes apex refuse the model
    return Prepared(
        forward=_initialize(model, level.upper()),
        input_dtype=torch.float32,
        half_dtype=None if level == "o0" else "float16",
        amp_backend="apex",
        amp_version=_version(facts),
    )


def _initialize(model: nn.Module, level: str) -> Any:
    """Import and initialise without chatter: deprecation warnings, and lines about missing fused kernels."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from apex import amp

        return amp.initialize(model, opt_level=level, verbosity=0)


def _version(facts: ApexFacts) -> str:
    return f"{facts.version} ({facts.build})" if facts.version else str(facts.build)  # a checkout tells no version
