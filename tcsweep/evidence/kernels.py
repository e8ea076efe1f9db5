"""GPU kernels: what their names say, and one profiled iteration. Imports torch inside functions only, since rules that
judge names run in the sweep's process."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from tcsweep.evidence.facts import Kernel, Kernels, Kind, Unit
from tcsweep.mistakes import first_line

BUSY_S = 0.1  # of un-profiled work before the profile, so that the clock is that of the timed blocks
BUSY_ITERATIONS = 200
ITERATIONS = 3  # profiled; the last one counts
MEND = (
    "in a container run it with --cap-add=SYS_ADMIN, or as root on the host set "
    "`options nvidia NVreg_RestrictProfilingToAdminUsers=0` in /etc/modprobe.d"
)

Event = tuple[str, float, float]  # name, start and duration in milliseconds


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Kinds, the first that fits. Names of torch's own kernels from its ATen/native/cuda sources; of cuDNN's, cuBLAS's and
# CUTLASS's as profilers show them.
KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("copy", _any(r"^memcpy", r"^memset", r"\[cuda mem(cpy|set)", r"copy_kernel", r"direct_copy", r"catarraybatched")),
    (
        "layout conversion",
        _any(r"nchwtonhwc", r"nhwctonchw", r"nhwcaddpadding", r"tensortransform", r"transpose_readwrite", r"ncxhw"),
    ),
    ("attention", _any(r"flash_?(fwd|attn|_kernel)", r"fmha", r"flash::", r"_sdpa_", r"_attention", r"mha_fwd")),
    ("batch norm", _any(r"batch_?norm", r"bn_fw", r"bn_inf", r"bnorm")),
    ("pooling", _any(r"max_?pool", r"avg_?pool", r"adaptive.*pool", r"pooling_fw", r"average_pool")),
    (
        "convolution/GEMM",
        _any(
            r"gemm", r"gemv", r"gemmk1", r"conv", r"fprop", r"dgrad", r"wgrad", r"xmma", r"nvjet", r"cudnn", r"cutlass",
            r"winograd", r"fft[12]d", r"regular_fft", r"vector_fft", r"flip_filter", r"splitkreduce", r"^dot_kernel",
            r"compute_gemm_pointers", r"computeoffsets", r"implicit_", r"s884", r"s1688", r"s16816",
        ),
    ),
    ("elementwise", _any(r"elementwise", r"vectorized_", r"unrolled_", r"pointwise", r"activation_fw", r"op_tensor")),
)  # fmt: skip

# Units of convolutions, GEMMs and attention, the first that fits: CUDA cores before tensor cores, since names of the
# former hold signs of the latter (sm80_xmma_gemm_f32f32_..._ffma_ has "xmma", which other lists take for tensor cores).
UNITS: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    # FFMA is the float32 instruction; "simt" is CUTLASS's word for CUDA cores; cuDNN's scudnn is its float32 SASS.
    ("cuda-core", _any(r"_ffma_", r"simt", r"scudnn(?!_fp16)(?!.*(884|1688|16816))", r"convolve_sgemm", r"fft")),
    ("cuda-core", _any(r"sgemm(?!.*(884|1688|16816))", r"winograd(?!.*(884|1688|16816|tensor))")),
    (
        "cuda-core",
        _any(r"depthwise", r"gemv"),
    ),
    # HMMA and IMMA shapes of Volta (884), Turing (1688, 8816) and Ampere (16816, 16832, 1688 in TF32).
    ("tensor-core", _any(r"[hisdb](884|1688|8816|16816|16832|16864)", r"tensorop", r"tensor\d+x\d+x\d+")),
    # Hopper's warpgroup instructions, Blackwell's tcgen05 ("utcmma"), and the older ones by name.
    ("tensor-core", _any(r"[hiqb]gmma", r"wgmma", r"hmma", r"imma", r"qmma", r"utcmma", r"tcgen05")),
    # cuBLAS's kernels for Hopper and later, all on warpgroup instructions; xmma's by the types of their operands.
    ("tensor-core", _any(r"nvjet_", r"xmma.*_(f16f16|bf16bf16|tf32f32|i8i8|e4m3|e5m2)", r"_warpgroupsize")),
    ("cuda-core", _any(r"_f32f32_f32f32_")),
    # FlashAttention is written with CUTLASS's MMA for sm_80 and later; torch's memory-efficient one says its type.
    ("tensor-core", _any(r"flash_fwd", r"pytorch_flash", r"fmha_cutlassf_(f16|bf16)", r"_sdpa_.*(flash|mma)")),
    ("cuda-core", _any(r"fmha_cutlassf_f32_aligned.*sm(50|70|75)")),
)
ARITHMETIC_KINDS = ("convolution/GEMM", "attention")


def classify(name: str) -> tuple[Unit, Kind]:
    """Which unit a kernel's arithmetic is on, and what kind of work it is, by its name. Other kinds than convolution,
    GEMM and attention never use tensor cores. Triton's names tell neither."""
    kind: Kind = next((kind for kind, pattern in KINDS if pattern.search(name)), "other")
    if kind in ARITHMETIC_KINDS:
        return next((unit for unit, pattern in UNITS if pattern.search(name)), "unknown"), kind
    return ("unknown" if _is_triton(name) else "cuda-core"), kind


