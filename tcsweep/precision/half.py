"""fp16 and bf16: the plain cast, `model.to(dtype)`, with input already in that dtype."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from tcsweep.devices.cpu import BFLOAT16_INSTRUCTIONS, parse_flags
from tcsweep.precision import TF32_CAPABILITY, Prepared

# Values of ONEDNN_MAX_CPU_ISA under which oneDNN may not use them (oneDNN guide, "CPU Dispatcher Control").
ISA_WITHOUT_BFLOAT16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)
FLOAT16_ON_CPU = "float16 on a CPU can be many times slower than float32 (24 times was seen): bf16 is the CPU's 16-bit"
EMULATED_ON_GPU = "bfloat16 is emulated on this GPU"
EMULATED_ON_CPU = "this CPU has no bfloat16 instructions: emulated"
LIMITED_ON_CPU = "oneDNN is held back from this CPU's bfloat16 instructions (ONEDNN_MAX_CPU_ISA): emulated"


def prepare(model: nn.Module, device: torch.device, dtype_name: str) -> Prepared:
    """The model in "float16" or "bfloat16", with input in the same."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    return Prepared(
        forward=model.to(device, dtype),
        input_dtype=dtype,
        half_dtype=dtype_name,
        notes=half_notes(device, dtype),
    )


def half_notes(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """What a person should know before judging the speed of a 16-bit dtype on this device."""
    if device.type == "cuda":
        emulated = dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < TF32_CAPABILITY
        return (EMULATED_ON_GPU,) if emulated else ()
    if dtype == torch.float16:
        return (FLOAT16_ON_CPU,)
    if not cpu_features() & BFLOAT16_INSTRUCTIONS:
        return (EMULATED_ON_CPU,)
    return (LIMITED_ON_CPU,) if _max_isa() in ISA_WITHOUT_BFLOAT16 else ()


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the first CPU, by Linux's names; empty where they cannot be read."""
    try:
        return parse_flags(cpuinfo.read_text(errors="replace"))
    except OSError:
        return frozenset()


def _max_isa() -> str:
    # DNNL_ is oneDNN's earlier prefix, still honoured.
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
