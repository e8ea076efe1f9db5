"""The GPU kernels of one iteration: their names, their times, and what their names tell. Torch is imported when asked.

NVIDIA documents no scheme of kernel names. The rules below are its own libraries' habits; each says where it was
taken from: CUTLASS (its generator, `python/cutlass_library`), ATen (torch's sources, `aten/src/ATen`), or profiles
("seen": cuBLAS and cuDNN, whose kernels are closed). Where a name does not tell, the answer is unknown or None.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tcsweep.evidence.facts import Kernel, Kernels, Kind, Unit

Event = tuple[str, float, float]  # name, start_ms, duration_ms

PROFILED_ITERATIONS = 3  # the last is kept: the first ones pay for the profiler's own start
BUSY_MS = 100.0  # long enough that the clock is the timed blocks', too short to heat
BUSY_ITERATIONS = 200  # the launch queue holds about a thousand kernels: more would only wait there

_MEND = (
    "in a container start it with --cap-add=SYS_ADMIN, or on the host set "
    "`options nvidia NVreg_RestrictProfilingToAdminUsers=0` in /etc/modprobe.d and reboot, or run with sudo"
)
NO_KERNELS = f"the profiler saw no kernel: {_MEND}"

# --- which unit, which kind of work -----------------------------------------------------------------------------------

_CONV: Kind = "convolution/GEMM"
_INSTRUCTION = r"(?:^|_)[bcdhisz](?:884|1688|8816|8832|16816|16832|16864|161616|8x8x4|16x8x8|16x8x16)(?=[a-z_]|$)"
_T = r"(?:tf32|bf16|f16|f32|f64|i8|u8|i32|e4m3|e5m2)"  # xmma's tokens: <in><out>_<multiplied><accumulated>_<scaled>

# Order matters: the first that matches decides. CUDA-core marks come before tensor-core marks, because xmma and cutlass
# write both kinds of kernel, and a CUDA-core one is told only by its own mark ("_ffma_", "simt").
_RULES: tuple[tuple[str, Unit, Kind], ...] = (
    # Triton: names are the fused operators', not the instructions' (torch/_inductor/codegen/triton.py).
    (r"^triton_tem_\w*(?:attention|sdpa)", "unknown", "attention"),
    (r"^triton_(?:tem_|mm|bmm|convolution)", "unknown", _CONV),
    (r"^triton_poi_", "unknown", "elementwise"),
    (r"^triton_", "unknown", "other"),
    # The profiler's names of copies: "Memcpy DtoD (Device -> Device)"; nvprof's "[CUDA memcpy DtoH]".
    (r"^(?:\[CUDA )?[Mm]em(?:cpy|set)\b", "cuda-core", "copy"),
    # cuDNN (seen, v7 to v9) and TensorRT (genericReformat, cuInt8); cuBLAS transposes int8 and complex operands.
    (r"(?:nchw|nhwc|Nchw|Nhwc)\w{0,8}[Tt]o\w{0,8}(?:nchw|nhwc|ncx|Nchw|Nhwc)", "cuda-core", "layout conversion"),
    (r"(?:nhwc|nchw)AddPadding|convertTensor|tensorTransform", "cuda-core", "layout conversion"),
    (r"genericReformat|transpose_readWrite|genericTranspose", "cuda-core", "layout conversion"),
    # TensorRT's pooling is an xmma kernel too (seen): "sm50_xmma_pooling_coalescedC_NHWC_kMAX_3_False".
    (r"xmma_pooling|pooling_[fb]w", "cuda-core", "pooling"),
    # Memory-efficient attention. ATen, native/transformers/cuda/mem_eff_attention/gemm_kernel_utils.h, DefaultGemmType:
    # tensor cores for half from sm_70 and for float from sm_80 (three TF32 products each), else CUDA cores.
    (r"fmha_cutlass[FB]_(?:f32_\w*_sm(?:50|70|75)|\w+_sm50)", "cuda-core", "attention"),
    (r"fmha_cutlass[FB]_(?:f32_\w*_sm[89]\d|(?:f16|bf16)_)", "tensor-core", "attention"),
    # Flash attention, ATen's copy in `pytorch_flash` too: half only, all products by mma; these three only add up.
    (r"flash_fwd_splitkv_combine_kernel|flash_bwd_(?:dot_do_o|convert)", "cuda-core", "attention"),
    (r"flash_(?:fwd|bwd)\w*kernel|Flash_fwd_kernel_traits", "tensor-core", "attention"),
    (r"FlashAttn(?:Fwd|Bwd)Sm|FlashAttentionForwardSm(?:[89]\d|1\d\d)", "tensor-core", "attention"),
    # cuDNN's compiled at run time (seen): "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_...".
    (r"cudnn_generated_\w*sdpa_sm\d+_flash_[fb]prop", "tensor-core", "attention"),
    # TensorRT's (seen): "fmha_v2_flash_attention_fp16_...".
    (r"fmha_v\d\w*(?:_fp16|_bf16|_e4m3|_int8)", "tensor-core", "attention"),
    # CUDA cores, cuBLAS and cuDNN (seen, Maxwell to Hopper): "ffma" is the float32 multiply-add instruction.
    (r"_ffma(?:_|$)", "cuda-core", _CONV),
    (r"_simt_|OpClassSimt|MmaSimt", "cuda-core", _CONV),  # CUTLASS: its word for CUDA cores
    (r"(?<![a-z])[shi]cudnn", "cuda-core", _CONV),  # "volta_scudnn_128x64_relu_small_nn_v1"
    (r"convolve_[a-z]*gemm|convolve_common_engine", "cuda-core", _CONV),  # "implicit_convolve_sgemm<float, ..."
    (r"(?<![a-z0-9])g?[shcdz]gemm(?![a-z])", "cuda-core", _CONV),  # "volta_sgemm_64x64_nn", "volta_gcgemm_32x32_nt"
    (
        r"gemv|gemmSN_|gemmk1_|splitKreduce|(?<![a-z])dot_kernel|reduce_1Block_kernel",
        "cuda-core",
        _CONV,
    ),  # cuBLAS (seen)
    (r"^(?!.*(?:884|1688|16816|tensor\d|tensorop|hmma)).*winograd", "cuda-core", _CONV),  # cuDNN (seen)
    (
        r"(?:^|[ _:])fft\dd_|_fft(?:<|_|\b)|flip_filter|pointwise_mult_and_sum_complex",
        "cuda-core",
        _CONV,
    ),  # cuDNN: "fft2d_r2c_16x16"
    # Depthwise and grouped: ATen, native/cuda/DepthwiseConv2d.cu and DepthwiseConv3d.cu; cuDNN (seen).
    (r"conv_depthwise[23]d", "cuda-core", _CONV),
    (r"grouped_direct_kernel|dgrad_engine|[dw]grad\w*_alg\d|conv2d_c1_k1", "cuda-core", _CONV),
    # What a convolution does besides its products: index tables (cuDNN, seen), columns (ATen, native/cuda/im2col.cuh).
    (r"compute\w*Offsets|precompute_indices|init_device_workspace|im2col|col2im|vol2col|col2vol", "cuda-core", _CONV),
    # Tensor cores. cuBLAS and cuDNN name the instruction's shape, with h, s, i, d for what it adds up in (seen);
    # CUTLASS, python/cutlass_library/gemm_operation.py: "s1688gemm", "tensorop", "wmma_tensorop".
    (_INSTRUCTION, "tensor-core", _CONV),
    (r"tensorop|OpClass(?:Wmma)?TensorOp", "tensor-core", _CONV),
    (r"tensor\d+x\d+x\d+", "tensor-core", _CONV),  # xmma (seen): "tensor16x8x16"
    (r"(?<![a-z])(?:[bdhiq]?gmma|wgmma|[bdhiq]mma|tcgen05|utc[a-z]*mma)(?![a-z])", "tensor-core", _CONV),  # SASS, PTX
    (r"(?:^|_)nvjet_", "tensor-core", _CONV),  # cuBLAS (seen): Hopper and Blackwell
    (r"xmma\w*_warpgroupsize", "tensor-core", _CONV),  # a warp group is Hopper's unit of wgmma
    # CUTLASS, include/cute/arch/mma_sm*.hpp: names of the instructions in template arguments.
    (r"SM(?:7[05]|8\d|9\d|1[0-2]\d)_(?:\d+x\d+x\d+_|MMA_)[FSUBT]", "tensor-core", _CONV),
    # xmma: where no mark decides, what it multiplies in does: float32 has no tensor core, the others nothing else.
    (rf"xmma_\w*_{_T}{_T}_f32{_T}_", "cuda-core", _CONV),
    (rf"sm(?:[789]\d|1\d\d)_xmma_\w*_{_T}{_T}_(?:tf32|bf16|f16|i8|e4m3|e5m2)(?:{_T}|_)", "tensor-core", _CONV),
    (rf"sm(?:[789]\d|1\d\d)_xmma_\w*_(?:f16f16|bf16bf16)_{_T}_{_T}_", "tensor-core", _CONV),  # first layers
    # No rule below is of a kernel that could use tensor cores, but for the two marked unknown.
    # ATen, native/cuda/Normalization.cuh; cuDNN (seen): "bn_fw_inf_1C11_kernel_NCHW".
    (r"[Bb]atch_?[Nn]orm|(?<![a-z])bn_(?:fw|bw|pointwise)", "cuda-core", "batch norm"),
    # ATen, native/cuda/DilatedMaxPool2d.cu, AveragePool2d.cu, AdaptiveAveragePooling.cu.
    (r"(?i)(?:max|avg|average|adaptive)\w{0,12}pool", "cuda-core", "pooling"),
    # ATen, native/cuda/Copy.cu, Shape.cu (concatenation), Indexing.cu and TensorTransformations.cu (roll, flip).
    (r"_copy_kernel|CatArrayBatchedCopy|vectorized_gather|indexSelect|roll_cuda|flip_cuda", "cuda-core", "copy"),
    # Softmax, norms and sums: ATen, native/cuda/SoftMax.cu, layer_norm_kernel.cu, group_norm_kernel.cu, Reduce.cuh.
    (r"(?i)softmax|(?:layer|group|rms|instance)_?norm|rowwise|reduce_kernel|upsample", "cuda-core", "other"),
    # ATen, native/cuda/CUDALoops.cuh; cuDNN's and cuBLAS's bias and activation (seen).
    (r"elementwise|pointwise|CUDAFunctor|FillFunctor", "cuda-core", "elementwise"),
    (r"op_(?:generic_)?tensor_kernel|add_tensor_kernel|scalePackedTensor|activation_fw", "cuda-core", "elementwise"),
    (r"cublasLt::epilogue|(?<![a-z])scal_kernel|transform_bias_rescale_qkv", "cuda-core", "elementwise"),
    (r"(?i)attention|fmha|sdpa", "unknown", "attention"),
    (r"(?i)gemm|matmul|cutlass|xmma|[fdw]grad(?:_|\d)|fprop|(?<![a-z])conv(?:olution|olve|\dd|_)", "unknown", _CONV),
)
_COMPILED: tuple[tuple[re.Pattern[str], Unit, Kind], ...] = tuple((re.compile(p), u, k) for p, u, k in _RULES)


def classify(name: str) -> tuple[Unit, Kind]:
    """Which unit a kernel of this name computes on, and what kind of work it does; ("unknown", "other") if untold."""
    for pattern, unit, kind in _COMPILED:
        if pattern.search(name):
            return unit, kind
    return "unknown", "other"


# --- what it multiplies in --------------------------------------------------------------------------------------------

_GEMM = r"(?:gemm|cudnn|fprop|dgrad|wgrad)"
_TYPE_AFTER = rf"(?:^|_)s(?:1688|16816|161616){_GEMM}\w*?_"
_TYPE_BEFORE = r"_s(?:1688|16816|161616)[a-z]"

# The first that matches decides, here too. None is an answer: a true float32 kernel must never be called another.
_ARITHMETIC: tuple[tuple[str, str | None], ...] = (
    (r"^triton_", None),
    # Float32 put together from several products of a smaller type is float32 in all but its instructions: CUTLASS's
    # OpMultiplyAddFastF32 (examples/27_ampere_3xtf32_fast_accurate_tensorop_gemm), cuBLAS's BF16x9.
    (r"(?i)FastF32|3xtf32|tf32x3|bf16x\d|emulat", None),
    (r"fmha_cutlass[FB]_f16_", "float16"),
    (r"fmha_cutlass[FB]_bf16_", "bfloat16"),
    (r"fmha_cutlass[FB]_f32_", None),  # three TF32 products from sm_80, float32 below it
    (r"flash_(?:fwd|bwd)_\w*kernel.*(?<!b)half_t", "float16"),
    (r"flash_(?:fwd|bwd)_\w*kernel.*bfloat16_t", "bfloat16"),
    (r"flash|sdpa|fmha|[Aa]ttention", None),  # cuDNN writes "f16" for bfloat16, too
    # xmma: the second token's first half is what is multiplied.
    (rf"xmma_\w*_{_T}{_T}_tf32{_T}(?:_|\b)", "tf32"),
    (rf"xmma_\w*_{_T}{_T}_bf16{_T}(?:_|\b)", "bfloat16"),
    (rf"xmma_\w*_{_T}{_T}_f16{_T}(?:_|\b)", "float16"),
    (rf"xmma_\w*_{_T}{_T}_[iu]8{_T}(?:_|\b)", "int8"),
    (rf"xmma_\w*_{_T}{_T}_(?:e4m3|e5m2){_T}(?:_|\b)", "fp8"),
    (r"xmma_\w*_f32f32_f32f32_f32(?:_|\b)(?!.*tensor\d)", "float32"),
    (r"xmma_\w*_f16f16_f32_f16_\w*hmma", "float16"),  # cuDNN's first layers (seen)
    (r"xmma_", None),
    # An integer instruction, before the type of what it scales to: "turing_fp16_i8816cudnn_int8_...".
    (r"_i(?:8816|16832)(?=[a-z_])(?!.*int4)", "int8"),
    (r"_icudnn_int8", "int8"),
    # Volta's instruction, m8n8k4, and all that add up in half, know half only (PTX ISA, mma).
    (r"(?:^|_)[hs]884(?=[a-z_])|(?:^|_)h(?:1688|16816|161616)(?=[a-z_])", "float16"),
    # CUTLASS, gemm_operation.py, core_name: what it multiplies in, where that is not what it reads, then what it reads;
    # cuBLAS and cuDNN do the same (seen): "ampere_bf16_s16816gemm_bf16_128x64_...".
    (rf"_s(?:1688|16816)tf32{_GEMM}", "tf32"),
    (rf"_s(?:1688|16816)bf16{_GEMM}", "bfloat16"),
    (rf"_s(?:1688|16816)f16{_GEMM}", "float16"),
    (rf"{_TYPE_AFTER}tf32(?:_|\b)", "tf32"),
    (rf"{_TYPE_AFTER}bf16(?:_|\b)", "bfloat16"),
    (rf"{_TYPE_AFTER}fp?16(?:_|\b)", "float16"),
    (rf"_bf16{_TYPE_BEFORE}", "bfloat16"),
    (rf"_fp?16{_TYPE_BEFORE}", "float16"),
    (r"(?:turing|cutlass_75)_\w*s1688", "float16"),  # Turing's m16n8k8 knows half only
    # cuBLAS from sm_80 (seen, with TF32 on only). Without the architecture it may be CUTLASS's own three products.
    (r"cutlass_(?:8\d|9\d|1\d\d)_tensorop_s1688gemm_", "tf32"),
    # CUTLASS 3 (media/docs/cpp/profiler.md): "..._gemm_f16_f16_f32_f16_f32_..." reads A and B as these.
    (r"cutlass3x_\w*tf32gemm|cutlass3x_\w*_tf32_tf32_", "tf32"),
    (r"cutlass3x_\w*?_f16_f16_f(?:16|32)_", "float16"),
    (r"cutlass3x_\w*?_bf16_bf16_f32_", "bfloat16"),
    (r"cutlass3x_\w*?_(?:e4m3|e5m2)_(?:e4m3|e5m2)_", "fp8"),
    (r"cutlass3x_\w*?_s8_s8_s32_", "int8"),
    # cuBLAS's nvjet (seen): read, added up, written; h half, t bfloat16, q fp8. "sss" and the rest do not tell.
    (r"nvjet_(?:sm\d+_)?h[a-z]{2}_", "float16"),
    (r"nvjet_(?:sm\d+_)?t[a-z]{2}_", "bfloat16"),
    (r"nvjet_(?:sm\d+_)?qq[a-z]{3}_", "fp8"),
    # CUDA cores. A name that also says half reads half and multiplies in float32, or does not: it does not tell.
    (r"__half|half_t|bfloat16|fp16|_f16|int8", None),
    (r"(?<![a-z0-9])sgemm_|(?<![a-z])scudnn_|convolve_sgemm<float, (?:float|int|\d+),", "float32"),
)
_COMPILED_ARITHMETIC = tuple((re.compile(pattern), dtype) for pattern, dtype in _ARITHMETIC)


def arithmetic(name: str) -> str | None:
    """What the name itself says a kernel multiplies in, or None: made to contradict a label, so never a guess.

    One of "float32", "tf32", "float16", "bfloat16", "int8", "fp8". Float32 put together from several TF32 or bfloat16
    products is None.
    """
    for pattern, dtype in _COMPILED_ARITHMETIC:
        if pattern.search(name):
            return dtype
    return None


# --- one iteration ----------------------------------------------------------------------------------------------------


def union_ms(intervals: Sequence[tuple[float, float]]) -> float:
    """Milliseconds in which at least one of these (start_ms, end_ms) intervals runs."""
    total, covered_to = 0.0, -math.inf
    for start, end in sorted(intervals):
        if end > covered_to:
            total += end - max(start, covered_to)
            covered_to = end
    return total


def summarise(events: Sequence[Event]) -> Kernels:
    """The (name, start_ms, duration_ms) of one iteration by name, longest first; equal times by name."""
    calls = Counter(name for name, _, _ in events)
    device_ms = {name: math.fsum(d for n, _, d in events if n == name) for name in calls}
    names = sorted(calls, key=lambda name: (-device_ms[name], name))
    spans = [(start, start + duration) for _, start, duration in events]
    return Kernels(
        tuple(Kernel(name, calls[name], device_ms[name], *classify(name)) for name in names),
        union_ms=union_ms(spans),
        span_ms=max(end for _, end in spans) - min(start for start, _ in spans) if spans else None,
    )


def last_iteration(events: Sequence[Event], iterations: int) -> tuple[Event, ...] | None:
    """The events of the last of so many equal iterations, sorted by start; None where it cannot be told apart.

    Where the count divides evenly, the last share must hold the same names, each as often, as the one before it (their
    order may differ: streams run side by side). Else an event was lost or added, in an earlier iteration: the last
    one is then as long as the period of the sequence of names at its end, which must differ from an even share by less
    than a tenth and be the only such period. A net of one kernel over and over has many: None.
    """
    events = sorted(events, key=lambda event: event[1])
    count = len(events)
    if iterations == 1 or not count:
        return tuple(events) or None
    names = [name for name, _, _ in events]
    share = count // iterations
    if count % iterations == 0 and Counter(names[-share:]) == Counter(names[-2 * share : -share]):
        return tuple(events[-share:])
    near = range(math.ceil(0.9 * count / iterations), math.floor(1.1 * count / iterations) + 1)
    periods = [p for p in near if 0 < p <= count // 2 and names[-p:] == names[-2 * p : -p]]
    return tuple(events[-periods[0] :]) if len(periods) == 1 else None


# --- profiling --------------------------------------------------------------------------------------------------------


def profiled(iteration: Callable[[], Any], iteration_ms: float) -> Kernels:
    """The kernels of one iteration, seen by torch.profiler (CUPTI) on the current CUDA device.

    `iteration` enqueues one forward pass; `iteration_ms` is about how long one takes. What it raises goes through; what
    the profiler raises, or an empty profile, is `missing`, with its mend.
    """
    import torch

    if not torch.cuda.is_available():
        return Kernels(missing="no CUDA device: there are no GPU kernels to profile")
    # Un-profiled work first, enqueued without a wait between: an idle GPU would be profiled at another clock.
    for _ in range(_busy_iterations(iteration_ms)):
        iteration()
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():  # torch 2.11 warns of cycles, and there is one
            warnings.filterwarnings("ignore", message=".*Profiler clears events")
            profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            profiler.start()
    except Exception as error:
        return Kernels(missing=_failed(error))
    try:
        for _ in range(PROFILED_ITERATIONS):
            iteration()
        torch.cuda.synchronize()
    finally:
        stopped = _stop(profiler)
    if isinstance(stopped, str):
        return Kernels(missing=stopped)
    if not stopped:
        return Kernels(missing=NO_KERNELS)
    last = last_iteration(stopped, PROFILED_ITERATIONS)
    if last is None:
        return Kernels(missing=f"{len(stopped)} kernels in {PROFILED_ITERATIONS} iterations that are not alike")
    return summarise(last)


def _busy_iterations(iteration_ms: float) -> int:
    return max(1, min(BUSY_ITERATIONS, math.ceil(BUSY_MS / max(iteration_ms, 1e-3))))


def _stop(profiler: Any) -> list[Event] | str:
    """The profile's device events, or why there are none."""
    try:
        profiler.stop()
        return _device_events(profiler.profiler.kineto_results.events())
    except Exception as error:
        return _failed(error)


