"""What a job's evidence comes to: shares, rates and roofs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from tcsweep.devices.peaks import fastest_flops
from tcsweep.evidence.facts import DeviceSample, Evidence
from tcsweep.evidence.physics import flops_for_bound, layerwise_roof_img_s
from tcsweep.job import Result, Round
from tcsweep.precision import PRECISIONS
from tcsweep.stats import Figures


@dataclass(frozen=True)
class Seen:
    """Figures from evidence. None where there is none."""

    dtypes: tuple[str, ...] = ()  # of the operators that do arithmetic
    tensor_core_time_fraction: float | None = None  # of all kernels' time
    unknown_time_fraction: float | None = None  # in kernels whose name does not tell
    gpu_busy_fraction: float | None = None  # of an iteration's wall time, with at least one kernel running
    ms_by_kind: dict[str, float] = field(default_factory=dict)  # kernel time of an iteration
    flops_per_img: float | None = None
    achieved_tflop_s: float | None = None
    peak_tflop_s: float | None = None  # datasheet, at the highest clock
    layerwise_roof_img_s: float | None = None
    roof_fraction: float | None = None  # throughput over it
    relative_error: float | None = None  # against float32
    sm_mhz: float | None = None  # median over the timed blocks
    power_w: float | None = None
    throughput_img_s_w: float | None = None  # images a second and watt: images a joule
    temperature_c: float | None = None
    board_memory_mib: float | None = None  # peak of host and GPU together, where they share one memory


def seen(result: Result, derived: Figures) -> Seen:
    """The figures of a job's evidence."""
    evidence = result.evidence
    samples = timed_samples(result)
    state: dict[str, Any] = {
        "sm_mhz": _median([s.sm_mhz for s in samples]),
        "power_w": _median([s.power_w for s in samples]),
        "throughput_img_s_w": _per_watt(result, derived, [s.power_w for s in samples]),
        "temperature_c": _median([s.temperature_c for s in samples]),
        "board_memory_mib": _board_memory_mib(result),
    }
    if evidence is None:
        return Seen(**state)
    kernels, flops = evidence.kernels, evidence.work.flops or None
    peak, roof = peak_flops_s(result), _roof_img_s(result, evidence)
    return Seen(
        dtypes=tuple(sorted(dtypes_seen(evidence))),
        tensor_core_time_fraction=kernels.tensor_core_time_fraction,
        unknown_time_fraction=kernels.unknown_time_fraction,
        gpu_busy_fraction=None if kernels.union_ms is None else min(1.0, kernels.union_ms / derived.wall_ms),
        ms_by_kind=kernels.ms_by_kind,
        flops_per_img=flops,
        achieved_tflop_s=flops and flops * derived.throughput_img_s / 1e12,
        peak_tflop_s=peak and peak / 1e12,
        layerwise_roof_img_s=roof,
        roof_fraction=roof and derived.throughput_img_s / roof,
        relative_error=evidence.numerics.relative_error,
        **state,
    )


def _board_memory_mib(result: Result) -> float | None:
    """What torch's allocator held of the GPU is not in the process's resident set on a Jetson."""
    if not result.environment.shared_memory:
        return None
    told = [r.host_memory_mib + (r.reserved_memory_mib or 0.0) for r in result.rounds if r.host_memory_mib is not None]
    return max(told, default=None)


def _per_watt(result: Result, derived: Figures, power_w: Sequence[float | None]) -> float | None:
    """By the energy phase where there was one, else by the mean power in the timed blocks; of what the sensor feeds."""
    if derived.energy_j_per_img:
        return 1 / derived.energy_j_per_img
    told = [watts for watts in power_w if watts is not None]
    mean = fmean(told) if told else 0.0
    return derived.throughput_img_s / mean if mean > 0 else None


def dtypes_seen(evidence: Evidence) -> set[str]:
    """Every dtype in which an operator that does arithmetic got an argument."""
    return {dtype for row in evidence.dtypes.operators for dtype in row.dtypes}


def flops_least(evidence: Evidence) -> float:
    """FLOP an image, the least that any algorithm needs: Winograd's quarter where float32 leaves it the choice, and
    without the layers that an FFT could do where a kernel of one ran."""
    return flops_for_bound(
        evidence.work,
        winograd_possible="float32" in dtypes_seen(evidence),
        fft_possible=any("fft" in kernel.name.lower() for kernel in evidence.kernels.kernels),
    )


def peak_flops_s(result: Result) -> float | None:
    """The datasheet's peak at the highest clock, of the fastest unit for the dtypes seen; None where it is unknown."""
    environment, evidence = result.environment, result.evidence
    clock = sm_mhz_max(result)
    if evidence is None or environment.compute_capability is None or environment.sm_count is None or clock is None:
        return None
    arithmetic = dtypes_seen(evidence)
    if PRECISIONS[result.job.precision].tf32 and "float32" in arithmetic:
        arithmetic = (arithmetic - {"float32"}) | {"tf32"}
    peaks = [fastest_flops(environment.compute_capability, environment.sm_count, clock, one) for one in arithmetic]
    return None if None in peaks else max((p for p in peaks if p is not None), default=None)


def sm_mhz_max(result: Result) -> float | None:
    """The highest clock that the device can be set to, of the first round that knows it."""
    states = [one.device_state for one in result.rounds if one.device_state]
    return next((state.sm_mhz_max for state in states if state.sm_mhz_max is not None), None)


def roof_rates(result: Result) -> tuple[int, float, float] | None:
    """In a job's own dtype, as this device was measured: bytes an element, FLOP/s, bytes/s. None where it was not."""
    evidence = result.evidence
    promise = PRECISIONS[result.job.precision].promise
    dtype = promise.name(result.rounds[0].half_dtype)
    rates = evidence.rates if evidence else {}
    rate = rates.get("tf32" if PRECISIONS[result.job.precision].tf32 else dtype)
    copy = rates.get("copy")
    return None if rate is None or copy is None else (promise.element_bytes, rate, copy)


def _roof_img_s(result: Result, evidence: Evidence) -> float | None:
    """The layerwise roof at this device's measured rates, in the job's own dtype."""
    rates = roof_rates(result)
    if rates is None or not evidence.work.layers:
        return None
    return layerwise_roof_img_s(evidence.work, result.job.batch, *rates)


def timed(one: Round) -> list[DeviceSample]:
    """The samples that were taken during a round's timed blocks."""
    state = one.device_state
    return [] if state is None else [s for s in state.samples if 0 <= s.at_s <= state.timed_s]


def timed_samples(result: Result) -> list[DeviceSample]:
    """Those of all rounds."""
    return [sample for one in result.rounds for sample in timed(one)]


def _median(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None
