"""Outputs against those of the same weights in float32, NCHW, eager, on inputs and weights for which that means
something. Imports torch: for workers only; the limits are in `limits`, which does not.

Random weights as they are drawn give one class for all inputs, or logits of 1e-9, or of zero: an error relative to
those says nothing. `calibrate` gives them the statistics of a trained network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from tcsweep.evidence.facts import Numerics
from tcsweep.evidence.limits import LIMITS
from tcsweep.job import Job
from tcsweep.models import build_model
from tcsweep.precision import set_tf32
from tcsweep.store import write_file

SEED_OFFSET_REFERENCE = 2  # beside the model's (0) and the timed input's (1)
GRIDS = (4, 16, 56, 224)  # points a side: from blobs to single pixels of a 224-pixel image
CONTRAST = (0.3, 1.5)  # least and largest standard deviation of an image; normalised photographs have about 1
CHUNK = 16  # images at once: what a small GPU holds of any torchvision classifier
BRANCH_SCALE = 0.2  # of the last scale of a residual branch; near 1, as drawn, errors grow with each block
HEAD_STD = 0.02  # of a head that was drawn as zeros
NO_SPREAD = 1e-3  # of the largest singular value: directions below it hold no more than rounding errors
# Of batch norms, the first that will do. Long chains of batch norm and ReLU without skips (inception_v3) multiply an
# error at each layer; with most units above zero they do so less. It is not always enough: inception_v3 at 299 pixels
# in bf16 was seen at 3.3e-2, over its limit.
BIASES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Reference:
    """What every job of a model is compared with."""

    seed: int  # of `structured_inputs`
    inputs: int
    outputs: Tensor  # (inputs, classes) float32 on the CPU
    calibration: dict[str, Tensor]  # for `apply_calibration`; empty where the weights are trained ones


def structured_inputs(n: int, size: int, seed: int, device: torch.device | str) -> Tensor:
    """Images (n, 3, size, size) in float32 with structure at several scales and unlike contrasts: a sum of noise on
    grids of 4 to 224 points, enlarged bilinearly. Made on the CPU, one after another, so that they are the same on
    every device and the first k of n are the k of the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([_structured_image(size, generator) for _ in range(n)]).to(device)


