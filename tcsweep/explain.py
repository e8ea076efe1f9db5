"""Facts to verdicts: pure rules, one small function each. None measures, and none asks the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, median

from tcsweep.evidence.facts import MULTIPLYING, Arithmetic, Evidence, Kernels
from tcsweep.evidence.figures import flops_least, peak_flops_s, sm_mhz_max, timed, timed_samples
from tcsweep.evidence.kernels import arithmetic as kernel_arithmetic
from tcsweep.evidence.limits import limit
from tcsweep.job import Result
from tcsweep.precision import PRECISIONS, Promise
from tcsweep.stats import Figures, drift

SUSPECT = "suspect"
WIDE = "wide"
WALL_SHORT = 0.01  # a block's wall time may be so much shorter than its device time: two clocks
OVER_PEAK = 1.05  # of the datasheet's peak: the clock that it is told for may be passed for a moment
UNION_OVER, UNION_UNDER = 1.05, 0.9  # kernels of an iteration over its timed device time
HOST_KEEPS_UP = 0.95  # of a profiled iteration's span with a kernel running: then the host did not hold it back
FOREIGN_LOAD = 0.05
SWAPPED_MIB = 10.0
DRIFT = 0.03
SMALL_DRIFT = 0.01
DENORMALS = 0.01  # of the numbers that operators got
FOREIGN_MEMORY = 0.5  # of the GPU's
CLOCK_FALL = 0.3  # from the first third of the timed blocks to the last
CLOCK_LOW = 0.85  # of the highest clock
# NVML's clock event reasons (nvml.h): hardware slowdown, software thermal, hardware thermal, hardware power brake. The
# software power cap, 0x4, shows under any heavy load.
THROTTLES = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
POWER_CAP = 0x4
# A Jetson's soctherm counters; at each event it holds its clocks down (Jetson Linux Developer Guide).
OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
STUCK = 10  # samples of a power that is the same to the last digit in every rail
HALF = {"fp16": "float16", "bf16": "bfloat16"}  # what a label itself says that half is


@dataclass(frozen=True)
class Verdict:
    """One finding: its name, the reasons with their figures, and what to try next."""

    name: str  # "suspect" | "unverified" | "wide"
    reasons: tuple[str, ...]
    advice: str | None = None


Reasons = Iterator[str]


# --- suspect: a figure that is not what its label says, or that cannot be ---


def label_contradicted(result: Result, derived: Figures) -> Reasons:
    """Operators or kernels that computed in another dtype than the precision promises."""
    evidence = result.evidence
    if evidence is None:
        return
    promise, half = PRECISIONS[result.job.precision].promise, half_of(result)
    others: dict[str, int] = {}
    for row in evidence.dtypes.operators:
        wanted = promise.dtypes(row.operator, half)
        for dtype in sorted(set(row.dtypes) - wanted):
            others[dtype] = others.get(dtype, 0) + row.calls
    calls = sum(row.calls for row in evidence.dtypes.operators)
    for dtype, n in others.items():
        yield f"observed {dtype} in {n} of {calls} operators, labelled {_promised(result, promise, half)}"
    yield from _kernels_contradict(result, evidence.kernels)


def half_of(result: Result) -> str:
    """What half means by the label, whatever was recorded: an O level's is the device's."""
    return HALF.get(result.job.precision, "float16" if _on_gpu(result) else "bfloat16")


def _on_gpu(result: Result) -> bool:
    return result.environment.device.startswith("cuda")


def _promised(result: Result, promise: Promise, half: str | None) -> str:
    dtype = promise.name(half)
    return dtype if result.job.precision in (dtype, "fp32", "tf32") else f"{result.job.precision} ({dtype})"


def _kernels_contradict(result: Result, kernels: Kernels) -> Reasons:
    precision = result.job.precision
    arithmetic = [k for k in kernels.kernels if k.kind in MULTIPLYING]
    if PRECISIONS[precision].promise.name(None) == "float32" and not PRECISIONS[precision].tf32:
        found = [k for k in arithmetic if kernel_arithmetic(k.name) in ("tf32", "float16", "bfloat16")]
        for kind in sorted({str(kernel_arithmetic(k.name)) for k in found}):
            ms = sum(k.device_ms for k in found if kernel_arithmetic(k.name) == kind)
            yield f"kernels multiply in {kind} for {_say(ms)} ms an iteration, labelled {precision}"
    if precision == "tf32" and arithmetic and all(k.unit == "cuda-core" for k in arithmetic):
        yield "no kernel used tensor cores, labelled tf32"


def state_contradicted(result: Result, derived: Figures) -> Reasons:
    """Switches of the process that do not go with the label, or that changed during the timing."""
    precision = PRECISIONS[result.job.precision]
    said: dict[str, None] = {}
    for one in result.rounds:
        for state in (one.arithmetic_before, one.arithmetic_after):
            if state is not None:
                said |= dict.fromkeys(_wrong_switches(result, state, precision.tf32))
        before, after = one.arithmetic_before, one.arithmetic_after
        if before is not None and after is not None and before != after:
            said["the process's arithmetic switches changed during the timing"] = None
    yield from said


def _wrong_switches(result: Result, state: Arithmetic, tf32: bool) -> Reasons:
    on_gpu = _on_gpu(result)
    if on_gpu and not tf32 and (state.tf32_convolution or state.tf32_matmul):
        yield f"TF32 was on, labelled {result.job.precision}"
    if on_gpu and tf32 and not (state.tf32_convolution and state.tf32_matmul):
        yield "TF32 was off, labelled tf32"
    if not on_gpu and state.matmul_precision in ("high", "medium"):  # oneDNN may multiply in TF32 or in bfloat16
        yield f"float32's matmul precision was {state.matmul_precision}, labelled {result.job.precision}"
    device = "cuda" if on_gpu else "cpu"
    for one in state.autocast:
        if one.startswith(device):
            yield f"autocast to {one.partition(':')[2]} was on"
    if state.patched and result.job.precision != "o1":
        yield f"torch's functions were patched ({state.patched})"


def wall_under_device(result: Result, derived: Figures) -> Reasons:
    """A block that took the host less time than the device: nobody waited for it."""
    short = [
        (wall, device)
        for one in result.rounds
        for wall, device in zip(one.block_wall_ms, one.block_device_ms or ())
        if wall < device * (1 - WALL_SHORT)
    ]
    if short:
        wall, device = min(short, key=lambda pair: pair[0] / pair[1])
        yield f"{len(short)} timed blocks were shorter than the device's work: {_say(wall)} of {_say(device)} ms"


def over_peak(result: Result, derived: Figures) -> Reasons:
    """More arithmetic a second than the device can do at its highest clock."""
    evidence = result.evidence
    if evidence is None or not evidence.work.layers:
        return
    peak = peak_flops_s(result)
    achieved = flops_least(evidence) * derived.throughput_img_s
    if peak is not None and achieved > OVER_PEAK * peak:
        yield f"{_say(achieved / 1e12)} TFLOP/s, over the device's peak of {_say(peak / 1e12)}"


def wrong_output(result: Result, derived: Figures) -> Reasons:
    """Outputs that are no numbers, or too far from those in float32."""
    if result.evidence is None or result.evidence.numerics.missing:
        return
    seen = result.evidence.numerics
    if seen.nan or seen.inf:
        yield f"the output holds {seen.nan} NaN and {seen.inf} Inf"
    allowed = limit(result.job.precision, half_of(result))
    if seen.relative_error is not None and seen.relative_error > allowed:
        yield f"the output is {seen.relative_error:.1e} off float32's, over {allowed:.0e}"


def throttled(result: Result, derived: Figures) -> Reasons:
    """Clocks held down by heat or by the hardware during the timed blocks."""
    bits = 0
    for sample in timed_samples(result):
        bits |= sample.throttle or 0
    names = [name for bit, name in THROTTLES.items() if bits & bit]
    for counter, events in _over_current(result).items():
        names.append(f"{OVER_CURRENT.get(counter, f'over-current {counter}')} ({events} event{'s' * (events > 1)})")
    if names:
        yield f"throttled: {', '.join(names)}"


def _over_current(result: Result) -> dict[str, int]:
    """The events of each counter that rose in a round's timed blocks."""
    risen: dict[str, int] = {}
    for state in (r.device_state for r in result.rounds):
        for counter, events in (state.over_current or {} if state else {}).items():
            risen[counter] = risen.get(counter, 0) + events
    return {counter: events for counter, events in sorted(risen.items()) if events}


