"""How far outputs may lie from the float32 reference before a job is suspect: data, read by the parent, so no torch."""

from __future__ import annotations

from tcsweep.job import O_LEVELS

# Relative norm error. Observed on calibrated random weights at 224 pixels: float32 in another layout 1e-6, float16
# 3e-3, bfloat16 2.6e-2; TF32 keeps as many bits of a product's operands as float16 does.
LIMITS: dict[str, float] = {
    "fp32": 1e-4,
    "o0": 1e-4,
    "tf32": 5e-3,
    "fp16": 5e-3,
    "bf16": 3e-2,
    "int8": 1e-1,
    "fp8": 1e-1,
}
_BY_HALF_DTYPE = {"float16": "fp16", "bfloat16": "bf16"}


def limit(precision: str, half_dtype: str | None) -> float:
    """The largest relative norm error of a precision; of o1 to o3 by what their half was, "float16" or "bfloat16".
    Raises ValueError where there is none."""
    level = precision in O_LEVELS and precision not in LIMITS
    key = _BY_HALF_DTYPE.get(half_dtype or "") if level else precision
    if key not in LIMITS:
        raise ValueError(f"no limit of the error of {precision!r} with half dtype {half_dtype!r}")
    return LIMITS[key]