def _structured_image(size: int, generator: torch.Generator) -> Tensor:
    image = torch.zeros(1, 3, size, size)
    for grid in GRIDS:
        noise = torch.randn(1, 3, min(grid, size), min(grid, size), generator=generator)
        noise = functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False)
        image += noise / noise.std()
    low, high = CONTRAST
    contrast = low + (high - low) * torch.rand(1, generator=generator)
    return image / image.std() * contrast


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Change a randomly drawn model in place so that its outputs depend on its inputs as a trained network's do, and
    return what was changed, by state-dict name, on the CPU. `inputs`: (n, 3, size, size), n at least 2, float32.

    The last scale of each residual branch becomes 0.2, batch norms take the statistics of the inputs, and the head is
    scaled and shifted to logits of mean 0 and mean deviation 1 over the inputs. Where rounding the weights to bfloat16
    would still move the outputs by a third of bf16's limit, the other batch norms get a positive bias. Raises
    ValueError for fewer than 2 inputs, where no layer could be a head, and where all inputs give the same output."""
    if len(inputs) < 2:
        raise ValueError(f"calibration needs 2 inputs at least, not {len(inputs)}: deviations are taken over them")
    model.eval()
    ends = _shrink_branches(model, inputs[:1])
    norms = _batch_norms(model)
    head_name, head = _find_head(model, inputs[:1])
    drawn = head.weight.clone()
    shifted: list[str] = []
    for bias in BIASES:
        shifted = _shift_norms(norms, ends, bias) if bias else []
        _take_statistics(model, norms, inputs)
        head.weight.copy_(drawn)
        _scale_head(model, head, inputs)
        if not norms or _rounding_error(model, inputs) < LIMITS["bf16"] / 3:
            break
    buffers = [f"{name}.{buffer}" for name, m in norms.items() for buffer in dict(m.named_buffers(recurse=False))]
    parameters = [f"{head_name}.{parameter}" for parameter, _ in head.named_parameters()]
    state = model.state_dict()
    return {name: state[name].detach().to("cpu", copy=True) for name in (*ends, *shifted, *buffers, *parameters)}


@torch.no_grad()
def apply_calibration(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make the model that `calibrate` made of another one with the same seed. Raises ValueError for a tensor that the
    model does not have, or has in another shape."""
    state = model.state_dict()  # copied into by hand: mnasnet's load_state_dict takes no part of a state
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            raise ValueError(f"the calibration is of another model: this one has no {name} of {tuple(tensor.shape)}")
        state[name].copy_(tensor)


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Finds where residual branches end: of two activations added, the one with more operators behind it is the
    branch, the other the skip. Keeps the scale that the branch went through last, where that was its last operator."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = parameters  # names by identity
        self._depths = WeakTensorKeyDictionary()  # type: ignore[no-untyped-call, unused-ignore]
        self._scales = WeakTensorKeyDictionary()  # type: ignore[no-untyped-call, unused-ignore]
        self.ends: dict[str, None] = {}  # in order

    def ends_in(self, output: Tensor, scale: str) -> None:
        """A normalisation with this scale made this output."""
        self._scales[output] = scale

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in _tensors(args) if t.is_floating_point()]
        name = func._schema.name
        if name in ("aten::add", "aten::add_"):
            self._note_branch(tensors)
        depth = 1 + max((self._depths.get(t, 0) for t in tensors), default=0)
        scale = next((self._parameters[id(t)] for t in tensors if id(t) in self._parameters), None)
        for made in _tensors((result,)):
            self._depths[made] = depth
            self._scales[made] = scale if name == "aten::mul" else None  # layer scale, as in ConvNeXt
        return result

    def _note_branch(self, tensors: list[Tensor]) -> None:
        if len(tensors) != 2 or tensors[0].shape != tensors[1].shape or not all(t in self._depths for t in tensors):
            return
        scale = self._scales.get(max(tensors, key=lambda t: self._depths[t]))
        if scale is not None:
            self.ends[scale] = None


def _shrink_branches(model: nn.Module, inputs: Tensor) -> list[str]:
    """Set the scale at the end of each residual branch; its name in the state dict."""
    parameters = dict(model.named_parameters())
    additions = _Additions({id(p): name for name, p in parameters.items()})

    def scale_of(module_name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, output: additions.ends_in(output, f"{module_name}.weight")

    norms = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) and m.weight is not None
    }
    with _hooked({m: scale_of(name) for name, m in norms.items()}), additions:
        model(inputs)
    for name in additions.ends:
        parameters[name].fill_(BRANCH_SCALE)
    return list(additions.ends)


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Those that normalise by statistics of their own, by name."""
    modules = model.named_modules()
    return {name: m for name, m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None}


def _shift_norms(norms: Mapping[str, _BatchNorm], ends: list[str], bias: float) -> list[str]:
    """Set the bias of batch norms that do not end a branch; its name in the state dict."""
    shifted = {name: m for name, m in norms.items() if m.bias is not None and f"{name}.weight" not in ends}
    for m in shifted.values():
        m.bias.fill_(bias)
    return [f"{name}.bias" for name in shifted]


def _take_statistics(model: nn.Module, norms: Mapping[str, _BatchNorm], inputs: Tensor) -> None:
    """Give batch norms the statistics of the inputs. All else stays in eval mode: no dropout, no stochastic depth."""
    momenta = {m: m.momentum for m in norms.values()}
    for m in norms.values():
        m.reset_running_stats()
        m.momentum = None  # the plain mean over chunks
        m.train()
    if norms:
        for chunk in _even_chunks(inputs):
            model(chunk)
    for m, momentum in momenta.items():
        m.momentum = momentum
        m.eval()


def _rounding_error(model: nn.Module, inputs: Tensor) -> float:
    """The relative norm error that comes of rounding the parameters to bfloat16."""
    chunk = inputs[:CHUNK]
    exact = _first_tensor(model(chunk))
    kept = {p: p.clone() for p in model.parameters()}
    for p in kept:
        p.copy_(p.bfloat16())
    rounded = _first_tensor(model(chunk))
    for p, value in kept.items():
        p.copy_(value)
    return float((rounded - exact).norm() / exact.norm())


def _find_head(model: nn.Module, inputs: Tensor) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The last layer called that could be the head; drawn anew where it is zero (vision transformers)."""
    called: list[tuple[str, nn.Module]] = []

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, args, output: called.append((name, module))

    with _hooked({m: note(name) for name, m in model.named_modules() if _could_be_head(m)}):
        model(inputs)
    if not called:
        raise ValueError(f"no linear layer or 1x1 convolution in {type(model).__name__} could be its head")
    name, head = called[-1]
    assert isinstance(head, (nn.Linear, nn.Conv2d))  # for mypy: only those are hooked
    if not head.weight.any():
        generator = torch.Generator().manual_seed(0)
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * HEAD_STD)
    return name, head


