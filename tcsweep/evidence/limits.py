"""How far outputs may be from those in float32, as relative norm of the difference. Imports no torch."""

from __future__ import annotations

# With random weights calibrated as `numerics` does; seen there: fp16 up to 3.1e-3, bf16 up to 2.6e-2, and 1.3e-6 for
# float32 in another layout.
LIMITS = {
    "fp32": 1e-4,
    "o0": 1e-4,
    "tf32": 5e-3,
    "fp16": 5e-3,
    "bf16": 3e-2,
    "int8": 1e-1,
    "fp8": 1e-1,
}
HALF_LIMITS = {"float16": LIMITS["fp16"], "bfloat16": LIMITS["bf16"]}


def limit(precision: str, half_dtype: str | None) -> float:
    """The largest relative error of a precision; o1 to o3 are held to that of their half dtype. Raises KeyError for a
    precision that is not known."""
    return LIMITS[precision] if precision in LIMITS else HALF_LIMITS[half_dtype or "bfloat16"]
