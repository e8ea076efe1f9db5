"""What a device really reaches: matrix products and a copy, measured in about a second. `measure_rates` is for workers
only (it initialises CUDA); the rest imports no torch and may run in the sweep."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcsweep.store import write_json

MIB = 2**20
ROWS = {"cuda": 512, "cpu": 256}  # of the first, small product
MOST_ROWS = 8192  # an H100 does larger products no faster
LONG_ENOUGH_S = 0.01  # a product is doubled in size, so eight times as long, until it takes this long
TOO_LONG_S = 0.03  # so long it is even where waiting (for a CPU that others use) is most of it
REPEAT_S = 0.1  # repetitions of one product or copy take about as long together
MOST = 50  # repetitions, however short one is
COPY_BYTES = {"cuda": 256 * MIB, "cpu": 64 * MIB}  # at least: one of the two buffers
MOST_COPY_BYTES = {"cuda": 2048 * MIB, "cpu": 512 * MIB}  # touching a CPU's pages for the first time is slow
CACHES = {"cuda": 8, "cpu": 4}  # a buffer holds so many last-level caches, so that next to nothing stays in one
MEMORY_SHARE = 8  # no allocation takes more than one part in so many of the free memory


@dataclass(frozen=True)
class Rates:
    """The best of several repetitions each: what a program that does nothing else can get."""

    gemm_tflops: dict[
        str, float
    ]  # by arithmetic: "float32" (TF32 off), "tf32", "float16", "bfloat16"; 2 a multiply-add
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
    with _switches_restored(), torch.inference_mode(), torch.autocast(on.type, enabled=False):
        gemm = {name: _gemm_tflops(name, on) for name in _arithmetics(on)}
        rates = Rates({name: rate for name, rate in gemm.items() if rate is not None}, _copy_gb_s(on))
    if on.type == "cuda":
        torch.cuda.empty_cache()  # what follows may need the memory
    return rates


def largest_product(seconds: Callable[[int], float], rows: int, most_rows: int) -> int:
    """The first of rows, 2 rows, 4 rows, ... whose product takes `TOO_LONG_S`, or `LONG_ENOUGH_S` and more than twice
    what the one before took; at most `most_rows`. `seconds` times a square product of so many rows."""
    before = math.inf
    while rows * 2 <= most_rows:
        taken = seconds(rows)
        if taken >= TOO_LONG_S or (taken >= LONG_ENOUGH_S and taken > 2 * before):
            break
        before, rows = taken, rows * 2
    return rows


def _arithmetics(on: Any) -> tuple[str, ...]:
    import torch

    if on.type == "cpu":
        return ("float32", "bfloat16")
    has_tf32 = torch.cuda.get_device_capability(on) >= (8, 0)
    return ("float32", *(("tf32",) if has_tf32 else ()), "float16", "bfloat16")


def _gemm_tflops(arithmetic: str, on: Any) -> float | None:
    """None where torch has no such product for this device (halves on old GPUs)."""
    import torch

    from tcsweep.precision import set_tf32

    set_tf32(arithmetic == "tf32")
    dtype = torch.float32 if arithmetic == "tf32" else getattr(torch, arithmetic)
    fitting = math.isqrt(_free_bytes(on) // MEMORY_SHARE // dtype.itemsize)
    tried: dict[int, float] = {}

    def seconds(rows: int, repeat_s: float = 0.0) -> float:
        tried[rows] = min(tried.get(rows, math.inf), _best_s(_product(rows, dtype, on), on, repeat_s))
        return tried[rows]

    try:
        rows = largest_product(seconds, ROWS[on.type], min(MOST_ROWS, fitting))
        if tried.get(rows, 0.0) < TOO_LONG_S:  # else two calls of it have told enough
            seconds(rows, REPEAT_S)
    except RuntimeError:
        if dtype == torch.float32:
            raise
        return None
    return 2 * rows**3 / tried[rows] / 1e12


def _product(rows: int, dtype: Any, on: Any) -> Callable[[], Any]:
    """Random factors: zeros take less power, and so run at a higher clock."""
    import torch

    generator = torch.Generator(on).manual_seed(0)
    a, b = (torch.randn(rows, rows, generator=generator, device=on, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _copy_gb_s(on: Any) -> float:
    import torch

    wanted = max(COPY_BYTES[on.type], CACHES[on.type] * _last_level_cache_bytes(on))
    size = min(wanted, MOST_COPY_BYTES[on.type], _free_bytes(on) // MEMORY_SHARE)
    source = torch.ones(size, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    return 2 * size / _best_s(lambda: target.copy_(source), on, REPEAT_S) / 1e9


def _best_s(call: Callable[[], Any], on: Any, repeat_s: float) -> float:
    """Seconds of the fastest of several calls, after one that does not count. Others can only make a call slower."""
    call()
    times = _times_s(call, on, 1)
    return min(times + _times_s(call, on, min(MOST, 1 + int(repeat_s / times[0]))))


def _times_s(call: Callable[[], Any], on: Any, calls: int) -> list[float]:
    return _cuda_times_s(call, on, calls) if on.type == "cuda" else [_cpu_time_s(call) for _ in range(calls)]


def _cpu_time_s(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cuda_times_s(call: Callable[[], Any], on: Any, calls: int) -> list[float]:
    """By events, all calls enqueued at once: launching then hides behind the call before."""
    import torch

    with torch.cuda.device(on):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        events[-1].synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def _free_bytes(on: Any) -> int:
    import psutil
    import torch

    return int(torch.cuda.mem_get_info(on)[0] if on.type == "cuda" else psutil.virtual_memory().available)


def _last_level_cache_bytes(on: Any) -> int:
    """0 where it is not known: torch tells a GPU's since 2.2 or so, Linux a CPU's on most machines."""
    import torch

    if on.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(on), "L2_cache_size", 0))
    sizes = [_kib(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=0) * 1024


def _kib(path: Path) -> int:
    try:
        return int(path.read_text().strip().removesuffix("K"))
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def _switches_restored() -> Iterator[None]:
    """Put back every switch of float32 products that `tcsweep.precision.set_tf32` sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 and 2.10 warn that the older switches will go
        before = _switches()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _restore(before)


def _switches() -> list[tuple[Any, str, Any]]:
    """(owner, attribute, value) in the order to set them: an older switch sets newer ones, too."""
    import torch

    backends = torch.backends
    older = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
    owners: list[Any] = [backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul]
    owners += [getattr(backends.cudnn, name, None) for name in ("conv", "rnn")]
    owners += [getattr(backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    found = []
    for owner, name in [*older, *((owner, "fp32_precision") for owner in owners)]:
        with contextlib.suppress(AttributeError, RuntimeError):  # absent before torch 2.9; older ones may not be read
            found.append((owner, name, getattr(owner, name)))  # where they and newer ones disagree
    return found


def _restore(switches: list[tuple[Any, str, Any]]) -> None:
    import torch

    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"  # set_tf32 says why
    for owner, name, value in switches:
        setattr(owner, name, value)
