"""Causes told layer by layer: what each took, against what this device was measured to reach."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tcsweep.evidence.facts import MULTIPLYING
from tcsweep.explain import SUSPECT
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.why.case import Case, Cause, TimedLayer
from tcsweep.why.kernels import BUSY, GROUPED, MATTERS

GROUPED_SHARE = 0.1  # of the running time
FIRST_SHARE = 0.05
FIRST_OVER = 1.5  # times its roof, from which on a first layer is worth a word
FEW_CHANNELS = 8  # a first layer has less: no multiple that tensor cores like
BANDWIDTH_SHARE = 0.3
AT_COPY_RATE = 0.5  # of the rate that the device copies at: then memory is what bounds a layer
ROOF = "at its roof"
NEAR_ROOF = 0.6
TILE = 128  # rows and columns of an output tile that one SM makes, cuBLAS's and cuDNN's usual
FILLED = 0.75  # of the SMs' turns; under it a larger batch would fill them
LARGER_GAINS = 1.2  # times, from which on a larger batch is worth saying


def depthwise_or_grouped(case: Case) -> Cause | None:
    """Convolutions whose channels are multiplied in groups leave tensor cores little or nothing to multiply."""
    grouped = [layer for layer in case.timed if layer.depthwise_or_grouped]
    if not case.timed:
        return _by_kernel_names(case)
    ms = sum(layer.ms for layer in grouped)
    if ms / case.running_ms < GROUPED_SHARE:
        return None
    depthwise = [layer for layer in grouped if layer.work.groups == layer.work.channels_in]
    kind = "depthwise" if len(depthwise) == len(grouped) else "grouped" if not depthwise else "depthwise and grouped"
    flops = sum(layer.work.flops for layer in grouped) / case.evidence.work.flops
    brief = f"{ms / case.running_ms:.0%} of the time for {flops:.0%} of the operations"
    text = f"{kind} convolutions: {len(grouped)} of {len(case.timed)} layers take {brief}"
    return Cause("depthwise or grouped", text, _at_roof(case, grouped), None, brief, ROOF)


def _by_kernel_names(case: Case) -> Cause | None:
    """In results without times by layer."""
    kernels = [k for k in case.kernels.kernels if k.kind in MULTIPLYING and GROUPED.search(k.name)]
    ms = sum(k.device_ms for k in kernels)
    if ms / case.running_ms < GROUPED_SHARE:
        return None
    brief = f"{ms / case.running_ms:.0%} of the time"
    return Cause(
        "depthwise or grouped", f"depthwise or grouped convolutions take {brief}", case.without(ms), None, brief
    )


def _at_roof(case: Case, layers: Iterable[TimedLayer]) -> Interval | None:
    """At the most, these layers at their roofs."""
    return case.without(sum(max(0.0, layer.ms - layer.roof_ms) for layer in layers if layer.roof_ms is not None))


def first_layer(case: Case) -> Cause | None:
    """Three input channels fill no tensor core: the library pads them, folds the filter, or takes CUDA cores."""
    first = next(
        (t for t in case.timed if t.work.kind == "convolution" and (t.work.channels_in or 8) < FEW_CHANNELS), None
    )
    if first is None or first.roof_ms is None or case.busy < MATTERS:
        return None
    share = first.ms / case.running_ms
    if share < FIRST_SHARE or first.ms < FIRST_OVER * first.roof_ms:
        return None
    flops = first.work.flops / case.evidence.work.flops
    brief = f"{share:.0%} of the time for {flops:.1%} of the operations"
    text = f"first layer: {first.work.name}, of {first.work.channels_in} input channels, takes {brief}"
    return Cause("first layer", text, _at_roof(case, [first]), None, brief, ROOF)


def bandwidth_bound(case: Case) -> Cause | None:
    """Layers that run near the copy rate and have too little arithmetic for their traffic (the roofline)."""
    if case.busy < MATTERS:
        return None
    bound = [t for t in case.timed if _bandwidth_bound(t)]
    ms = sum(t.ms for t in bound)
    if ms / case.running_ms < BANDWIDTH_SHARE:
        return None
    rate = sum(t.traffic_ms or 0.0 for t in bound) / ms
    brief = f"{ms / case.running_ms:.0%} of the time at {rate:.0%} of the copy rate"
    text = f"bandwidth-bound: {len(bound)} of {len(case.timed)} convolutions and products take {brief}"
    if case.half:
        return Cause("bandwidth-bound", text, _at_roof(case, bound), None, brief, ROOF)
    advice = "precision=fp16" if case.on_gpu else None  # a CPU's half is another matter
    return Cause("bandwidth-bound", text, case.without(ms / 2) if advice else None, advice, brief)


def _bandwidth_bound(layer: TimedLayer) -> bool:
    """Its traffic is its roof, and it is near it."""
    roof_ms = layer.roof_ms
    return bool(roof_ms) and roof_ms == layer.traffic_ms and (roof_ms or 0.0) >= AT_COPY_RATE * layer.ms


def near_the_roof(case: Case) -> Cause | None:
    """Nothing wrong."""
    share = case.row.seen.roof_fraction if case.row.seen else None
    if share is None or share < NEAR_ROOF:
        return None
    text = f"close to the roof: {share:.0%} of what this device could do layer by layer"
    far = [t for t in case.timed if t.roof_ms]
    if far:
        least = max(far, key=lambda t: t.ms - (t.roof_ms or 0.0))
        text += f"; furthest from it {least.work.name}, at {(least.roof_ms or 0.0) / least.ms:.0%} of its own"
    return Cause("close to the roof", text, Interval(1.0, max(1.0, 1 / share)))


# --- the batch ---


def small_batch(case: Case) -> Cause | None:
    """Too few tiles for the SMs, and what a larger batch of the same job in this sweep does."""
    filled, few = _filled(case)
    larger, gain = _larger(case)
    tiles = ""
    if filled < FILLED:
        tiles = f"{few} of {len(case.timed)} layers make fewer tiles of {TILE}x{TILE} than the {_sms(case)} SMs"
    if larger is not None and gain >= LARGER_GAINS:
        measured = f"batch {larger.job.batch} of this sweep does {gain:.1f}x the images a second"
        text = f"small batch: {measured}" + (f"; {tiles}" if tiles else "")
        return Cause("small batch", text, Interval(gain, gain), f"batch={larger.job.batch}", measured)
    if not tiles or larger is not None or case.busy < BUSY:
        return None
    ms = sum(t.ms for t in case.timed)
    return Cause("small batch", f"small batch: {tiles}", case.without(ms * (1 - filled)), "a larger batch", tiles)


def _filled(case: Case) -> tuple[float, int]:
    """Of the time of convolutions and products, the share in which their tiles could fill the SMs; how many layers make
    fewer tiles than there are SMs. Without the facts all of it, none."""
    sms = _sms(case)
    if not sms or not case.timed:
        return 1.0, 0
    tiles = [_tiles(t, case.job.batch) for t in case.timed]
    used = sum(t.ms * n / (math.ceil(n / sms) * sms) for t, n in zip(case.timed, tiles))
    return used / sum(t.ms for t in case.timed), sum(n < sms for n in tiles)


def _sms(case: Case) -> int:
    return case.environment.sm_count or 0


def _tiles(layer: TimedLayer, batch: int) -> int:
    channels = layer.work.channels_out or 1
    rows = batch * layer.work.output_elements // channels
    return math.ceil(rows / TILE) * math.ceil(channels / TILE)


def _larger(case: Case) -> tuple[Row | None, float]:
    """The fastest larger batch of the same job, and how many times the throughput it has."""
    larger = [
        r for r in case.others.of_other_batches(case.job) if r.job.batch > case.job.batch and r.verdict != SUSPECT
    ]
    return case.fastest(larger)
