"""The precisions: what each asks of the machine, and how a model is brought to it. Imports torch inside functions
only, because the parent process reads this table and must not pay for torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tcsweep.job import O_LEVELS, Environment
from tcsweep.mistakes import first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

TF32_CAPABILITY = (
    8,
    0,
)  # TF32 and bfloat16 units came with Ampere (CUDA C++ Programming Guide, "Compute Capabilities")
# The last tag that has amp (removed by NVIDIA/apex#1896); without isolation, since its setup.py imports torch.
APEX_INSTALL = "pip install --no-build-isolation git+https://github.com/NVIDIA/apex.git@25.05"
TWIN_HINT = "amp_backend=torch runs the torch-native twin"


@dataclass(frozen=True)
class Prepared:
    """A model brought to its precision: call `forward` with input of `input_dtype` on the job's device."""

    forward: Callable[[Tensor], Any]
    input_dtype: torch.dtype
    half_dtype: str | None = None  # what "half" meant: "float16" or "bfloat16"
    amp_backend: str | None = None  # what ran an O level: "apex" or "torch"
    amp_version: str | None = None
    notes: tuple[str, ...] = ()


Prepare = Callable[["nn.Module", "torch.device", "str | None"], Prepared]
Missing = Callable[[Environment, "str | None"], "str | None"]


@dataclass(frozen=True)
class Promise:
    """In which dtype a precision runs the operators that do arithmetic (`evidence.dtypes.WATCHED`)."""

    half: bool  # in the job's half dtype, else in float32
    also_float32: frozenset[str] = frozenset()  # operators that may run in float32 all the same

    @property
    def element_bytes(self) -> int:
        """Of one activation."""
        return 2 if self.half else 4

    def name(self, half_dtype: str | None) -> str:
        """The dtype: "float32", or what half means in this job."""
        return (half_dtype or "half") if self.half else "float32"

    def dtypes(self, operator: str, half_dtype: str | None) -> frozenset[str]:
        """All dtypes that an operator's arguments may have."""
        promised = {self.name(half_dtype)}
        return frozenset(promised | {"float32"} if operator in self.also_float32 else promised)


FLOAT32, HALF = Promise(half=False), Promise(half=True)
# apex's O1 casts what its lists name; fused attention, which they do not name, takes its inputs as they come.
O1 = Promise(
    half=True,
    also_float32=frozenset(
        f"aten.{name}"
        for name in (
            *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "scaled_dot_product_attention"),
            *("_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention"),
            *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_efficient_attention"),
            *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable"),
        )
    ),
)


@dataclass(frozen=True)
class Precision:
    """One way to compute. The caller sets TF32 (`set_tf32(precision.tf32)`) before it calls `prepare`, which changes
    the model in place, and for o1 torch as well: one process a job."""

    name: str
    tf32: bool
    amp: bool
    promise: Promise
    prepare: Prepare  # model, device, amp backend as resolved ("apex", "torch"; None outside the O levels)
    missing: Missing  # environment, amp backend: why this machine cannot do it, in one line; None: it can


def resolve_amp_backend(
    precision_name: str, asked: str | None, environment: Environment, engine: str = "eager"
) -> str | None:
    """What runs an O level here: the backend asked for, or for "auto" apex where it can; None for other precisions."""
    if precision_name not in O_LEVELS:
        return None
    if asked in ("apex", "torch"):
        return asked
    # apex's patched functions break compilers' tracing, and its cast cache a CUDA graph's memory: eager only.
    usable = environment.device.startswith("cuda") and environment.apex == "amp" and engine == "eager"
    return "apex" if usable else "torch"


