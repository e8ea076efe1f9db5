"""Which GPUs have tensor cores, what they multiply, and which layers can use them. Pure; no torch.

Sources: CUDA C++ Programming Guide, "Compute Capabilities" (int8: Xavier's 7.2 first); NVIDIA's "Matrix Multiplication
Background User's Guide", table 1, and "Convolutional Layers User's Guide" for the multiples of channels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tcsweep.evidence.facts import LayerWork

# From which compute capability on.
LEAST = {"float16": (7, 0), "int8": (7, 2), "bfloat16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
# Turing without tensor cores (TU116, TU117), told from its sisters by name only.
WITHOUT = re.compile(r"GTX 16\d\d|\bMX[45]50\b|\bT(400|500|550|600|1000|1200|2000)\b|\bCMP 30HX\b")
MULTIPLE = {"float16": 8, "bfloat16": 8, "tf32": 4, "int8": 16, "fp8": 16}  # of channels, 16 bytes
SHORT = {"float16": "fp16", "bfloat16": "bf16"}  # as the precisions are called
WIDE_FROM = (8, 0)  # from here on the fastest multiple is 8 times as large


@dataclass(frozen=True)
class Eligible:
    """Whether a layer can use tensor cores, and why, or how well."""

    can: bool
    reason: str


def multiplied(capability: tuple[int, ...] | str, name: str | None = None) -> tuple[str, ...]:
    """The dtypes that a GPU's tensor cores multiply ("float16", "int8", "bfloat16", "tf32", "fp8"), empty where it has
    none. `capability`: (9, 0) or "9.0". Raises ValueError for text that is none."""
    if isinstance(capability, str):
        capability = tuple(map(int, capability.split(".")))
    if WITHOUT.search(name or ""):
        return ()
    return tuple(dtype for dtype, least in LEAST.items() if capability >= least)


def eligible(layer: LayerWork, dtype: str, capability: str, name: str | None = None) -> Eligible:
    """Whether a layer could run on a GPU's tensor cores in a dtype ("float32" is the CUDA cores' own), by hardware and
    by shape. Raises ValueError for text that is no compute capability."""
    able = multiplied(capability, name)
    if not able:
        return Eligible(False, f"{name or 'this GPU'} has no tensor cores")
    if dtype not in able:
        others = "; tf32 would" if dtype == "float32" and "tf32" in able else ""
        return Eligible(False, f"sm_{capability.replace('.', '')} multiplies no {dtype} on tensor cores{others}")
    if layer.channels_in is None or layer.channels_out is None:
        return Eligible(True, "yes")
    each_in, each_out = layer.channels_in // layer.groups, layer.channels_out // layer.groups
    if layer.groups > 1 and each_in == 1:
        return Eligible(False, "depthwise: one channel a group leaves no matrix to multiply")
    multiple = MULTIPLE[dtype]
    said = f"{each_in} to {each_out} channels" + (" a group" if layer.groups > 1 else "")
    if each_in % multiple or each_out % multiple:
        how = "cuDNN folds or pads" if each_in < multiple and layer.groups == 1 else "padded"
        return Eligible(True, f"{said}: no multiple of {multiple}, {how}")
    wide = 8 * multiple
    if tuple(map(int, capability.split("."))) >= WIDE_FROM and (each_in % wide or each_out % wide):
        return Eligible(True, f"multiple of {multiple}; of {wide} would be the most efficient")
    return Eligible(True, "yes")
