"""Results on a fake H100 with all their evidence, without a fault: tests spoil one fact of it each."""

from __future__ import annotations

import dataclasses
from typing import Any

from tcsweep.evidence.facts import (
    Arithmetic,
    DeviceSample,
    DeviceState,
    Dtypes,
    Evidence,
    HostState,
    Kernel,
    Kernels,
    LayerWork,
    Numerics,
    OperatorCount,
    Work,
)
from tcsweep.evidence.kernels import classify
from tcsweep.job import Environment, Measure, Result, Round

from .sweeps import a_job, a_result

FP32_CONVOLUTION = (
    "sm80_xmma_fprop_implicit_gemm_indexed_f32f32_f32f32_f32_nhwckrsc_nchw_tilesize128x64x8_stage3_ffma_kernel"
)
TF32_CONVOLUTION = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_tensor16x8x8"
HALF_CONVOLUTION = "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_warpgroupsize1x1x1_g1_strided"
BFLOAT16_CONVOLUTION = "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_warpgroupsize1x1x1_g1_strided"
WINOGRAD = "void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>(WinogradDataParams<float, float>)"
FFT = "void fft2d_r2c_32x32<float, false, 0u, false>(float2*, float const*)"
FLOAT32_ATTENTION = "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention)"
RELU = "void at::native::vectorized_elementwise_kernel<4, relu>"
CONVOLUTION = {
    "float32": FP32_CONVOLUTION,
    "tf32": TF32_CONVOLUTION,
    "float16": HALF_CONVOLUTION,
    "bfloat16": BFLOAT16_CONVOLUTION,
}

HALF = {"o1": "float16", "o2": "float16", "o3": "float16", "fp16": "float16", "bf16": "bfloat16"}
CPU = Environment(device="cpu", cpu_threads=16)
OFF = Arithmetic(tf32_convolution=False, tf32_matmul=False, matmul_precision="highest", autocast=(), patched="")
TF32_ON = Arithmetic(tf32_convolution=True, tf32_matmul=True, matmul_precision="high", autocast=(), patched="")
O1_PATCHED = dataclasses.replace(OFF, patched="216 functions, 3937b47d")
WORK = Work(
    (LayerWork("conv1", "convolution", 8e9, 150_000, 800_000, 9_000), LayerWork("fc", "linear", 4e6, *(1,) * 3))
)
RATES = {"float32": 50e12, "tf32": 350e12, "float16": 600e12, "bfloat16": 600e12, "copy": 2.5e12}


def operators(dtype: str, conv2d: int = 53, linear: int = 1) -> tuple[OperatorCount, ...]:
    """A network's, all with arguments of one dtype."""
    return OperatorCount("aten.conv2d", (dtype,) * 2, conv2d), OperatorCount("aten.linear", (dtype,) * 3, linear)


def kernels(*names: str, union_ms: float = 7.7, span_ms: float = 7.75) -> Kernels:
    """An iteration that these kernels share evenly."""
    each = union_ms / len(names)
    return Kernels(tuple(Kernel(n, 1, each, *classify(n)) for n in names), union_ms=union_ms, span_ms=span_ms)


def samples(*sm_mhz: float | None, timed_s: float = 0.65, **more: Any) -> tuple[DeviceSample, ...]:
    """Of the device, evenly over the timed blocks."""
    return tuple(DeviceSample(timed_s * (n + 0.5) / len(sm_mhz), mhz, **more) for n, mhz in enumerate(sm_mhz))


STATE = DeviceState("NVML", samples(*[1965.0] * 6), 0.65, 1980.0, 700.0, 0.0, "processes", 0.0)


def evidence(precision: str, **changes: Any) -> Evidence:
    """What a job of this precision should show."""
    dtype = HALF.get(precision, "float32")
    arithmetic = "tf32" if precision == "tf32" else dtype
    facts: dict[str, Any] = {
        "dtypes": Dtypes("ATen operators of one call", operators(dtype)),
        "kernels": kernels(CONVOLUTION[arithmetic], RELU),
        "numerics": Numerics(64, 1e-6, 1.0, 1.0, 60),
        "work": WORK,
        "rates": RATES,
        "seconds": {"kernels": 0.5},
    }
    return Evidence(**(facts | changes))


def clean(
    precision: str = "fp32",
    img_s: float = 1000.0,
    *,
    batch: int = 8,
    round_changes: dict[str, Any] | None = None,
    environment: Environment | None = None,
    job: dict[str, Any] | None = None,
    **changes: Any,
) -> Result:
    """A result of three rounds at 8 ms an iteration, without a fault but for `changes` to its evidence and
    `round_changes` to every round."""
    result = a_result(a_job(precision, batch=batch, **(job or {})), img_s)
    if environment is not None:
        result = dataclasses.replace(result, environment=environment)
    rounds = tuple(_clean(one, precision, round_changes or {}) for one in result.rounds)
    first = dataclasses.replace(rounds[0], evidence=evidence(precision, **changes))
    return dataclasses.replace(result, rounds=(first, *rounds[1:]))


def _clean(one: Round, precision: str, changes: dict[str, Any]) -> Round:
    timed_s = sum(one.block_wall_ms) / 1e3 * 1.005
    switches = {"tf32": TF32_ON, "o1": O1_PATCHED}.get(precision, OFF)
    facts: dict[str, Any] = {
        "half_dtype": HALF.get(precision),
        "stage_s": {**one.stage_s, "throughput": timed_s},
        "timed_from": 100.0,
        "timed_until": 100.0 + timed_s,
        "arithmetic_before": switches,
        "arithmetic_after": switches,
        "device_state": STATE,
        "host_state": HostState(affinity=32, threads=16, foreign_load=0.0),
    }
    return dataclasses.replace(one, **(facts | changes))


def on_cpu(precision: str = "fp32", half: str = "bfloat16", *, round_changes: dict[str, Any] | None = None, **changes):
    """The same on a CPU: no device times, no kernels, half is bfloat16."""
    seen = half if precision in HALF else "float32"
    facts = {
        "dtypes": Dtypes("ATen operators of one call", operators(seen)),
        "kernels": Kernels(missing="a CPU runs no GPU kernels"),
    }
    cpu_round = {"block_device_ms": None, "device_state": None, "half_dtype": half if precision in HALF else None}
    return clean(
        precision,
        round_changes=cpu_round | (round_changes or {}),
        environment=CPU,
        job={"device": "cpu", "measure": Measure(rounds=3)},
        **(facts | changes),
    )


def in_round(result: Result, number: int, **changes: Any) -> Result:
    """The result with one of its rounds changed."""
    rounds = tuple(dataclasses.replace(r, **changes) if r.number == number else r for r in result.rounds)
    return dataclasses.replace(result, rounds=rounds)