def clock_fell(result: Result, derived: Figures) -> Reasons:
    """A clock that was another at the end of the timed blocks than at their start."""
    for one in result.rounds:
        clocks = [s.sm_mhz for s in timed(one) if s.sm_mhz is not None]
        third = len(clocks) // 3
        if third < 1:
            continue
        first, last = median(clocks[:third]), median(clocks[-third:])
        if abs(last - first) > CLOCK_FALL * first:
            yield f"the SM clock went from {_say(first)} to {_say(last)} MHz in round {one.number}"


def foreign_load(result: Result, derived: Figures) -> Reasons:
    """Others who used the device meanwhile."""
    if _on_gpu(result):
        shares = [(r.device_state.foreign_load, r.device_state.foreign_source) for r in result.rounds if r.device_state]
        what = "GPU"
    else:
        shares, what = [(r.host_state.foreign_load, None) for r in result.rounds if r.host_state], "CPU"
    share, source = max(((s, f) for s, f in shares if s is not None), key=lambda pair: pair[0], default=(0.0, None))
    if share >= FOREIGN_LOAD:
        yield f"others used {share:.0%} of the {what}{f' (by {source})' if source else ''}"


def swapping(result: Result, derived: Figures) -> Reasons:
    """A machine that moved memory to or from swap meanwhile: then that is what was timed. Not on a GPU with a memory of
    its own."""
    if _on_gpu(result) and not result.environment.shared_memory:
        return
    moved = max((r.host_state.swapped_mib or 0.0 for r in result.rounds if r.host_state), default=0.0)
    if moved >= SWAPPED_MIB:
        yield f"{moved:,.0f} MiB were swapped during the timed blocks"