def _scale_head(model: nn.Module, head: nn.Linear | nn.Conv2d, inputs: Tensor) -> None:
    """Scale and shift the last layer to logits of mean 0 for each class and of mean deviation 1."""
    features: list[Tensor] = []
    with _hooked({head: lambda module, args, output: features.append(_samples(head, args[0]))}):
        for chunk in _even_chunks(inputs):
            model(chunk)
    _normalise(head, torch.cat(features))


def _could_be_head(module: nn.Module) -> bool:
    pointwise = isinstance(module, nn.Conv2d) and set(module.kernel_size) == {module.groups} == {1}
    return isinstance(module, nn.Linear) or pointwise


def _normalise(head: nn.Linear | nn.Conv2d, features: Tensor) -> None:
    """Change the head so that logits of these features (samples, channels) have mean 0 and mean deviation 1.

    Its rows keep only their part in the directions in which the features differ, as a trained head's do: for these
    inputs the rest adds a constant at most, but reads rounding errors in all of a drawn network's directions."""
    mean = features.mean(0)
    _, spread, directions = torch.linalg.svd(features - mean, full_matrices=False)
    directions = directions[spread > NO_SPREAD * spread[0]]
    weight = head.weight.reshape(len(head.weight), -1).to(features) @ directions.T @ directions
    logits = features @ weight.T
    deviation = logits.std(0).mean()
    if not deviation > 0:
        raise ValueError("the outputs do not depend on the inputs: nothing can be compared")
    shift = logits.mean(0)
    if head.bias is not None:
        head.bias.copy_(-shift / deviation)
    else:  # maxvit_t: the mean logit is taken off along the mean feature, W' = W - shift f^T / |f|^2
        weight = weight - torch.outer(shift, mean) / mean.square().sum()
    head.weight.copy_((weight / deviation).reshape(head.weight.shape))


def _samples(layer: nn.Linear | nn.Conv2d, t: Tensor) -> Tensor:
    """(samples, channels) in float64; a convolution's pixels are samples, too."""
    channels_last = t.movedim(1, -1) if isinstance(layer, nn.Conv2d) else t
    return channels_last.reshape(-1, channels_last.shape[-1]).double()


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Tensor], None]]) -> Iterator[None]:
    """Forward hooks, gone at the end."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _even_chunks(inputs: Tensor) -> Iterator[Tensor]:
    """As few chunks of at most CHUNK as there can be, all about as long: a batch norm cannot train on one image."""
    return iter(inputs.chunk(-(-len(inputs) // CHUNK)))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def make_reference(job: Job, n: int, device: torch.device) -> Reference:
    """The outputs of n structured inputs in float32, NCHW, eager, TF32 off; random weights are calibrated on the same
    inputs. Sets TF32 for the whole process: for a worker that ends. Raises what `build_model` and torch raise."""
    set_tf32(False)
    seed = job.seed + SEED_OFFSET_REFERENCE
    inputs = structured_inputs(n, job.image_size, seed, device)
    with torch.no_grad():
        model = build_model(job, device)
    calibration = calibrate(model, inputs) if job.weights is None else {}
    with torch.inference_mode():
        outputs = torch.cat([_first_tensor(model(chunk)).float().cpu() for chunk in inputs.split(CHUNK)])
    return Reference(seed, n, outputs.clone(), calibration)


def save_reference(reference: Reference, path: Path) -> None:
    """Write a reference to a file, whole or not at all."""
    content = io.BytesIO()
    torch.save(vars(reference), content)
    write_file(path, content.getvalue())


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote; no code in the file is run. Raises OSError, or what torch.load raises."""
    return Reference(**torch.load(path, map_location="cpu", weights_only=True))


