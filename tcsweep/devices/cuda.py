"""CUDA GPUs, asked through torch and NVML. For workers only: it initialises CUDA."""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any

from tcsweep.mistakes import first_line


def unusable(index: int) -> str | None:
    """Why GPU `index` cannot be used, in words; None where a small kernel runs on it."""
    import os

    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = f" (CUDA_VISIBLE_DEVICES={visible!r})" if visible is not None else ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = next(
            (first_line(str(w.message)) for w in caught if "CUDA" in str(w.message)), "no CUDA device is visible"
        )
        return said + hint
    count = torch.cuda.device_count()
    if index >= count:
        return f"cuda:{index} does not exist: {count} visible, cuda:0 to cuda:{count - 1}{hint}"
    try:
        torch.zeros(1, device=f"cuda:{index}").add_(1).item()
    except RuntimeError as error:
        return f"cuda:{index} is visible but no kernel runs on it: {first_line(str(error))}{hint}"
    return None


def facts(index: int) -> dict[str, Any]:
    """Environment fields of a usable GPU."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)  # torch 2.4 and newer
    gpu_uuid = None if uuid is None else f"GPU-{uuid}" if not str(uuid).startswith("GPU-") else str(uuid)
    cudnn = torch.backends.cudnn.version()
    return {
        "device_name": properties.name,
        "gpu_uuid": gpu_uuid,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sm_count": properties.multi_processor_count,
        "device_memory_mib": properties.total_memory // 2**20,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else cudnn_version(cudnn),
    }


def cudnn_version(number: int) -> str:
    """90400 is 9.4.0; before cuDNN 9 a version took four digits, 8902 is 8.9.2."""
    if number >= 10_000:
        return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"


def driver() -> str | None:
    """The driver's version, from NVML or else from the kernel module's own file."""
    with contextlib.suppress(Exception):  # NVML is missing, mute or mismatched in more ways than it has errors
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    with contextlib.suppress(OSError):
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else None
    return None
