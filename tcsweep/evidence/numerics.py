"""Outputs against float32's. Random weights are calibrated first, since as drawn they make most networks say the same
of every image, or next to nothing. For workers: imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tcsweep.evidence.facts import Numerics
from tcsweep.job import Job
from tcsweep.models import build_model

CHUNK = 16  # images at a time for the reference
SCALES = (4, 16, 56)  # pixels of the noise that is enlarged to the image's size, besides noise of that size
CONTRAST = (0.3, 1.5)
BRANCH_GAMMA = 0.2  # of a residual branch's last batch norm, about what training leaves there; 1 as drawn
HEAD_STD = 0.02  # of a head that is drawn as zeros
SEED_OFFSET = 2  # beside the model's and the input's seeds
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Reference:
    """What a job's outputs are compared with."""

    outputs: Tensor  # (n, classes), float32, on the CPU
    calibration: dict[str, Tensor]  # changed tensors by their names in the state dict; empty for given weights
    seed: int  # of the inputs


def structured_inputs(n: int, size: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Images (n, 3, size, size), float32: noise at several scales, each image with a contrast of its own. The same on
    every device, as it is drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.randn(n, 3, size, size, generator=generator)
    for scale in SCALES:
        small = torch.randn(n, 3, scale, scale, generator=generator)
        total += nn.functional.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    low, high = CONTRAST
    contrast = low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)
    return (total / math.sqrt(len(SCALES) + 1) * contrast).to(device)


def make_reference(job: Job, n: int, device: torch.device) -> Reference:
    """Build the job's model in float32, NCHW, eager, calibrate it where its weights are random, and run n inputs.
    TF32 must be off. Raises what building or running raises."""
    with torch.no_grad():
        model = build_model(job, device)
        seed = job.seed + SEED_OFFSET
        inputs = structured_inputs(n, job.image_size, seed, device)
        calibration = calibrate(model, inputs) if job.weights is None else {}
        outputs = torch.cat([logits(model(chunk)).float().cpu() for chunk in inputs.split(CHUNK)])
    return Reference(outputs, calibration, seed)


def save_reference(path: Path, reference: Reference) -> None:
    """Write it as tensors."""
    saved = {"outputs": reference.outputs, "calibration": reference.calibration, "seed": reference.seed}
    torch.save(saved, path)


