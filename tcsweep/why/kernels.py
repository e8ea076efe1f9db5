"""Causes told from a GPU's kernels by kind."""

from __future__ import annotations

import re

from tcsweep.devices.tensor_cores import SHORT, eligible, multiplied
from tcsweep.engines import ENGINES
from tcsweep.evidence.facts import MULTIPLYING, Kernel, Work
from tcsweep.layers import dtype_of, short
from tcsweep.stats import Interval
from tcsweep.why.case import MOVING, Case, Cause, TimedLayer

BUSY = 0.7  # of an iteration with a kernel running; under it the host sets the pace
MATTERS = 0.5  # from which on what the kernels do is worth saying, too
GRAPH_US_A_KERNEL = 0.3  # what a graph adds to each kernel: 0.04 to 0.5 on an H100, docs/explained.md
CONVERSIONS = 0.03  # of device time
MEMORY_BOUND = 0.4  # of the time in what only moves data
OFF_CORES = 0.2  # of the time of convolutions and products
FLOAT32 = "float32 on CUDA cores"
FLOAT32_SHARE = 0.2  # of device time
FASTER = 1.05
NAME_LONGEST = 48  # of a kernel
NAMED = 2  # layers, for an example
FUSION = "fused"
GROUPED = re.compile(r"c1_k1|depthwise|grouped|group_conv|_dw", re.IGNORECASE)  # as cuDNN and PyTorch name theirs


def launch_bound(case: Case) -> Cause | None:
    """The GPU waits for the host to launch kernels one by one. A graph launches all at once: what is left is the time
    of the kernels and what a graph adds to each."""
    if case.busy >= BUSY or case.job.engine != "eager":
        return None
    calls = sum(k.calls for k in case.kernels.kernels)
    graph_ms = case.running_ms + calls * GRAPH_US_A_KERNEL / 1e3
    gain = case.iteration_ms / graph_ms
    text = (
        f"launch-bound: the GPU is busy {case.busy:.0%} of the time; {calls} kernels take {case.running_ms:.3g} of "
        f"{case.iteration_ms:.3g} ms"
    )
    possible = ENGINES["cudagraph"].missing(case.environment) is None
    advice = "engine=cudagraph, or a larger batch" if possible else None
    return Cause("launch-bound", text, Interval(gain, gain), advice, f"the GPU is busy {case.busy:.0%} of the time")


def layout_conversions(case: Case) -> Cause | None:
    """Transposes between NCHW and NHWC. At the least they go; at the most every kernel that only moves data runs at the
    device's copy rate, too."""
    share = case.share("layout conversion")
    if share < CONVERSIONS or case.job.layout != "nchw" or case.busy < MATTERS:
        return None
    low = case.running_ms / (case.running_ms - case.ms("layout conversion"))
    ideal_ms = _moving_at_copy_rate_ms(case)
    high = None if ideal_ms is None else case.running_ms / (case.ms(*MULTIPLYING, "other") + ideal_ms)
    text = f"layout conversions: {share:.0%} of device time turns NCHW into NHWC and back for the tensor cores"
    brief = f"{share:.0%} of device time"
    return Cause("layout conversions", text, Interval(low, max(low, high or low)), "layout=nhwc", brief)


def _moving_at_copy_rate_ms(case: Case) -> float | None:
    """The kernels that only move data at copy rate: each layer's output read and written once by a batch norm and once
    by an activation."""
    rate, work = case.evidence.rates.get("copy"), case.evidence.work
    if not rate or not work.layers:
        return None
    moved = 4 * _outputs(work) * case.job.batch * (2 if case.half else 4)
    return min(moved / rate * 1e3, case.ms(*MOVING))


def _outputs(work: Work) -> int:
    return sum(layer.output_elements for layer in work.layers if layer.kind == "convolution")


def elementwise_bound(case: Case) -> Cause | None:
    """Amdahl: what does not multiply takes its time whatever the tensor cores do."""
    share = case.share(*MOVING)
    if share < MEMORY_BOUND or case.busy < MATTERS:
        return None
    norm = case.share("batch norm")
    time = "device time" if case.on_gpu else "the time"
    text = f"elementwise-bound: {share:.0%} of {time} moves data (batch norm {norm:.0%})"
    if case.baseline is not None and case.job.precision != "fp32" and (parts := _gained(case)):
        text += f"; over fp32 it gained {parts[0]:.1f}x, convolutions and products {parts[1]:.1f}x"
    brief = f"{share:.0%} of {time} moves data, batch norm {norm:.0%}"
    gain = case.without(case.ms("batch norm", "elementwise", "copy"))
    return Cause("elementwise-bound", text, gain, None, brief, FUSION)


def _gained(case: Case) -> tuple[float, float] | None:
    """How many times as fast as in the baseline: what moves data, what multiplies."""
    other = case.baseline.evidence if case.baseline else None
    if other is None or not other.kernels.kernels:
        return None
    before = other.kernels.ms_by_kind
    pairs = [(sum(before.get(k, 0.0) for k in kinds), case.ms(*kinds)) for kinds in (MOVING, MULTIPLYING)]
    if any(after <= 0 for _, after in pairs):
        return None
    (moving, multiplying) = (was / now for was, now in pairs)
    return moving, multiplying


# --- tensor cores ---


