"""How a prepared model is executed: one file an engine, listed here. Imports no torch, so that a mistake is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tcsweep.engines import cudagraph, eager
from tcsweep.job import Environment

if TYPE_CHECKING:
    import torch

    from tcsweep.evidence.facts import Dtypes
    from tcsweep.precision import Prepared


class Observed(Protocol):
    """An iteration whose `dtypes` are known once it was called."""

    dtypes: Dtypes

    def __call__(self) -> Any:
        """Run it."""


@dataclass(frozen=True)
class Engine:
    """`build` turns a prepared model and its resident input into one iteration, a call without arguments; `observed`
    turns that iteration into one that also says in which dtypes it runs; `missing` says why this machine cannot run
    it, None where it can; `layerwise`: each module's forward runs in every iteration."""

    name: str
    build: Callable[[Prepared, torch.Tensor], Callable[[], Any]]
    observed: Callable[[Callable[[], Any]], Observed]
    missing: Callable[[Environment], str | None]
    layerwise: bool = False


ENGINES: dict[str, Engine] = {
    "eager": Engine("eager", eager.build, eager.observed, eager.missing, layerwise=True),
    "cudagraph": Engine("cudagraph", cudagraph.build, cudagraph.observed, cudagraph.missing),
}