def _is_triton(name: str) -> bool:
    return name.startswith("triton_")


# What a kernel's own name says that it multiplies in, the first that fits; a name that only might say so says nothing,
# since a job labelled float32 is called a lie by it.
ARITHMETIC: tuple[tuple[str | None, re.Pattern[str]], ...] = (
    ("float32", _any(r"_ffma_", r"simt_sgemm", r"scudnn(?!.*(fp16|884|1688|16816))", r"convolve_sgemm<float")),
    ("tf32", _any(r"tf32", r"(8\d|sm8\d|ampere)_tensorop_s1688(gemm|fprop)(?!.*(f16|bf16))")),
    ("bfloat16", _any(r"bf16", r"__nv_bfloat16", r"bfloat16")),
    ("float16", _any(r"xmma.*_f16f16", r"[hs]884", r"[_s]f16_s(1688|16816)", r"h(1688|16816)", r"_fp16_", r"_f16_")),
    ("float16", _any(r"s1688cudnn_fp16", r"nvjet_(sm\d+_)?h[hs][hs]_", r"turing_.*s1688", r"__half")),
    ("int8", _any(r"i8i8", r"i(8816|16832)", r"imma")),
    ("float32", _any(r"_f32f32_f32f32_", r"\bsgemm", r"_sgemm_")),
)


def arithmetic(name: str) -> str | None:
    """What a kernel's name says that it multiplies in: "float32", "tf32", "float16", "bfloat16", "int8"; else None."""
    return next((dtype for dtype, pattern in ARITHMETIC if pattern.search(name)), None)


def union_ms(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of (start, end) pairs."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def summarise(events: Sequence[Event]) -> Kernels:
    """The kernels of one iteration by name, longest first."""
    if not events:
        return Kernels(missing="no kernel was seen")
    found: dict[str, list[float]] = {}
    for name, _, duration in events:
        found.setdefault(name, []).append(duration)
    kernels = [Kernel(name, len(ms), sum(ms), *classify(name)) for name, ms in found.items()]
    spans = [(start, start + duration) for _, start, duration in events]
    return Kernels(
        kernels=tuple(sorted(kernels, key=lambda k: -k.device_ms)),
        union_ms=union_ms(spans),
        span_ms=max(end for _, end in spans) - min(start for start, _ in spans),
    )


def last_iteration(events: Sequence[Event], iterations: int) -> list[Event]:
    """The events of the last of some equal iterations; [] where they cannot be told apart."""
    ordered = sorted(events, key=lambda event: event[1])
    size, rest = divmod(len(ordered), iterations)
    if rest or not size:
        return []
    last = ordered[-size:]
    names = [name for name, _, _ in last]
    before = [name for name, _, _ in ordered[-2 * size : -size]]
    return last if iterations == 1 or sorted(names) == sorted(before) else []


def profiled(iteration: Callable[[], Any], iteration_ms: float) -> Kernels:
    """Profile one iteration on the GPU, after others that bring its clock to where it was. Never raises for what the
    profiler does: what is missing is said, with what mends it."""
    import torch

    try:
        for _ in range(max(2, min(BUSY_ITERATIONS, int(BUSY_S / (iteration_ms / 1e3))))):
            iteration()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(ITERATIONS):
                iteration()
            torch.cuda.synchronize()
        events = _device_events(profile)
    except Exception as error:
        return Kernels(missing=f"the profiler failed: {first_line(str(error)) or type(error).__name__}; {MEND}")
    if not events:
        return Kernels(missing=f"the profiler saw no kernel: {MEND}")
    # What was queued before the profile can run on into it: only whole iterations from the end are counted.
    for extra in itertools.count():
        seen = last_iteration(events[extra:], ITERATIONS)
        if seen or extra > len(events) // 2:
            break
    return summarise(seen) if seen else Kernels(missing="the profiled iterations could not be told apart")


def _device_events(profile: Any) -> list[Event]:
    """Kernels, copies and fills on the device, by start."""
    found = []
    for event in profile.profiler.kineto_results.events():
        if "CUDA" not in str(event.device_type()) or _is_annotation(event):
            continue
        found.append((str(event.name()), _ms(event, "start"), _ms(event, "duration")))
    return sorted(found, key=lambda one: one[1])


def _is_annotation(event: Any) -> bool:
    asked = getattr(event, "is_user_annotation", None)
    return bool(asked and asked())


def _ms(event: Any, what: str) -> float:
    """torch 2.1 tells microseconds, later ones nanoseconds."""
    nanoseconds = getattr(event, f"{what}_ns", None)
    return float(nanoseconds()) / 1e6 if nanoseconds else float(getattr(event, f"{what}_us")()) / 1e3
