"""What a device really reaches: matrix products and a copy, measured in about a second. `measure_rates` is for workers
only (it initialises CUDA); the rest imports no torch and may run in the sweep."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcsweep.store import write_json

LARGEST = 8192  # rows of the largest square product: larger ones are no faster on an H100
SMALLEST = 256
FIRST_TRY = 512  # rows of the product that tells how large the measured one may be
PRODUCT_S = 0.03  # what one measured product should take where it stays below LARGEST
ENOUGH_S = {"cuda": 0.1, "cpu": 0.15}  # repetitions of one product or copy take about as long
FEWEST = 3  # repetitions, however long one takes
OTHER_CACHE = 64 * 2**20  # bytes of the last-level cache where none is reported


@dataclass(frozen=True)
class Rates:
    """The best of several repetitions each: what a program that does nothing else can get."""

    gemm_tflops: dict[str, float]  # by arithmetic: "float32" (TF32 off), "tf32", "float16", "bfloat16"; 2 a multiply-add
    copy_gb_s: float  # read and written together, 10**9 bytes


@dataclass(frozen=True)
class RatesKey:
    """Where measured rates hold. Text, as the environment has it; None: not known."""

    uuid_or_cpu: str  # the GPU's UUID, or the processor's name
    driver: str | None
    power_mode: str | None
    torch: str


def cached_rates(key: RatesKey, folder: Path, measure: Callable[[], Rates]) -> Rates:
    """The rates kept in `folder` under this very key; without such, or where the file cannot be understood, measured
    now and kept, one JSON file a key, written atomically. A folder that cannot be written keeps nothing, silently: the
    rates are right all the same. Raises what `measure` raises."""
    digest = hashlib.sha256(json.dumps(asdict(key)).encode()).hexdigest()
    path = folder / f"rates-{digest[:16]}.json"
    kept = _read(path, key)
    if kept is not None:
        return kept
    rates = measure()
    with contextlib.suppress(OSError):
        write_json(path, {"key": asdict(key), "rates": asdict(rates)})
    return rates


def _read(path: Path, key: RatesKey) -> Rates | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != asdict(key):
            return None
        gemm = {str(name): float(value) for name, value in data["rates"]["gemm_tflops"].items()}
        rates = Rates(gemm, float(data["rates"]["copy_gb_s"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    figures = (*rates.gemm_tflops.values(), rates.copy_gb_s)
    return rates if all(math.isfinite(figure) and figure > 0 for figure in figures) else None


def measure_rates(device: str) -> Rates:
    """Square matrix products and a copy within the device's memory, on "cpu", "cuda" or "cuda:N"; about a second.
    An arithmetic that the device lacks is absent: tf32 before compute capability 8.0, on a CPU all but float32 and
    bfloat16. Random numbers, TF32's switches and autocast are afterwards as they were.
    Raises RuntimeError (torch's) where the device does not work or has no memory left."""
    import torch

    on = torch.device(device)
    with _plain_arithmetic(on), torch.inference_mode():
        gemm = {name: _gemm_tflops(name, on) for name in _arithmetics(on)}
        rates = Rates({name: rate for name, rate in gemm.items() if rate is not None}, _copy_gb_s(on))
        if on.type == "cuda":
            torch.cuda.empty_cache()  # the job that follows may need the memory, and reads what is reserved
    return rates


def _arithmetics(on: Any) -> tuple[str, ...]:
    import torch

    if on.type == "cpu":
        return ("float32", "bfloat16")
    tf32 = torch.cuda.get_device_capability(on) >= (8, 0)
    return ("float32", *(("tf32",) if tf32 else ()), "float16", "bfloat16")


def _gemm_tflops(arithmetic: str, on: Any) -> float | None:
    """None where the device cannot do it (bfloat16 before compute capability 8.0, in some versions of torch)."""
    import torch

    from tcsweep.precision import set_tf32

    set_tf32(arithmetic == "tf32")
    dtype = torch.float32 if arithmetic == "tf32" else getattr(torch, arithmetic)
    try:
        first = _product_s(FIRST_TRY if on.type == "cuda" else SMALLEST, dtype, on, enough_s=0.0)
        if first is None:
            return None
        rows = rows_for(first, FIRST_TRY if on.type == "cuda" else SMALLEST, _free_bytes(on) // 12)
        seconds = _product_s(rows, dtype, on, ENOUGH_S[on.type])
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        return None
    return None if seconds is None else 2 * rows**3 / seconds / 1e12
