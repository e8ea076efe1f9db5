"""Datasheet peaks of NVIDIA GPUs at any clock, from what the driver reports. Pure; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

# "float32": CUDA cores. The others: dense products on tensor cores with the fastest accumulation that they have; where
# there are none, float16 runs on CUDA cores. "float16 on CUDA cores": there even where tensor cores are faster.
Arithmetic = Literal["float32", "float16", "bfloat16", "tf32", "int8", "fp8", "float16 on CUDA cores"]


@dataclass(frozen=True)
class SmRates:
    """FLOP (2 for a multiply-add) per clock and streaming multiprocessor."""

    float32: int  # CUDA cores
    float16_cuda: int | None  # CUDA cores, packed pairs; None: not known, and never faster than the tensor cores
    source: str
    tensor: Mapping[str, int] = field(default_factory=dict)  # tensor cores; an arithmetic that they lack is absent


# Sources. The guide's table counts multiply-adds: twice that in FLOP. A card's figures are divided by SMs and clock.
_DISCRETE = "tests/data/peaks_discrete.csv:"
_JETSON = "tests/data/peaks_jetson.csv:"
_GUIDE = "CUDA C++ Programming Guide, Throughput of Native Arithmetic Instructions"
_VOLTA = "; NVIDIA Tesla V100 GPU Architecture whitepaper: 64 multiply-adds per clock and tensor core, 8 per SM"
_AMPERE = "; NVIDIA A100 Tensor Core GPU Architecture whitepaper: 256 multiply-adds per clock and tensor core, 4 per SM"

# By compute capability. One capability may hold cards that NVIDIA slows (GeForce accumulates in float32 at half the
# rate of professional cards): the row is of the fastest, so that a peak is never too low. tests/data holds the
# cards' figures, each row with its provenance, against which the formula is checked.
PER_SM: dict[str, SmRates] = {
    "5.3": SmRates(256, 512, _GUIDE),
    "6.0": SmRates(128, 256, _GUIDE),
    "6.1": SmRates(256, 4, _GUIDE),
    "6.2": SmRates(256, 512, _GUIDE),
    "7.0": SmRates(128, 256, _GUIDE + _VOLTA, {"float16": 1024}),
    "7.2": SmRates(128, 256, f"{_GUIDE}; {_JETSON} Xavier", {"float16": 1024, "int8": 2048}),
    "7.5": SmRates(128, 256, f"{_GUIDE}; {_DISCRETE} T4", {"float16": 1024, "int8": 2048}),
    "8.0": SmRates(*(128, 512, _GUIDE + _AMPERE), {"float16": 2048, "bfloat16": 2048, "tf32": 1024, "int8": 4096}),
    "8.6": SmRates(
        *(256, None, f"{_GUIDE}; {_DISCRETE} RTX 3090, unverified"),
        {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048},
    ),
    "8.7": SmRates(
        *(256, 512, f"{_JETSON} Orin; bfloat16 as float16"),
        {"float16": 2048, "bfloat16": 2048, "tf32": 1024, "int8": 4096},
    ),
    "8.9": SmRates(
        *(256, None, f"{_DISCRETE} RTX 4090; L4, unverified"),
        {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048, "fp8": 2048},
    ),
    "9.0": SmRates(
        *(256, None, f"{_DISCRETE} H200; NVIDIA H100 Tensor Core GPU Architecture whitepaper: twice A100's"),
        {"float16": 4096, "bfloat16": 4096, "tf32": 2048, "int8": 8192, "fp8": 8192},
    ),
    "10.0": SmRates(
        *(256, None, f"{_DISCRETE} B200"),
        {"float16": 8192, "bfloat16": 8192, "tf32": 4096, "int8": 16384, "fp8": 16384},
    ),
    "10.3": SmRates(  # int8 was cut, and published figures for it differ by 30 times
        *(
            256,
            None,
            "NVIDIA's HGX B300 figures as in verda.com/blog/gb300-nvl72-architecture: B200's but for int8 and FP4",
        ),
        {"float16": 8192, "bfloat16": 8192, "tf32": 4096, "fp8": 16384},
    ),
    "11.0": SmRates(
        *(256, 512, f"{_JETSON} Thor; bfloat16 as float16, fp8 as int8"),
        {"float16": 8192, "bfloat16": 8192, "tf32": 4096, "int8": 16384, "fp8": 16384},
    ),
    "12.0": SmRates(  # float32 accumulation at twice GeForce's rate, as on professional cards of 8.6 and 8.9
        *(256, None, f"{_DISCRETE} RTX 5090"),
        {"float16": 1024, "bfloat16": 1024, "tf32": 512, "int8": 2048, "fp8": 2048},
    ),
}

# What may compute on a dtype, TF32's switch off: the fastest is the bound. Half data may be multiplied in float32, and
# is where a GPU has no faster way (6.1). TF32's switch does nothing before compute capability 8.0: float32 runs.
_ABLE: dict[str, tuple[Arithmetic, ...]] = {
    "float32": ("float32",),
    "tf32": ("tf32", "float32"),
    "float16": ("float16", "float16 on CUDA cores", "float32"),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("int8",),
    "fp8": ("fp8",),
    "float8_e4m3fn": ("fp8",),
    "float8_e5m2": ("fp8",),
}


def peak_flops(compute_capability: str, sm_count: int, sm_mhz_max: float, unit: Arithmetic) -> float | None:
    """FLOP/s of a GPU of `sm_count` multiprocessors at a clock of `sm_mhz_max` MHz: SMs x FLOP per clock and SM x
    clock. None where the capability is not in the table, has no unit for this arithmetic, or the unit's rate is not
    known. Raises ValueError for an unknown `unit`."""
    if unit not in get_args(Arithmetic):
        raise ValueError(f"{unit!r} is no arithmetic of {', '.join(get_args(Arithmetic))}")
    rates = PER_SM.get(compute_capability)
    per_sm = None if rates is None else _per_sm(rates, unit)
    return None if per_sm is None else sm_count * per_sm * sm_mhz_max * 1e6


def fastest_flops(compute_capability: str, sm_count: int, sm_mhz_max: float, dtype: str) -> float | None:
    """FLOP/s of the fastest unit that could do arithmetic on a dtype ("float32" with TF32 off, "tf32", "float16",
    "bfloat16", "int8", "fp8" or torch's two names of it): nothing can be faster at `sm_mhz_max` MHz.
    None where no unit is known for it; an unknown dtype has none."""
    peaks = [peak_flops(compute_capability, sm_count, sm_mhz_max, unit) for unit in _ABLE.get(dtype, ())]
    return max((peak for peak in peaks if peak is not None), default=None)


def _per_sm(rates: SmRates, unit: Arithmetic) -> int | None:
    if unit == "float32":
        return rates.float32
    if unit == "float16 on CUDA cores" or (unit == "float16" and not rates.tensor):
        return rates.float16_cuda
    return rates.tensor.get(unit)
