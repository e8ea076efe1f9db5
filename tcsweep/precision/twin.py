"""o0 to o3 in plain torch, equal to apex's amp at inference operator by operator: its behaviour written anew, over
its own lists of names (`apex_lists`).

O1 patches the very attributes that apex patches. A torch function mode would not do: while one is active
`nn.MultiheadAttention` leaves its fast path, and autocast casts every weight at every call and runs gelu in half.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import rnn
from torch.nn.modules.batchnorm import _BatchNorm

from tcsweep.precision import Prepared
from tcsweep.precision import apex_lists as lists
from tcsweep.precision.half import half_notes

Function = Callable[..., Any]
Wrap = Callable[["Casts", Function], Function]

HALF_OF_DEVICE = {"cuda": torch.float16}  # elsewhere bfloat16: float16 is slow on a CPU
BFLOAT16_ON_CPU = "half is bfloat16 on a CPU, not float16"


def prepare(model: nn.Module, device: torch.device, level: str) -> Prepared:
    """The model under this level, with float32 input. For o1, torch stays patched until `unpatch`."""
    half = HALF_OF_DEVICE.get(device.type, torch.bfloat16)
    model.to(device, torch.float32)
    LEVELS[level](model, device, half)
    lowered = level != "o0"
    notes = half_notes(device, half) if lowered else ()
    if lowered and half == torch.bfloat16:
        notes = (BFLOAT16_ON_CPU, *notes)
    return Prepared(
        forward=model,
        input_dtype=torch.float32,
        half_dtype=str(half).removeprefix("torch.") if lowered else None,
        amp_backend="torch",
        amp_version=str(torch.__version__),
        notes=notes,
    )


def apply_o0(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """Everything float32; forward's input and output still pass through a cast, as in apex."""
    cast_around_forward(model.to(torch.float32), torch.float32)