def drifting(result: Result, derived: Figures) -> Reasons:
    """Times that rise or fall over the timed blocks."""
    seen = drift(result.rounds)
    if seen is not None and abs(seen.change) >= DRIFT and not seen.ci95.low <= 0 <= seen.ci95.high:
        yield f"times changed by {seen.change:+.1%} over the timed blocks"


def evidence_of_something_else(result: Result, derived: Figures) -> Reasons:
    """A profiled iteration that is not the one that was timed."""
    # Of the profiled process alone: in another one, autotuning may have chosen other kernels.
    one = next((r for r in result.rounds if r.evidence is not None), None)
    kernels = one.evidence.kernels if one and one.evidence else Kernels()
    if one is None or kernels.union_ms is None or not one.block_device_ms:
        return
    mean_ms, least_ms = (f(one.block_device_ms) / one.block_iterations for f in (fmean, min))
    keeps_up = kernels.span_ms is not None and kernels.union_ms >= HOST_KEEPS_UP * kernels.span_ms
    # A host that fell behind for a while makes blocks longer, never shorter: the fastest is the one to compare with.
    if kernels.union_ms > UNION_OVER * mean_ms or (keeps_up and kernels.union_ms < UNION_UNDER * least_ms):
        both = f"{_say(kernels.union_ms)} ms of kernels, {_say(mean_ms)} ms timed"
        yield f"the evidence does not match the timing: {both}"


def other_power_mode(result: Result, derived: Figures) -> Reasons:
    """A Jetson's power mode, changed by somebody during the sweep: figures of two modes are not one result's."""
    wanted = result.environment.power_mode
    others = dict.fromkeys(r.power_mode for r in result.rounds if r.power_mode not in (None, wanted))
    if wanted is not None and others:
        yield f"the power mode was {' and '.join(map(str, others))}, not {wanted}"


SUSPICIONS: tuple[Callable[[Result, Figures], Reasons], ...] = (
    label_contradicted,
    state_contradicted,
    wall_under_device,
    over_peak,
    wrong_output,
    evidence_of_something_else,
    throttled,
    other_power_mode,
    clock_fell,
    foreign_load,
    swapping,
    drifting,
)


def suspect(result: Result, derived: Figures) -> Verdict | None:
    """A result that must not be used: no speed-up is made of it."""
    reasons = tuple(reason for rule in SUSPICIONS for reason in rule(result, derived))
    return Verdict(SUSPECT, reasons) if reasons else None


# --- unverified and wide ---


def unverified(result: Result, derived: Figures) -> Verdict | None:
    """What ran could not be seen, so that nothing can be said of it."""
    evidence = result.evidence
    if evidence is None:
        return Verdict("unverified", ("dtypes and kernels were not observed",))
    reasons = []
    if evidence.dtypes.missing or not evidence.dtypes.operators:
        reasons.append(f"dtypes were not observed: {evidence.dtypes.missing or 'no operator that does arithmetic'}")
    if evidence.kernels.missing and _kernels_decide(result, evidence):
        reasons.append(f"kernels were not observed: {evidence.kernels.missing}")
    if evidence.numerics.missing:
        reasons.append(f"outputs were not compared: {evidence.numerics.missing}")
    return Verdict("unverified", tuple(reasons)) if reasons else None


def _kernels_decide(result: Result, evidence: Evidence) -> bool:
    """Whether only a kernel's name tells TF32 from float32."""
    return _on_gpu(result) and any("float32" in row.dtypes for row in evidence.dtypes.operators)