def run_through(iteration: Callable[[], Any], x: Tensor, inputs: Tensor) -> Tensor:
    """The outputs (n, ...) in float32 on the CPU of `inputs` (n, 3, size, size), passed through `iteration`, which
    reads its resident input `x` (batch, 3, size, size; any dtype and memory format) and returns a tensor, or a tuple
    or mapping with one. Inputs go `batch` at a time, the last batch filled up by repeating them; x is put back.
    Raises TypeError for an output without a tensor, ValueError for one that is not of the whole batch."""
    batch = len(x)
    outputs = []
    with torch.inference_mode():
        resident = x.to("cpu", copy=True)  # not on the device, where a large batch may have left no memory
        try:
            for first in range(0, len(inputs), batch):
                index = (first + torch.arange(batch)) % len(inputs)
                x.copy_(inputs[index.to(inputs.device)])
                outputs.append(_collect(iteration(), batch))
        finally:
            x.copy_(resident)
        return torch.cat(outputs)[: len(inputs)]


def _collect(output: Any, batch: int) -> Tensor:
    """A copy on the CPU in float32, since the next call may overwrite the output."""
    tensor = _first_tensor(output)
    if tensor.ndim == 0 or len(tensor) != batch:
        raise ValueError(f"an output of shape {tuple(tensor.shape)} is not one of a batch of {batch}")
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)  # an engine may run on a stream of its own
    return tensor.to("cpu", torch.float32, copy=True)


def _first_tensor(output: Any) -> Tensor:
    values = tuple(output.values()) if isinstance(output, Mapping) else (output,)
    for tensor in _tensors(values):
        return tensor
    raise TypeError(f"an output of type {type(output).__name__} holds no tensor")


def compare(outputs: Tensor, reference: Reference) -> Numerics:
    """How far outputs (n, ...) lie from the reference's. Where there are NaN or Inf, only their number is told.
    Top-1 is compared for all inputs; those whose reference margin exceeds twice their largest error are counted too: no
    class can overtake there, so a disagreement elsewhere is rounding between near equals.
    Raises ValueError where the shapes differ."""
    expected = reference.outputs
    if outputs.shape != expected.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)}, a reference of {tuple(expected.shape)}")
    n = len(expected)
    got, want = (t.detach().to("cpu", torch.float64).reshape(n, -1) for t in (outputs, expected))
    nan, inf = int(got.isnan().sum()), int(got.isinf().sum())
    if nan or inf:
        return Numerics(inputs=n, nan=nan, inf=inf)
    if not want.isfinite().all() or not want.any():
        return Numerics(inputs=n, missing="the float32 reference is itself not finite, or zero")
    errors = (got - want).abs().amax(1)
    top = want.topk(2, dim=1).values
    counted = (top[:, 0] - top[:, 1]) > 2 * errors
    agree = got.argmax(1) == want.argmax(1)
    return Numerics(
        inputs=n,
        relative_error=float((got - want).norm() / want.norm()),
        cosine=float(functional.cosine_similarity(got, want, dim=1).clamp(-1, 1).min()),
        top1_agreement=float(agree.double().mean()),
        top1_clear=int(counted.sum()),
    )
