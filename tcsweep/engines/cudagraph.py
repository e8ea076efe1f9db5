"""Eager's kernels, recorded once as a CUDA graph and launched together: the host's work for each kernel is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tcsweep.job import Environment

if TYPE_CHECKING:
    import torch

    from tcsweep.evidence.facts import Dtypes
    from tcsweep.precision import Prepared

WARM_UP = 3  # calls before the capture: cuDNN tries its kernels and allocates, which a capture forbids


class Captured:
    """A recorded forward pass: each call runs all its kernels on the resident input, into the same output."""

    def __init__(self, forward: Callable[[], Any]) -> None:
        import torch

        from tcsweep.evidence.dtypes import Observed

        # As torch's notes on CUDA graphs ask for: on a side stream, and nothing but the current stream's order between.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                forward()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        watched = Observed(forward, source="ATen operators of the capture")
        with torch.cuda.graph(self._graph):
            self._output = watched()
        self.dtypes: Dtypes = watched.dtypes

    def __call__(self) -> Any:
        """Replay it; the output, which the next call overwrites."""
        self._graph.replay()
        return self._output


def build(prepared: Prepared, x: torch.Tensor) -> Callable[[], Any]:
    """A graph of one forward pass of the resident input."""
    forward = prepared.forward
    return Captured(lambda: forward(x))


def observed(iteration: Callable[[], Any]) -> Captured:
    """What the very capture saw that is replayed."""
    assert isinstance(iteration, Captured)
    return iteration


def missing(environment: Environment) -> str | None:
    """CUDA only."""
    return None if environment.device.startswith("cuda") else "CUDA graphs need a GPU"