def wide(result: Result, derived: Figures) -> Verdict | None:
    """A figure that is usable, with something to know: few rounds, a broad interval, one of `REMARKS`."""
    settings, reasons = result.job.measure, []
    if derived.rounds < settings.rounds:
        reasons.append(f"{derived.rounds} of {settings.rounds} rounds ({result.stopped or 'stopped'})")
    # Noise alone looks like a trend in one warm-up of twenty, so one round of several says nothing.
    if sum(not r.warmed_up for r in result.rounds) > len(result.rounds) / 2:
        reasons.append("times still changed when the warm-up ended")
    interval = derived.throughput_ci95 or derived.throughput_ci95_within
    limit = settings.rounds_ci if derived.throughput_ci95 else max(settings.within_ci, settings.rounds_ci)
    if interval is None:
        reasons.append("too few samples for an interval")
    elif interval.half_width > limit:
        reasons.append(f"interval of ±{interval.half_width:.1%}, over ±{limit:.1%}")
    reasons += [said for rule in REMARKS for said in rule(result, derived)]
    return Verdict(WIDE, tuple(reasons), "repeat with measure=thorough on a quiet machine") if reasons else None


def low_clock(result: Result, derived: Figures) -> Reasons:
    """A steady clock below the highest one, said as a fact."""
    clocks = [s.sm_mhz for s in timed_samples(result) if s.sm_mhz is not None]
    highest = sm_mhz_max(result)
    if clocks and highest is not None and median(clocks) < CLOCK_LOW * highest:
        capped = any((s.throttle or 0) & POWER_CAP for s in timed_samples(result))
        yield f"SM clock {_say(median(clocks))} of {_say(highest)} MHz{' (power cap)' if capped else ''}"


def small_drift(result: Result, derived: Figures) -> Reasons:
    """Times that rise or fall a little over the timed blocks."""
    seen = drift(result.rounds)
    if seen is not None and SMALL_DRIFT <= abs(seen.change) < DRIFT and not seen.ci95.low <= 0 <= seen.ci95.high:
        yield f"times changed by {seen.change:+.1%} over the timed blocks"


def other_layout(result: Result, derived: Figures) -> Reasons:
    """Convolutions that did not get their input in the job's layout: the model, or what prepared it, turned it."""
    rows = [row for row in (result.evidence.dtypes.operators if result.evidence else ()) if row.layout is not None]
    others = sum(row.calls for row in rows if row.layout != result.job.layout)
    if others:
        other = next(row.layout for row in rows if row.layout != result.job.layout)
        yield f"{others} of {sum(row.calls for row in rows)} convolutions ran in {other}, not in {result.job.layout}"


def denormals(result: Result, derived: Figures) -> Reasons:
    """Numbers so small that a CPU takes many times as long for them, unless it takes them for zero."""
    share = result.evidence.dtypes.denormal_fraction if result.evidence else None
    flushed = any(r.arithmetic_before is not None and r.arithmetic_before.flush_denormal for r in result.rounds)
    if share is not None and share >= DENORMALS and not flushed:
        yield f"denormals: {share:.1%} of the numbers are under 1.2e-38, which slows a CPU down"


def stuck_power(result: Result, derived: Figures) -> Reasons:
    """A board's power that never changed: a sensor that stands still says nothing."""
    for one in result.rounds:
        rails = [s.rails_w for s in timed(one) if s.rails_w is not None]
        if len(rails) >= STUCK and all(rail == rails[0] for rail in rails):
            yield f"the board's power read the same {len(rails)} times in round {one.number}: is its sensor stuck?"
            return


def little_memory(result: Result, derived: Figures) -> Reasons:
    """Memory that others held: cuDNN then picks algorithms that need less, without a word."""
    whole = result.environment.device_memory_mib
    held = max((r.device_state.foreign_memory_mib or 0.0 for r in result.rounds if r.device_state), default=0.0)
    if whole and held >= FOREIGN_MEMORY * whole:
        yield f"others held {held / 1024:.1f} of the GPU's {whole / 1024:.1f} GiB"


REMARKS: tuple[Callable[[Result, Figures], Reasons], ...] = (
    low_clock,
    small_drift,
    other_layout,
    denormals,
    little_memory,
    stuck_power,
)


RULES: tuple[Callable[[Result, Figures], Verdict | None], ...] = (suspect, unverified, wide)


def verdicts(result: Result, derived: Figures) -> tuple[Verdict, ...]:
    """Every verdict that holds, gravest first."""
    return tuple(v for rule in RULES if (v := rule(result, derived)) is not None)


def _say(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
