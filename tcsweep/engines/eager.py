"""PyTorch as it comes: each operator launched by Python as it is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tcsweep.job import Environment

if TYPE_CHECKING:
    import torch

    from tcsweep.evidence.dtypes import Observed
    from tcsweep.precision import Prepared


def build(prepared: Prepared, x: torch.Tensor) -> Callable[[], Any]:
    """One forward pass of the resident input."""
    forward = prepared.forward
    return lambda: forward(x)


def observed(iteration: Callable[[], Any]) -> Observed:
    """Each operator is seen where ATen receives it."""
    from tcsweep.evidence.dtypes import Observed

    return Observed(iteration)


def missing(environment: Environment) -> str | None:
    """Eager runs everywhere."""
    return None