def apply_o1(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """The model as it is, torch patched; no output caster, so the output may be half."""
    patch(half, device.type)


def apply_o2(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """Half, but affine batch norm float32."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(half)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    cast_around_forward(model, half)


def apply_o3(model: nn.Module, device: torch.device, half: torch.dtype) -> None:
    """All of it half."""
    cast_around_forward(model.to(half), half)


LEVELS: dict[str, Callable[[nn.Module, torch.device, torch.dtype], None]] = {
    "o0": apply_o0,
    "o1": apply_o1,
    "o2": apply_o2,
    "o3": apply_o3,
}


def cast_around_forward(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace `model.forward` by one that casts floating input to `dtype` and floating output to float32."""
    forward: Function = model.forward

    def casting(*args: Any, **kwargs: Any) -> Any:
        return _cast_all(forward(*_cast_all(args, dtype), **_cast_all(kwargs, dtype)), torch.float32)

    model.forward = casting


def _cast_all(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _cast_all(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple; apex itself would raise
        return type(value)(*(_cast_all(item, dtype) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_cast_all(item, dtype) for item in value)
    return value


@dataclass(frozen=True)
class Casts:
    """What the patched functions share: the half dtype, the one device whose tensors are cast (apex: CUDA's), and the
    casted parameters, kept for as long as the patch is in force."""

    half: torch.dtype
    device_type: str
    cache: dict[Tensor, Tensor] = field(default_factory=dict)

    def to(self, value: Any, dtype: torch.dtype) -> Any:
        """A floating tensor, or a sequence of them, in `dtype`."""
        if isinstance(value, (tuple, list)):
            return type(value)([self.to(item, dtype) for item in value])
        if value.dtype == dtype or value.device.type != self.device_type:
            return value
        return value.to(dtype)

    def arguments(self, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with everything floating in `dtype`."""
        new_args = [self.to(a, dtype) if _is_floating(a) else a for a in args]
        new_kwargs = {k: self.to(v, dtype) if _is_floating(v) else v for k, v in kwargs.items()} if kwargs else kwargs
        return new_args, new_kwargs

    def cached(self, value: Any) -> Any:
        """A float32 parameter in half, cast at its first use only; anything else untouched."""
        if type(value) is not nn.Parameter or value.dtype != torch.float32:
            return value
        known = self.cache.get(value)
        # With gradients on, a cast made without them has no parent to pass them to: apex casts anew.
        if known is None or (torch.is_grad_enabled() and known.requires_grad != value.requires_grad):
            known = self.cache[value] = self.to(value, self.half)
        return known


def _is_floating(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_floating(item) for item in value)
    return isinstance(value, Tensor) and value.is_floating_point()


def _dtypes(args: Any) -> set[torch.dtype]:
    """Dtypes of the floating tensors, and of sequences that hold nothing else."""
    found: set[torch.dtype] = set()
    for value in args:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found.add(value.dtype)
        elif isinstance(value, (tuple, list)) and _is_floating(value):
            found |= _dtypes(value)
    return found


def _in_half(casts: Casts, function: Function) -> Function:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args = tuple([casts.cached(a) for a in args])
        if kwargs:
            kwargs = {k: casts.cached(v) for k, v in kwargs.items()}
        new_args, new_kwargs = casts.arguments(args, kwargs, casts.half)
        return function(*new_args, **new_kwargs)

    return wrapper


def _in_float(casts: Casts, function: Function) -> Function:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        new_args, new_kwargs = casts.arguments(args, kwargs, torch.float32)
        return function(*new_args, **new_kwargs)

    return wrapper


def _in_widest(casts: Casts, function: Function) -> Function:
    """Mixed half and float32 become float32; one dtype stays; other mixtures are refused, as apex refuses them."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        found = _dtypes((*args, *kwargs.values()))
        if len(found) <= 1:
            return function(*args, **kwargs)
        if found != {casts.half, torch.float32}:
            raise NotImplementedError(f"O1 does not promote {sorted(map(str, found))} in {function.__name__}")
        new_args, new_kwargs = casts.arguments(args, kwargs, torch.float32)
        return function(*new_args, **new_kwargs)

    return wrapper


def _sequence_in_widest(casts: Casts, function: Function) -> Function:
    """The same for the tensors of a first argument that is a sequence; other mixtures are left to torch."""

    @functools.wraps(function)
    def wrapper(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        if {t.dtype for t in tensors} == {casts.half, torch.float32}:
            tensors = [casts.to(t, torch.float32) for t in tensors]
        return function(tensors, *args, **kwargs)

    return wrapper


def _as_first(casts: Casts, function: Function) -> Function:
    """An in-place method cannot change its own tensor's dtype, so the others follow it."""

    @functools.wraps(function)
    def wrapper(first: Any, *args: Any, **kwargs: Any) -> Any:
        if first.dtype not in (casts.half, torch.float32):
            return function(first, *args, **kwargs)
        new_args, new_kwargs = casts.arguments(args, kwargs, first.dtype)
        return function(first, *new_args, **new_kwargs)

    return wrapper


def _refusing_half(casts: Casts, function: Function) -> Function:
    """An in-place form of a float32 function could only round its result to half: apex refuses."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if casts.half in _dtypes((*args, *kwargs.values())):
            raise NotImplementedError(f"O1 refuses {function.__name__} with half arguments")
        return function(*args, **kwargs)

    return wrapper


def _refusing_half_first(casts: Casts, function: Function) -> Function:
    """The same for methods, whose other arguments are cast to float32."""

    @functools.wraps(function)
    def wrapper(first: Any, *args: Any, **kwargs: Any) -> Any:
        if first.dtype == casts.half:
            raise NotImplementedError(f"O1 refuses {function.__name__} on a half tensor")
        new_args, new_kwargs = casts.arguments(args, kwargs, torch.float32)
        return function(first, *new_args, **new_kwargs)

    return wrapper


def _in_place(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name + "_" for name in names)


# In apex's order. No owner has a name twice, so nothing is wrapped twice on one owner. `F.binary_cross_entropy` is a
# loss that no classifier runs at inference; it is here so that the patched attributes are exactly apex's.
STEPS: tuple[tuple[Any, tuple[str, ...], Wrap], ...] = (
    (nn.functional, lists.FUNCTIONAL_HALF, _in_half),
    (nn.functional, lists.FUNCTIONAL_FLOAT, _in_float),
    (torch, lists.TORCH_HALF, _in_half),
    (torch, lists.TORCH_FLOAT, _in_float),
    (Tensor, lists.TENSOR_HALF, _in_half),
    (Tensor, lists.TENSOR_FLOAT, _in_float),
    (torch, lists.TORCH_PROMOTE, _in_widest),
    (torch, lists.TORCH_SEQUENCE, _sequence_in_widest),
    (Tensor, lists.TENSOR_PROMOTE, _in_widest),
    (Tensor, lists.TENSOR_SEQUENCE, _sequence_in_widest),
    (torch, _in_place(lists.TORCH_FLOAT), _refusing_half),
    (Tensor, _in_place(lists.TENSOR_FLOAT), _refusing_half_first),
    (Tensor, _in_place((*lists.TENSOR_HALF, *lists.TENSOR_PROMOTE)), _as_first),
    (nn.functional, lists.FUNCTIONAL_BANNED, _refusing_half),
)


def targets() -> tuple[tuple[Any, str], ...]:
    """Every attribute that O1 replaces on this torch, as (owner, name): what a fingerprint of torch has to cover."""
    named = [(owner, name) for owner, names, _ in STEPS for name in names if hasattr(owner, name)]
    return (*named, (rnn, "_VF"))


_MISSING = object()
_undo: list[Callable[[], None]] = []  # of the patch in force, last first; empty when torch is untouched


def patch(half: torch.dtype, device_type: str) -> Callable[[], None]:
    """Patch torch as apex's O1 does, for tensors on `device_type`; the function returned is `unpatch`."""
    if _undo:
        raise RuntimeError("torch is already patched by the O1 twin: one process a job")
    casts = Casts(half, device_type)
    for owner, names, wrap in STEPS:
        for name in names:
            if hasattr(owner, name):
                _replace(owner, name, wrap(casts, getattr(owner, name)))
    _replace(rnn, "_VF", _RnnFunctions(casts, vars(rnn)["_VF"]))
    return unpatch


def unpatch() -> None:
    """Put every attribute back as it was; the cached casts go with the wrappers. Nothing to do is no error."""
    while _undo:
        _undo.pop()()


@contextlib.contextmanager
def patched(half: torch.dtype, device_type: str) -> Iterator[None]:
    """`patch` for the length of a block."""
    patch(half, device_type)
    try:
        yield
    finally:
        unpatch()


def _replace(owner: Any, name: str, new: Any) -> None:
    # Most methods of torch.Tensor are inherited: to put them back is to delete ours.
    old = owner.__dict__.get(name, _MISSING)
    setattr(owner, name, new)
    _undo.append(functools.partial(_restore, owner, name, old))


def _restore(owner: Any, name: str, old: Any) -> None:
    if old is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, old)


class _RnnFunctions:
    """What recurrent modules see in place of torch's `_VF`: cells, LSTM and GRU in half. The plain RNN layers stay in
    float32: apex patches them in a table (`_rnn_impls`) that torch 2 no longer reads."""

    def __init__(self, casts: Casts, functions: Any) -> None:
        self._functions = functions
        for name in lists.RNN_CELLS:
            setattr(self, name, _in_half(casts, getattr(functions, name)))
        for name in lists.RNN_LAYERS:
            setattr(self, name, _layer_in_half(casts, getattr(functions, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._functions, name)


def _layer_in_half(casts: Casts, function: Function) -> Function:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        # The weights are a list: third, or fourth where the input is a packed sequence (batch sizes come second,
        # and the seventh argument is then the dropout rate and not the training flag).
        place = 2 if isinstance(args[6], bool) else 3
        new_args, _ = casts.arguments(args[:place], {}, casts.half)
        rest, _ = casts.arguments(args[place + 1 :], {}, casts.half)
        return function(*new_args, _flat_weights(casts, args[place]), *rest)

    return wrapper


def _flat_weights(casts: Casts, weights: list[Tensor]) -> list[Tensor]:
    """A layer's weights in half, anew at every call as in apex, and on CUDA in one buffer with the layout of the
    float32 ones: cuDNN would otherwise copy them together itself, with a warning."""
    size = weights[0].element_size()
    offsets = [(w.data_ptr() - weights[0].data_ptr()) // size for w in weights]
    total = sum(w.numel() for w in weights)
    if casts.device_type != "cuda" or any(
        not 0 <= o <= total - w.numel() for o, w in zip(offsets, weights, strict=True)
    ):
        return [casts.to(w, casts.half) for w in weights]
    buffer = weights[0].new_empty(total, dtype=casts.half)
    return [buffer.as_strided(w.shape, w.stride(), o).copy_(w) for o, w in zip(offsets, weights, strict=True)]
