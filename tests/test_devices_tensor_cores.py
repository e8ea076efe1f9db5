"""Which GPUs have tensor cores, and which layers can use them."""

from __future__ import annotations

import pytest

from tcsweep.devices.tensor_cores import eligible, multiplied
from tcsweep.evidence.facts import LayerWork


def conv(channels_in: int, channels_out: int, groups: int = 1) -> LayerWork:
    sizes = {"channels_in": channels_in, "channels_out": channels_out, "groups": groups, "kernel": (3, 3)}
    return LayerWork("c", "convolution", 1e9, 1, 1, 1, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "name", "dtypes"),
    [
        ("5.3", "NVIDIA Tegra X1", ()),
        ("6.2", None, ()),
        ("7.2", "Xavier", ("float16", "int8")),
        ("7.5", "NVIDIA GeForce GTX 1660", ()),
        ("7.5", "NVIDIA T1000", ()),
        ("7.5", "Tesla T4", ("float16", "int8")),
        ("8.7", "Orin", ("float16", "int8", "bfloat16", "tf32")),
        ("9.0", "NVIDIA H100", ("float16", "int8", "bfloat16", "tf32", "fp8")),
    ],
)
def test_what_a_gpus_tensor_cores_multiply(capability: str, name: str | None, dtypes: tuple[str, ...]) -> None:
    assert multiplied(capability, name) == dtypes
    assert multiplied(tuple(map(int, capability.split("."))), name) == dtypes


@pytest.mark.parametrize(
    ("layer", "dtype", "capability", "can", "reason"),
    [
        (conv(256, 512), "float16", "9.0", True, "yes"),
        (conv(256, 512), "float16", "7.2", True, "yes"),
        (conv(64, 72), "float16", "9.0", True, "multiple of 8; of 64 would be the most efficient"),
        (conv(64, 72), "float16", "7.5", True, "yes"),
        (conv(3, 64), "float16", "7.2", True, "3 to 64 channels: no multiple of 8, cuDNN folds or pads"),
        (conv(64, 1001), "float16", "8.0", True, "64 to 1001 channels: no multiple of 8, padded"),
        (conv(128, 128, 32), "float16", "9.0", True, "4 to 4 channels a group: no multiple of 8, padded"),
        (conv(32, 32, 32), "float16", "9.0", False, "depthwise: one channel a group leaves no matrix to multiply"),
        (conv(12, 12), "tf32", "8.0", True, "multiple of 4; of 32 would be the most efficient"),
        (conv(256, 512), "bfloat16", "7.2", False, "sm_72 multiplies no bfloat16 on tensor cores"),
        (conv(256, 512), "tf32", "7.5", False, "sm_75 multiplies no tf32 on tensor cores"),
        (conv(256, 512), "float32", "9.0", False, "sm_90 multiplies no float32 on tensor cores; tf32 would"),
        (conv(256, 512), "float32", "7.2", False, "sm_72 multiplies no float32 on tensor cores"),
        (conv(256, 512), "float16", "5.3", False, "this GPU has no tensor cores"),
        (LayerWork("a", "attention", 1e9, 1, 1, 0), "float16", "9.0", True, "yes"),
    ],
)
def test_a_layer_is_eligible_by_hardware_and_by_shape(
    layer: LayerWork, dtype: str, capability: str, can: bool, reason: str
) -> None:
    found = eligible(layer, dtype, capability)
    assert (found.can, found.reason) == (can, reason)


def test_a_gtx_16_is_named_as_one_without_tensor_cores() -> None:
    found = eligible(conv(256, 256), "float16", "7.5", "NVIDIA GeForce GTX 1650")
    assert (found.can, found.reason) == (False, "NVIDIA GeForce GTX 1650 has no tensor cores")
