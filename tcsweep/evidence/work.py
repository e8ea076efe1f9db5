"""The arithmetic and traffic of a classifier, counted from shapes. For workers only: it imports torch.

The counted model is built on the meta device for the purpose: its weights take no memory, its call does no arithmetic,
and the measured module is never touched."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tcsweep.evidence.facts import LayerWork, Work
from tcsweep.mistakes import first_line
from tcsweep.models import size_argument

_INPUT = -1  # in the place of a layer's number: made from the model's input before any layer


def count(model: str, image_size: int) -> Work:
    """The layers of a torchvision classifier for one image (1, 3, image_size, image_size), in the order of their calls.

    Names are torch's module paths: of the module that owns the weight, else of the one in whose forward the operator is
    called (in the model's own: the operator's name). An attention is several layers where it is several operators.
    A multiply-add is 2 operations; biases, activations and pooling count none, as in `torch.utils.flop_counter`.
    An addend that is not made by the layer itself counts as input of the later of the two layers that made the sum's
    addends. What depends on weights alone (swin_v2's position biases) is no work of an image and is left out.
    Raises nothing: what cannot be counted is a `Work` whose `missing` says why in one line.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            built = _build(model, image_size)
        layers = layers_of(built, torch.empty(1, 3, image_size, image_size, device="meta"))
    except Exception as error:  # any of torchvision's builders and forwards, with any of its errors
        said = first_line(str(error))
        return Work(missing=f"{model} at {image_size} pixels could not be counted: {type(error).__name__}: {said}")
    return Work(layers)


def layers_of(model: nn.Module, x: Tensor) -> tuple[LayerWork, ...]:
    """The layers of one call of a model in eval mode on one image, on whatever device both are.
    Raises what the model's forward raises."""
    counter = _Counter(model, x)
    with counter.paths(model), torch.inference_mode(), counter:
        model(x)
    return tuple(counter.layers)


def _build(name: str, image_size: int) -> nn.Module:
    """The model as `tcsweep.models.build_model` builds it, on the meta device, in eval mode."""
    kwargs: dict[str, Any] = size_argument(name, image_size)
    if name in ("inception_v3", "googlenet"):
        kwargs |= {"init_weights": False, "aux_logits": False}
    with _WeightsOnMeta():
        model: nn.Module = torchvision.models.get_model_builder(name)(weights=None, **kwargs)
    return model.to("meta").eval()


class _WeightsOnMeta(TorchFunctionMode):
    """Puts on meta what layers allocate by `torch.empty`. Not all: regnets read numbers out of small tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func is torch.empty else kwargs))


@dataclass(frozen=True)
class _Sizes:
    """What one operator's shapes say."""

    kind: str
    flops: float
    operands: tuple[Tensor, ...]  # read: activations or weights
    more: dict[str, Any] = field(default_factory=dict)  # further fields of `LayerWork`


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Counts each operator under inference mode, where composite ones (conv2d, linear, matmul) arrive whole, and
    follows which layer made which tensor."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[LayerWork] = []
        self._stack: list[str] = []
        self._owner = {id(p): path for path, m in model.named_modules() for p in m.parameters(recurse=False)}
        self._made: dict[int, int] = {}  # by id() of a tensor: the last layer that it depends on
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._mark(x, _INPUT)

    @contextlib.contextmanager
    def paths(self, model: nn.Module) -> Iterator[None]:
        """Know, while inside, in which module's forward an operator is called."""
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path)))
            handles.append(module.register_forward_hook(self._left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: self._stack.append(path)

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()  # and return None: anything else would replace the output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = func._schema.name.removeprefix("aten::")
        if operator in _IN_PARTS:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        given = _by_name(func, args, kwargs)
        made = max((self._made[id(t)] for t in _tensors(tuple(given.values())) if id(t) in self._made), default=None)
        if made is None:
            return out  # depends on weights alone
        sizes = _SIZES[operator](given, out) if operator in _SIZES else None
        if sizes:
            made = self._count(operator, sizes, next(_tensors((out,))))
        elif operator in ("add", "add_"):
            self._add_residual(given["self"], given["other"])
        for tensor in _tensors((out,)):
            self._mark(tensor, made)
        return out

    def _mark(self, tensor: Tensor, layer: int) -> None:
        self._made[id(tensor)] = layer
        self._alive.append(tensor)

    def _count(self, operator: str, sizes: _Sizes, out: Tensor) -> int:
        """Append a layer and return its number."""
        weights = [t for t in sizes.operands if id(t) not in self._made]
        owner = next((self._owner[id(t)] for t in weights if id(t) in self._owner), None)
        self.layers.append(
            LayerWork(
                name=owner or self._stack[-1] or operator,
                kind=sizes.kind,
                flops=sizes.flops,
                input_elements=sum(t.numel() for t in sizes.operands if id(t) in self._made),
                output_elements=out.numel(),
                weight_elements=sum(t.numel() for t in weights),
                **sizes.more,
            )
        )
        return len(self.layers) - 1

    def _add_residual(self, one: Any, other: Any) -> None:
        """Let the later layer of a sum of two activations read the addend that it did not make."""
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape):
            return
        first, last = sorted((self._made.get(id(one), _INPUT), self._made.get(id(other), _INPUT)))
        if id(one) in self._made and id(other) in self._made and first != last and self.layers[last].kind != "pooling":
            layer = self.layers[last]
            self.layers[last] = replace(layer, input_elements=layer.input_elements + one.numel())


def _convolution(given: dict[str, Any], out: Tensor) -> _Sizes:
    """conv1d to conv3d, and `convolution` itself; weight (out, in / groups, *kernel)."""
    weight = given["weight"]
    winograd = (
        tuple(weight.shape[2:]) == (3, 3)
        and given["groups"] == 1
        and all(s == 1 for s in given["stride"])
        and not given.get("transposed", False)
    )
    flops = 2.0 * out.numel() * weight[0].numel()
    if given.get("transposed", False):
        flops = _transposed_flops(given)
    more = {"winograd": winograd, **_shape(given, out)}
    return _Sizes("convolution", flops, _read(given, "input", "weight", "bias"), more)


def _transposed_convolution(given: dict[str, Any], out: Tensor) -> _Sizes:
    read = _read(given, "input", "weight", "bias")
    return _Sizes("convolution", _transposed_flops(given), read, _shape(given, out))


def _shape(given: dict[str, Any], out: Tensor) -> dict[str, Any]:
    """Of a convolution of batched images: its channels are the second of each's dimensions."""
    kernel = tuple(given["weight"].shape[2:])
    channels = {"channels_in": given["input"].shape[1], "channels_out": out.shape[1], "groups": given["groups"]}
    return {"spatial": math.prod(kernel) > 1, "kernel": kernel, **channels}


def _transposed_flops(given: dict[str, Any]) -> float:
    """Each input element meets each of its channel's weights; weight (in, out / groups, *kernel)."""
    return 2.0 * float(given["input"].numel() * given["weight"][0].numel())


def _linear(given: dict[str, Any], out: Tensor) -> _Sizes:
    flops = 2.0 * given["input"].numel() * given["weight"].shape[0]
    channels_out, channels_in = given["weight"].shape
    channels = {"channels_in": channels_in, "channels_out": channels_out}
    return _Sizes("linear", flops, _read(given, "input", "weight", "bias"), channels)


def _product(first: str, second: str) -> Callable[[dict[str, Any], Tensor], _Sizes]:
    """matmul and its like: (..., m, k) x (..., k, n)."""

    def sizes(given: dict[str, Any], out: Tensor) -> _Sizes:
        flops = 2.0 * out.numel() * given[first].shape[-1]
        read = (first, second) if first == "self" else (first, second, "self")
        return _Sizes("matmul", flops, _read(given, *read))

    return sizes


def _scaled_dot_product_attention(given: dict[str, Any], out: Any) -> _Sizes:
    """query (..., heads, l, e), key (..., heads, s, e), value (..., heads, s, v): two products, nothing left out for a
    causal mask, as in torch.utils.flop_counter."""
    query, key, value = given["query"], given["key"], given["value"]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    flops = 2.0 * pairs * (query.shape[-1] + value.shape[-1])
    return _Sizes("attention", flops, _read(given, "query", "key", "value", "attn_mask"))


def _native_multi_head_attention(given: dict[str, Any], out: Any) -> _Sizes:
    """query (batch, l, e), key and value (batch, s, e): three projections in, two products, one projection out."""
    query, key, width = given["query"], given["key"], given["embed_dim"]
    batch, length, source = query.shape[0], query.shape[1], key.shape[1]
    projections = 2.0 * batch * width * width * (2 * length + 2 * source)
    products = 2.0 * batch * length * source * 2 * width
    read = {id(t): t for t in _read(given, "query", "key", "value")}  # self-attention reads one tensor
    weights = _read(given, "qkv_weight", "qkv_bias", "proj_weight", "proj_bias")
    return _Sizes("attention", projections + products, (*read.values(), *weights))


def _pooling(given: dict[str, Any], out: Any) -> _Sizes:
    return _Sizes("pooling", 0.0, _read(given, "self"))


def _mean(given: dict[str, Any], out: Tensor) -> _Sizes | None:
    """A mean over the image's height and width is what some networks write for global pooling."""
    over = given.get("dim")
    spatial = isinstance(over, (list, tuple)) and len(over) == 2 and given["self"].dim() == 4
    return _pooling(given, out) if spatial else None


_SIZES: dict[str, Callable[[dict[str, Any], Any], _Sizes | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    "matmul": _product("self", "other"),
    **dict.fromkeys(("mm", "bmm"), _product("self", "mat2")),
    "mv": _product("self", "vec"),
    "addmm": _product("mat1", "mat2"),
    "baddbmm": _product("batch1", "batch2"),
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    "_native_multi_head_attention": _native_multi_head_attention,
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"), _pooling),
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"), _pooling),
    "mean": _mean,
}
_IN_PARTS = frozenset(("einsum", "tensordot", "bilinear", "_transformer_encoder_layer_fwd"))  # no shape rule of its own


def _by_name(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """An operator's arguments by their names in its schema, defaults filled in."""
    schema = func._schema.arguments
    given: dict[str, Any] = {
        argument.name: argument.default_value for argument in schema if argument.has_default_value()
    }
    given |= {argument.name: value for argument, value in zip(schema, args)}
    given |= kwargs
    return given


def _read(given: dict[str, Any], *names: str) -> tuple[Tensor, ...]:
    return tuple(given[name] for name in names if isinstance(given.get(name), Tensor))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
