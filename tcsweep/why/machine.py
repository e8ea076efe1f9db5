"""Causes that lie in the machine: what spoiled a result, what the device lacks, what could not be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

from tcsweep import explain
from tcsweep.devices.cpu import BFLOAT16_INSTRUCTIONS
from tcsweep.devices.tensor_cores import multiplied
from tcsweep.evidence.figures import sm_mhz_max, timed_samples
from tcsweep.job import Result
from tcsweep.speedup import Row
from tcsweep.stats import Figures, Interval
from tcsweep.why.case import Case, Cause

NO_NVML = "pip install nvidia-ml-py"


def spoiled(row: Row, result: Result) -> Iterator[Cause]:
    """Why a suspect result is not to be believed, of what a user can change."""
    assert row.figures is not None
    for name, rules, gain, advice in SPOILED:
        reasons = [reason for rule in rules for reason in rule(result, row.figures)]
        if reasons:
            said = "; ".join(reasons)
            said = said if said.startswith(name) else f"{name}: {said}"
            yield Cause(name, said, gain(result), advice(result), said.removeprefix(f"{name}: "))


def _clock_gain(result: Result) -> Interval | None:
    """At the most, the highest clock instead of the one that was held."""
    clocks = [s.sm_mhz for s in timed_samples(result) if s.sm_mhz]
    highest = sm_mhz_max(result)
    return Interval(1.0, max(1.0, highest / median(clocks))) if clocks and highest else None


def _idle_gain(result: Result) -> Interval | None:
    """At the most, what others used."""
    shares = [r.device_state.foreign_load for r in result.rounds if r.device_state and r.device_state.foreign_load]
    shares += [r.host_state.foreign_load for r in result.rounds if r.host_state and r.host_state.foreign_load]
    told = [share for share in shares if share < 1]
    return Interval(1.0, 1 / (1 - max(told))) if told else None


def _more_accurate(result: Result) -> str | None:
    """A precision that would run here and keeps more digits, or a greater range where numbers overflowed."""
    numerics = result.evidence.numerics if result.evidence else None
    overflowed = numerics is not None and (numerics.nan or numerics.inf)
    capability = result.environment.compute_capability
    if overflowed and result.job.precision != "bf16" and capability and "bfloat16" in multiplied(capability):
        return "precision=bf16"
    return "precision=o1 or fp32" if result.job.precision not in ("o1", "fp32") else None


def _quiet(result: Result) -> str | None:
    return "an idle device; then resume or repeat the sweep"


def _cool(result: Result) -> str | None:
    return "more cooling, or a power mode whose clocks it can hold"


Reasons = Callable[[Result, Figures], Iterator[str]]
SPOILED: tuple[
    tuple[
        str, tuple[Reasons, ...], Callable[[Result], Interval | None], Callable[[Result], str | None]
    ],
    ...,
] = (
    ("throttled", (explain.throttled, explain.clock_fell), _clock_gain, _cool),
    ("contaminated", (explain.foreign_load, explain.swapping), _idle_gain, _quiet),
    ("low accuracy", (explain.wrong_output,), lambda result: None, _more_accurate),
    ("unsteady", (explain.drifting,), lambda result: None, lambda result: "measure=thorough on a quiet machine"),
)  # fmt: skip


def power_capped(case: Case) -> Cause | None:
    """Clocks that the power limit holds down: usable figures, of a device that could do more."""
    assert case.row.figures is not None
    said = next((s for s in explain.low_clock(case.result, case.row.figures) if "power cap" in s), None)
    if said is None:
        return None
    limits = (r.device_state.power_limit_w for r in case.result.rounds if r.device_state)
    limit = next((watts for watts in limits if watts), None)
    text = f"power-capped: {said}" + (f", limit {limit:.0f} W" if limit else "")
    return Cause("power-capped", text, _clock_gain(case.result), None, said)


def no_bfloat16_unit(case: Case) -> Cause | None:
    """A CPU asked for a half that it has no instructions for."""
    environment = case.environment
    if environment.device != "cpu" or not case.half or not environment.cpu_features:
        return None
    if BFLOAT16_INSTRUCTIONS & set(environment.cpu_features):
        return None
    text = "no bfloat16 unit: this CPU has no bfloat16 instructions, half precision is emulated"
    return Cause("no bfloat16 unit", text, _fp32_gain(case), "precision=fp32", "half precision is emulated")


def _fp32_gain(case: Case) -> Interval | None:
    """What fp32 of the same cell was measured to do more."""
    speedup = case.row.speedup.value
    return Interval(1 / speedup, 1 / speedup) if speedup and speedup < 1 else None


def no_difference(case: Case) -> Cause | None:
    """A speed-up whose interval holds 1."""
    ci = case.row.speedup.ci95
    if ci is None or case.job.precision == "fp32" or not ci.low <= 1 <= ci.high:
        return None
    text = f"no difference from fp32: the speed-up's interval, {ci.low:.2f} to {ci.high:.2f}, holds 1"
    return Cause("no difference", text)


def not_seen(case: Case) -> Iterator[Cause]:
    """What the machine did not tell, what it would have told, and how to get it."""
    if case.on_gpu and not case.kernels.kernels:
        missing = case.kernels.missing or "not profiled"
        yield Cause("not seen", f"which kernels ran, so neither tensor cores nor time by kind can be told: {missing}")
    elif case.layers.missing:
        yield Cause("not seen", f"time by layer: {case.layers.missing}")
    if case.on_gpu:
        states = [r.device_state for r in case.result.rounds]
        if not any(state and state.source for state in states):
            missing = next((s.missing for s in states if s and s.missing), "NVML was not asked")
            mend = "" if NO_NVML in missing else f" ({NO_NVML})"
            yield Cause("not seen", f"clocks, power, and who else used the GPU: {missing}{mend}")
    if case.evidence.numerics.missing:
        yield Cause("not seen", f"whether the outputs are float32's: {case.evidence.numerics.missing}")
    if not case.evidence.rates:
        yield Cause("not seen", "this device's measured rates, so nothing can be said of its roof: not measured")