def _device_events(events: Sequence[Any]) -> list[Event]:
    """Kernels, copies and memsets among Kineto's events: not the CUDA API's calls, annotations or waits.

    Starts are from the first event: since 1970, milliseconds in a float are known to a quarter of a microsecond only.
    """
    found = [e for e in events if e.device_type().name == "CUDA" and not _NO_WORK.search(e.name())]
    first_ns = min((_ns(event, "start") for event in found), default=0)
    return [(e.name(), (_ns(e, "start") - first_ns) / 1e6, _ns(e, "duration") / 1e6) for e in found]


# Kineto's, on the device's timeline: an annotation spans kernels, a synchronisation waits for them.
_NO_WORK = re.compile(r"^(?:cu(?:da)?[A-Z]\w*|(?:Context|Event|Stream) (?:Sync\w*|Wait\w*).*|ProfilerStep#?.*)$")


def _ns(event: Any, what: str) -> int:
    """Kineto's `start` or `duration`: in nanoseconds, in older torch (2.1 among them) in microseconds only."""
    in_ns = getattr(event, f"{what}_ns", None)
    return int(in_ns()) if in_ns else int(getattr(event, f"{what}_us")()) * 1000


def _failed(error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "")
    return f"the profiler failed ({type(error).__name__}: {reason}); if it lacks the right to profile: {_MEND}"