def load_reference(path: str | Path) -> Reference:
    """Read what `save_reference` wrote."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return Reference(saved["outputs"], saved["calibration"], saved["seed"])


def calibrate(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Give a model of random weights outputs that differ from image to image, in place: batch norms get the statistics
    of these inputs, residual branches weigh less, logits have mean 0 and deviation 1. Returns what changed, by name in
    the state dict, on the CPU."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    _quieten_branches(model, inputs[:2])
    with _batch_norms_learning(model):
        for chunk in inputs.split(CHUNK):
            model(chunk)
    _normalise_head(model, inputs)
    after = model.state_dict()
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in after.items()
        if tensor.shape != before[name].shape or not torch.equal(tensor, before[name])
    }


def apply_calibration(model: nn.Module, calibration: Mapping[str, Tensor]) -> None:
    """Make a freshly drawn model the calibrated one, in place."""
    state = model.state_dict()
    for name, tensor in calibration.items():
        state[name].copy_(tensor)


@contextmanager
def _batch_norms_learning(model: nn.Module) -> Iterator[None]:
    """Batch norms alone in training mode, as one pass over inputs sets their statistics."""
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()


class _Branches(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Finds the batch norm that ends each residual branch: of the two addends the one with more layers behind it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last: list[nn.Module] = []
        self._depth: dict[int, int] = {}
        self._norm: dict[int, nn.Module] = {}
        self._alive: list[Any] = []  # so that no id is used twice

    def ended(self, norm: nn.Module, args: Any, output: Tensor) -> None:
        """A forward hook of batch norms."""
        self._norm[id(output)] = norm

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given = [a for a in args if isinstance(a, Tensor)]
        depth = max((self._depth.get(id(t), 0) for t in given), default=0)
        if name in ("add", "add_") and len(given) == 2 and given[0].shape == given[1].shape:
            deepest = max(given, key=lambda t: self._depth.get(id(t), 0))
            if id(deepest) in self._norm:
                self.last.append(self._norm[id(deepest)])
        for tensor in (out,) if isinstance(out, Tensor) else tuple(t for t in out if isinstance(t, Tensor)):
            self._depth[id(tensor)] = depth + ("conv" in name)
            if name != "add_":
                self._norm.pop(id(tensor), None)
            self._alive.append(tensor)
        return out


def _quieten_branches(model: nn.Module, inputs: Tensor) -> None:
    branches = _Branches()
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
    handles = [norm.register_forward_hook(branches.ended) for norm in norms]
    try:
        with branches:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for norm in branches.last:
        if isinstance(norm.weight, Tensor):
            norm.weight.fill_(BRANCH_GAMMA)


def _normalise_head(model: nn.Module, inputs: Tensor) -> None:
    """Scale the last layer, linear or a convolution, so that the logits' deviation over inputs is 1, their mean 0."""
    ran: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    handles = [m.register_forward_hook(lambda m, args, out: ran.append(m)) for m in layers]
    try:
        model(inputs[:1])
    finally:
        for handle in handles:
            handle.remove()
    head = ran[-1]
    assert isinstance(head, (nn.Linear, nn.Conv2d))
    if not head.weight.any():
        generator = torch.Generator().manual_seed(0)
        head.weight.copy_(HEAD_STD * torch.randn(head.weight.shape, generator=generator))
    drawn = torch.cat([logits(model(chunk)) for chunk in inputs.split(CHUNK)])
    deviation = drawn.std(dim=0).mean()
    if not deviation > 0:
        return
    head.weight.div_(deviation)
    if head.bias is not None:
        if isinstance(head, nn.Linear):  # after a convolution comes a ReLU, whose zeros would move
            head.bias.sub_(drawn.mean(dim=0))
        head.bias.div_(deviation)


def logits(output: Any) -> Tensor:
    """The class scores (n, classes) in what a classifier returns: itself, a tuple's first, or a dict's usual names."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return logits(next((output[k] for k in ("out", "logits") if k in output), next(iter(output.values()))))
    return logits(output[0])


def run_through(iteration: Callable[[], Any], x: Tensor, inputs: Tensor) -> Tensor:
    """Send inputs (n, 3, size, size) through what was timed, by way of its resident input x (batch, 3, size, size) of
    any dtype and layout; returns float32 outputs (n, classes) on the CPU. x is as it was, afterwards."""
    kept, batch, found = x.clone(), len(x), []
    try:
        for chunk in inputs.split(batch):
            filled = chunk if len(chunk) == batch else chunk[torch.arange(batch, device=chunk.device) % len(chunk)]
            x.copy_(filled)
            found.append(logits(iteration())[: len(chunk)].float().cpu())
    finally:
        x.copy_(kept)
    return torch.cat(found)


def compare(outputs: Tensor, reference: Tensor) -> Numerics:
    """Outputs and reference (n, classes) as figures; errors in float64."""
    nan, inf = int(outputs.isnan().sum()), int(outputs.isinf().sum())
    if nan or inf:
        return Numerics(inputs=len(outputs), nan=nan, inf=inf)
    seen, wanted = outputs.double(), reference.double()
    size = float(wanted.norm())
    if size == 0:
        return Numerics(inputs=len(outputs), missing="the reference's outputs are all 0")
    error = (seen - wanted).abs().amax(dim=1)
    best = wanted.topk(2, dim=1).values if wanted.shape[1] > 1 else None
    clear = torch.ones(len(wanted), dtype=torch.bool) if best is None else (best[:, 0] - best[:, 1]) > 2 * error
    agree = (seen.argmax(dim=1) == wanted.argmax(dim=1))[clear]
    return Numerics(
        inputs=len(outputs),
        relative_error=float((seen - wanted).norm()) / size,
        cosine=float(nn.functional.cosine_similarity(seen, wanted, dim=1).min()),
        top1_agreement=float(agree.double().mean()) if len(agree) else None,
        top1_counted=len(agree),
    )
