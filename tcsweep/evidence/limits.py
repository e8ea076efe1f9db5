"""How far outputs may lie from the float32 reference before a job is suspect: data, read by the parent, so no torch."""

from __future__ import annotations

from tcsweep.job import O_LEVELS

# Relative norm error. Observed at 224 pixels on calibrated random weights of resnet50, efficientnet_b0, densenet121,
# mobilenet_v3_large, vgg16, vit_b_16 and convnext_tiny on a CPU: float32 in another layout up to 8e-7, bfloat16 1.5e-2;
# float16 up to 1.3e-3 on the four of batch norm, and 6.5e-3 on mobilenet_v2 (on an H100). TF32 keeps as many bits of a
# product's operands as float16 does.
LIMITS: dict[str, float] = {
    "fp32": 1e-4,
    "o0": 1e-4,
    "tf32": 5e-3,
    "fp16": 1e-2,
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