def no_tensor_cores(case: Case) -> Cause | None:
    """A GPU without any, or without any for this dtype."""
    capability, name = case.environment.compute_capability, case.environment.device_name
    dtype = dtype_of(case.result)
    if capability is None or dtype == "float32" or dtype in (able := multiplied(capability, name)):
        return None
    if not able:
        saves = "saves memory traffic at most" if case.half else "changes nothing"
        what = "half precision" if case.half else "TF32"
        return Cause("no tensor cores", f"{name or 'this GPU'} has no tensor cores: {what} {saves}")
    others = " and ".join(SHORT.get(one, one) for one in able)
    text = f"no tensor cores for {dtype}: those of {name or 'this GPU'} multiply {others}"
    return Cause("no tensor cores", text, None, "precision=fp16", f"none for {dtype}")


def off_tensor_cores(case: Case) -> Cause | None:
    """Half precision or TF32 was asked for, and convolutions or products run on CUDA cores; depthwise ones, grouped
    ones and attention have causes of their own."""
    if _none_to_use(case):
        return None
    total = case.ms(*MULTIPLYING)
    if case.timed:
        off = [layer for layer in case.timed if not layer.depthwise_or_grouped and _slow_ms(layer)]
        slow_ms = sum(_slow_ms(layer) for layer in off)
        examples = ", ".join(_example(case, layer) for layer in sorted(off, key=_slow_ms, reverse=True)[:NAMED])
    else:
        kernels = [k for k in _multiplying(case) if k.unit == "cuda-core" and not GROUPED.search(k.name)]
        slow_ms = sum(k.device_ms for k in kernels if k.kind != "attention")
        examples = short(max(kernels, key=lambda k: k.device_ms).name, NAME_LONGEST) if kernels else ""
    if not total or slow_ms / total < OFF_CORES or attention_in_float32(case):
        return None
    brief = f"{slow_ms / total:.0%} of the time of convolutions and products"
    rates = case.evidence.rates
    fast, slow = rates.get(dtype_of(case.result)), rates.get("float32")
    gain = case.without(slow_ms * (1 - slow / fast)) if fast and slow and fast > slow else None
    return Cause("off the tensor cores", f"off the tensor cores: {brief}, most of it in {examples}", gain, None, brief)


def _none_to_use(case: Case) -> bool:
    return dtype_of(case.result) == "float32" or no_tensor_cores(case) is not None


def _multiplying(case: Case) -> list[Kernel]:
    return [k for k in case.kernels.kernels if k.kind in MULTIPLYING]


def _slow_ms(layer: TimedLayer) -> float:
    """Of a layer's time, what its CUDA-core convolution or product kernels have."""
    whole = sum(k.device_ms for k in layer.kernels)
    slow = sum(k.device_ms for k in layer.kernels if k.unit == "cuda-core" and k.kind in MULTIPLYING)
    return layer.ms * slow / whole if whole else 0.0


def _example(case: Case, layer: TimedLayer) -> str:
    """A layer with its kernel, and what of its shape or dtype is against tensor cores."""
    name, capability = case.environment.device_name, case.environment.compute_capability or "8.0"
    found = eligible(layer.work, dtype_of(case.result), capability, name)
    kernel = next(k for k in layer.kernels if k.unit == "cuda-core" and k.kind in MULTIPLYING)
    reason = f"; {found.reason}" if found.reason != "yes" else ""
    return f"{layer.work.name} ({short(kernel.name, NAME_LONGEST)}{reason})"


def float32_on_cuda_cores(case: Case) -> Cause | None:
    """Float32 as the label says, on a device whose tensor cores could do the same products in half or TF32: what the
    sweep measured of it, else Amdahl with the measured rates."""
    able = multiplied(case.environment.compute_capability or "0.0", case.environment.device_name)
    share = sum(k.device_ms for k in _multiplying(case) if k.unit == "cuda-core") / case.running_ms
    if dtype_of(case.result) != "float32" or not able or share < FLOAT32_SHARE or case.busy < MATTERS:
        return None
    brief = f"{share:.0%} of device time multiplies in float32"
    found, gain = case.fastest_of_cell()
    if found is not None and gain >= FASTER:
        text = f"float32 on CUDA cores: {brief}; {found.job.precision} of this sweep does {gain:.2g}x"
        return Cause(FLOAT32, text, Interval(gain, gain), f"precision={found.job.precision}", brief)
    rates = case.evidence.rates
    fast, slow = rates.get("float16"), rates.get("float32")
    most = case.without(share * case.running_ms * (1 - slow / fast)) if fast and slow and fast > slow else None
    return Cause(FLOAT32, f"float32 on CUDA cores: {brief}", most, "precision=fp16", brief)


def attention_in_float32(case: Case) -> Cause | None:
    """What an AMP level left in float32, with the casts around it."""
    rows = case.evidence.dtypes.operators
    left = sum(row.calls for row in rows if set(row.dtypes) == {"float32"})
    if not left or not case.half or not case.on_gpu:
        return None
    multiplying = _multiplying(case)
    off_ms = sum(k.device_ms for k in multiplying if k.unit == "cuda-core")
    total = sum(k.device_ms for k in multiplying)
    attention_ms = sum(k.device_ms for k in multiplying if k.kind == "attention" and k.unit != "cuda-core")
    if not total or (off_ms + attention_ms) / total < OFF_CORES:
        return None
    said = f"{left} of {sum(row.calls for row in rows)} operators were left in float32"
    share = f"{(off_ms + attention_ms) / total:.0%} of the time of convolutions and products"
    # Attention in float32 and the casts around it go with them; at the most nothing of it is left.
    gain = case.without(off_ms + attention_ms + case.ms("copy"))
    text = f"attention in float32: {said}, {share}"
    advice = "precision=o2 or fp16" if case.job.precision == "o1" else None
    return Cause("attention in float32", text, gain, advice, f"{share}")
