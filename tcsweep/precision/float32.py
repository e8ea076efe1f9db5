"""fp32 and tf32: float32 storage. Whether products are rounded to TF32 is torch's global switch, which
`tcsweep.precision.set_tf32` sets for the whole process."""

from __future__ import annotations

import torch
from torch import nn

from tcsweep.precision import Prepared


def prepare(model: nn.Module, device: torch.device) -> Prepared:
    """The model in float32, with float32 input."""
    return Prepared(forward=model.to(device, torch.float32), input_dtype=torch.float32)