def set_tf32(enabled: bool) -> None:
    """Let float32 convolutions and matrix products use TF32, or hold them to IEEE float32, whatever was set before
    and on every backend: on a CPU, "medium" would have oneDNN multiply in bfloat16."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 and 2.10 warn that the older switches will go
        if hasattr(torch.backends, "fp32_precision"):
            _set(torch.backends, "none")  # first: the older switches refuse to be read beside a disagreeing default
            _set(torch.backends.cudnn, "none")
        torch.set_float32_matmul_precision("high" if enabled else "highest")
        torch.backends.cuda.matmul.allow_tf32 = enabled
        torch.backends.cudnn.allow_tf32 = enabled
        for owner in _operator_switches():
            _set(owner, "tf32" if enabled else "ieee")


def _operator_switches() -> list[Any]:
    """The per-operator switches of torch 2.9 and later, which win over all others; none in earlier versions."""
    import torch

    owners: list[Any] = [torch.backends.cuda.matmul]
    owners += [getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")]
    owners += [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    return [owner for owner in owners if hasattr(owner, "fp32_precision")]


def _set(owner: Any, precision: str) -> None:
    owner.fp32_precision = precision


@contextmanager
def mixed_dtypes_explained(precision_name: str) -> Iterator[None]:
    """Around the first call: what to do where o1 leaves a function with operands of two dtypes (maxvit_t's einsum,
    which apex's lists do not name: apex raises as the twin does)."""
    try:
        yield
    except RuntimeError as error:
        said = first_line(str(error))
        if precision_name != "o1" or not ("same dtype" in said or "scalar type" in said):
            raise
        advice = "o1 casts only what apex's lists name, and here a function gets two dtypes: try o2, o3 or fp16"
        raise RuntimeError(f"{advice} ({said})") from error


def _nothing_missing(environment: Environment, amp_backend: str | None) -> str | None:
    return None


def _tf32_missing(environment: Environment, amp_backend: str | None) -> str | None:
    if not environment.device.startswith("cuda"):
        return "tf32 needs an NVIDIA GPU: a CPU has no TF32"
    capability = environment.compute_capability
    # An unread capability is no reason to skip: the evidence shows what ran.
    if capability is not None and tuple(int(part) for part in capability.split(".")) < TF32_CAPABILITY:
        return f"tf32 needs compute capability 8.0 or later, this GPU has {capability}"
    return None


def _apex_missing(environment: Environment, amp_backend: str | None) -> str | None:
    if amp_backend != "apex":
        return None
    if not environment.device.startswith("cuda"):
        return f"apex levels need CUDA ({TWIN_HINT})"
    version = f" {environment.apex_version}" if environment.apex_version else ""
    reasons = {
        "none": f"apex is not installed: `{APEX_INSTALL}` ({TWIN_HINT})",
        "not-nvidia": f"this is PyPI's `apex`{version} (an unrelated project), not NVIDIA's: `pip uninstall apex`, "
        f"then `{APEX_INSTALL}` ({TWIN_HINT})",
        "without-amp": f"this apex has no amp: NVIDIA removed it after 25.05 (commit cb65b8ed); `{APEX_INSTALL}` "
        f"has it ({TWIN_HINT})",
    }
    return reasons.get(environment.apex)


_patched_torch_allowed: list[bool] = []  # holds something where a process is meant to hold several jobs


def allow_patched_torch() -> None:
    """From now on, let jobs of this process run with what earlier ones left behind: that is what is to be shown."""
    _patched_torch_allowed[:] = [True]


def _refuse_patched_torch() -> None:
    """An O1 level leaves torch's functions wrapped, so anything prepared after it in the process would lie."""
    import torch

    if _patched_torch_allowed:
        return
    if hasattr(torch.nn.functional.conv2d, "__wrapped__"):  # a builtin has none; apex and the twin leave one
        raise RuntimeError("torch's functions are patched in this process (an O1 level ran here): use a fresh process")


def _float32(model: nn.Module, device: torch.device, amp_backend: str | None) -> Prepared:
    from tcsweep.precision import float32

    _refuse_patched_torch()
    return float32.prepare(model, device)


def _half(dtype_name: str) -> Prepare:
    def prepare(model: nn.Module, device: torch.device, amp_backend: str | None) -> Prepared:
        from tcsweep.precision import half

        _refuse_patched_torch()
        return half.prepare(model, device, dtype_name)

    return prepare


def _level(name: str) -> Prepare:
    def prepare(model: nn.Module, device: torch.device, amp_backend: str | None) -> Prepared:
        from tcsweep.precision import apex_amp, twin

        backends = {"apex": apex_amp.prepare, "torch": twin.prepare}
        if amp_backend not in backends:
            raise ValueError(f"amp backend {amp_backend!r} is not one of {', '.join(backends)}: resolve it first")
        _refuse_patched_torch()
        return backends[amp_backend](model, device, name)

    return prepare


PRECISIONS: dict[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp32", tf32=False, amp=False, promise=FLOAT32, prepare=_float32, missing=_nothing_missing),
        Precision("tf32", tf32=True, amp=False, promise=FLOAT32, prepare=_float32, missing=_tf32_missing),
        *(
            Precision(n, tf32=False, amp=True, promise=promise, prepare=_level(n), missing=_apex_missing)
            for n, promise in zip(O_LEVELS, (FLOAT32, O1, HALF, HALF), strict=True)
        ),
        Precision("fp16", tf32=False, amp=False, promise=HALF, prepare=_half("float16"), missing=_nothing_missing),
        Precision("bf16", tf32=False, amp=False, promise=HALF, prepare=_half("bfloat16"), missing=_nothing_missing),
    )
}
