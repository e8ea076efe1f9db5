"""The dtypes in which operators really run, seen where ATen receives them: below autocast and apex's patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tcsweep.evidence.facts import Dtypes, OperatorCount

# The operators that do a network's arithmetic. Under inference_mode the composite ones arrive (conv2d, linear, matmul),
# under no_grad what they are made of (convolution, addmm, mm, bmm); seen with torch 2.1, 2.11 and 2.14.
_NAMES = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "conv_tbc"),
    *("convolution", "_convolution", "cudnn_convolution", "cudnn_convolution_transpose"),
    *("cudnn_convolution_relu", "cudnn_convolution_add_relu", "mkldnn_convolution"),
    *("linear", "mkldnn_linear", "bilinear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm"),
    *("_addmm_activation", "einsum"),
    *("scaled_dot_product_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable",),
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
)
WATCHED = frozenset(f"aten.{name}" for name in _NAMES)


@dataclass(frozen=True)
class OperatorRow:
    """One call of one operator."""

    operator: str  # "aten.conv2d"
    dtypes: tuple[str, ...]  # of its floating tensor arguments in the order of the call: ("float16", "float16")
    layout: str | None = None  # of a convolution's input


def observe(forward: Callable[[Tensor], Any], x: Tensor) -> tuple[OperatorRow, ...]:
    """Every operator of one call of `forward`, in order. Runs in the caller's grad or inference mode."""
    observer = _Observer()
    with observer:
        forward(x)
    return tuple(observer.rows)


class Observed:
    """An iteration that is watched at its first call, and runs as it is afterwards."""

    def __init__(self, iteration: Callable[[], Any], source: str = "ATen operators of one call") -> None:
        self._iteration, self._source = iteration, source
        self.dtypes = Dtypes(source, missing="not run")

    def __call__(self) -> Any:
        """Run the iteration; what it returns."""
        if self.dtypes.missing is None:
            return self._iteration()
        observer = _Observer()
        with observer:
            value = self._iteration()
        self.dtypes = Dtypes(self._source, counted(observer.rows), observer.denormal_fraction)
        return value


def counted(rows: Iterable[OperatorRow]) -> tuple[OperatorCount, ...]:
    """The operators that do arithmetic, by dtypes, in the order first seen."""
    found = Counter((r.operator, r.dtypes, r.layout) for r in rows if r.operator in WATCHED)
    return tuple(OperatorCount(operator, dtypes, calls, layout) for (operator, dtypes, layout), calls in found.items())


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Writes each operator down, then lets it run as it would have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[OperatorRow] = []
        self._numbers = self._denormal = 0

    @property
    def denormal_fraction(self) -> float | None:
        """Of the numbers looked at; None where none were: on a GPU they cost nothing."""
        return self._denormal / self._numbers if self._numbers else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        floating = (*_floating(args), *_floating(tuple(kwargs.values())))
        name = func._schema.name.replace("::", ".")
        self.rows.append(OperatorRow(name, tuple(_name(t.dtype) for t in floating), _layout(name, floating)))
        if name in WATCHED:
            self._look_for_denormals(floating)
        return func(*args, **kwargs)

    def _look_for_denormals(self, tensors: Iterable[Tensor]) -> None:
        """In the first image, and the first of a weight's outputs: all of them would take longer than the iteration."""
        for tensor in tensors:
            if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16) and tensor.dim():
                some = tensor[:1]
                self._numbers += some.numel()
                self._denormal += int(((some != 0) & (some.abs() < torch.finfo(some.dtype).tiny)).sum())


def _layout(operator: str, tensors: tuple[Tensor, ...]) -> str | None:
    """The memory format of a convolution's images, None where both fit (one channel, or one pixel)."""
    if "conv" not in operator or not tensors or tensors[0].dim() != 4:
        return None
    nchw = tensors[0].is_contiguous()
    nhwc = tensors[0].is_contiguous(memory_format=torch.channels_last)
    return None if nchw == nhwc else "nchw" if nchw else "nhwc"


def _floating(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield value
        elif isinstance(value, (tuple, list)):
            yield from _floating(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
