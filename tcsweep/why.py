"""Why a job is not faster: from its saved evidence, its baseline's and the device's measured rates to causes, each with
its figures, what removing it would gain, and one thing to try that exists and would run here. Pure; what is not to be
believed (a suspect or unverified result) is no matter for causes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tcsweep.devices.cpu import BFLOAT16_INSTRUCTIONS
from tcsweep.engines import ENGINES
from tcsweep.evidence.facts import Evidence, Kernels, Work
from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Job, Result
from tcsweep.speedup import Row
from tcsweep.stats import Interval

BUSY = 0.7  # of an iteration with a kernel running; under it the host sets the pace
GRAPH_US_A_KERNEL = 0.3  # what a graph adds to each kernel: 0.04 to 0.5 on an H100, docs/explained.md
CONVERSIONS = 0.03  # of device time
MEMORY_BOUND = 0.4  # of device time in kernels that only move data
OFF_CORES = 0.2  # of the time of convolutions and products
NEAR_ROOF = 0.6
LARGER_GAINS = 1.2  # times, from which on a larger batch is worth saying
MOVING = ("batch norm", "elementwise", "pooling", "copy", "layout conversion")
MULTIPLYING = ("convolution/GEMM", "attention")
HALVES = ("fp16", "bf16", "o1", "o2", "o3")
GROUPED = re.compile(r"c1_k1|depthwise|grouped|group_conv|_dw", re.IGNORECASE)  # as cuDNN and PyTorch name theirs
ADVICE_FUSION = "no engine here fuses them yet; fewer of them: a model with batch norm folded into its convolutions"


@dataclass(frozen=True)
class Cause:
    """One reason why a job takes as long as it does."""

    name: str  # "launch-bound"
    text: str  # with its figures
    gain: Interval | None = None  # times as fast without it, at least and at most; None: not to be told
    advice: str | None = None
    brief: str = ""  # the figures alone, for a terminal's line

    @property
    def gain_text(self) -> str:
        """ "up to 1.9x", or "1.2x to 1.6x"; empty where it is not told."""
        if self.gain is None:
            return ""
        low, high = f"{self.gain.low:.2g}", f"{self.gain.high:.2g}"
        return f"{low}x to {high}x" if self.gain.low > 1 and low != high else f"up to {high}x"


@dataclass(frozen=True)
class Case:
    """A measured job with what it is explained from."""

    row: Row
    result: Result
    evidence: Evidence
    baseline: Result | None
    others: tuple[Row, ...]  # the sweep's measured jobs

    @property
    def job(self) -> Job:
        """The job."""
        return self.row.job

    @property
    def kernels(self) -> Kernels:
        """Of one profiled iteration."""
        return self.evidence.kernels

    @property
    def environment(self) -> Environment:
        """Where it ran."""
        return self.result.environment

    @property
    def iteration_ms(self) -> float:
        """Wall time of one iteration."""
        assert self.row.figures is not None
        return self.job.batch / self.row.figures.throughput_img_s * 1e3

    @property
    def union_ms(self) -> float:
        """Time with a kernel running."""
        return self.kernels.union_ms or self.kernels.device_ms

    def ms(self, *kinds: str) -> float:
        """Device time of some kinds of kernels."""
        found = self.kernels.ms_by_kind
        return sum(found.get(kind, 0.0) for kind in kinds)

    @property
    def busy(self) -> float:
        """Share of an iteration with a kernel running."""
        return min(self.union_ms / self.iteration_ms, 1.0)


Rule = Callable[[Case], Cause | None]


def explain(row: Row, rows: Sequence[Row]) -> tuple[Cause, ...]:
    """The causes of a job's time, the one whose removal gains most first, then what the rest of the sweep tells; none
    for what was not measured or is not to be believed."""
    result = row.outcome
    if not isinstance(result, Result) or row.figures is None or row.verdict == SUSPECT:
        return ()
    evidence = result.evidence
    if evidence is None:
        return (Cause("not explained", "what ran was not observed: measure it again with this version"),)
    measured = tuple(r for r in rows if r.figures is not None)
    baseline = next(
        (r.outcome for r in measured if r.job == _baseline(row.job) and isinstance(r.outcome, Result)), None
    )
    case = Case(row, result, evidence, baseline, measured)
    rules = EVERYWHERE if not case.environment.device.startswith("cuda") else (*ON_GPU, *EVERYWHERE)
    if case.environment.device.startswith("cuda") and not evidence.kernels.kernels:
        return (Cause("not explained", f"no kernels were seen: {evidence.kernels.missing or 'not profiled'}"),)
    found = [cause for rule in rules if (cause := rule(case)) is not None]
    found.sort(key=lambda cause: (cause.name == "small batch", -(cause.gain.high if cause.gain else 0.0)))
    return tuple(found) or (Cause("nothing found", "no rule here tells why it is not faster"),)


def _baseline(job: Job) -> Job:
    return dataclasses.replace(job.cell, repeat=0)


# --- on a GPU, from kernels ---


def launch_bound(case: Case) -> Cause | None:
    """The GPU waits for the host to launch kernels one by one. A graph launches all at once: what is left is the time
    of the kernels and what a graph adds to each."""
    if case.busy >= BUSY or case.job.engine != "eager":
        return None
    calls = sum(k.calls for k in case.kernels.kernels)
    graph_ms = case.union_ms + calls * GRAPH_US_A_KERNEL / 1e3
    gain = case.iteration_ms / graph_ms
    text = (
        f"launch-bound: the GPU is busy {case.busy:.0%} of the time; {calls} kernels take {case.union_ms:.3g} of "
        f"{case.iteration_ms:.3g} ms"
    )
    possible = ENGINES["cudagraph"].missing(case.environment) is None
    advice = "engine=cudagraph, or a larger batch" if possible else None
    return Cause("launch-bound", text, Interval(gain, gain), advice, f"the GPU is busy {case.busy:.0%} of the time")


def layout_conversions(case: Case) -> Cause | None:
    """Transposes between NCHW and NHWC. At the least they go; at the most every kernel that only moves data runs at the
    device's copy rate, too."""
    share = case.ms("layout conversion") / case.union_ms
    if share < CONVERSIONS or case.job.layout != "nchw" or case.busy < BUSY:
        return None
    low = case.union_ms / (case.union_ms - case.ms("layout conversion"))
    ideal_ms = _moving_at_copy_rate_ms(case)
    high = None if ideal_ms is None else case.union_ms / (case.ms(*MULTIPLYING, "other") + ideal_ms)
    text = f"layout conversions: {share:.0%} of device time turns NCHW into NHWC and back for the tensor cores"
    brief = f"{share:.0%} of device time"
    return Cause("layout conversions", text, Interval(low, max(low, high or low)), "layout=nhwc", brief)


def _moving_at_copy_rate_ms(case: Case) -> float | None:
    """The kernels that only move data at copy rate: each layer's output read and written once by a batch norm or an
    activation of its own."""
    rate, work = case.evidence.rates.get("copy"), case.evidence.work
    if not rate or not work.layers:
        return None
    moved = 4 * _outputs(work) * case.job.batch * (2 if case.job.precision in HALVES else 4)
    return min(moved / rate * 1e3, case.ms(*MOVING))


def _outputs(work: Work) -> int:
    return sum(layer.output_elements for layer in work.layers if layer.kind == "convolution")


def elementwise_bound(case: Case) -> Cause | None:
    """Amdahl: what does not multiply takes its time whatever the tensor cores do."""
    share = case.ms(*MOVING) / case.union_ms
    if share < MEMORY_BOUND or case.busy < BUSY:
        return None
    norm = case.ms("batch norm") / case.union_ms
    text = f"elementwise-bound: {share:.0%} of device time moves data (batch norm {norm:.0%})"
    if case.baseline is not None and case.job.precision != "fp32" and (parts := _gained(case)):
        text += f"; over fp32 it gained {parts[0]:.1f}x, convolutions and products {parts[1]:.1f}x"
    high = case.union_ms / (case.union_ms - case.ms("batch norm", "elementwise", "copy"))
    brief = f"{share:.0%} of device time moves data, batch norm {norm:.0%}"
    return Cause("elementwise-bound", text, Interval(1.0, high), ADVICE_FUSION, brief)


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


def off_tensor_cores(case: Case) -> Cause | None:
    """Half precision was asked for, and convolutions or products run on CUDA cores."""
    if case.job.precision not in (*HALVES, "tf32") or _no_cores(case.environment):
        return None
    multiplying = [k for k in case.kernels.kernels if k.kind in MULTIPLYING]
    total = sum(k.device_ms for k in multiplying)
    off = [k for k in multiplying if k.unit == "cuda-core"]
    slow_ms = sum(k.device_ms for k in off)
    if not total or slow_ms / total < OFF_CORES:
        return None
    brief = f"{slow_ms / total:.0%} of the time of convolutions and products"
    text = f"off the tensor cores: {brief}"
    text += f", most of it in {_short(max(off, key=lambda k: k.device_ms).name)}"
    if float32 := _in_float32(case):
        # Attention in float32 and the casts around it go with them; at the most nothing of it is left.
        text += f"; {float32}"
        others = [k for k in multiplying if k.kind == "attention" and k not in off]
        slow_ms += sum(k.device_ms for k in others) + case.ms("copy")
        advice = "precision=o2 or fp16" if case.job.precision == "o1" else None
        return Cause("off the tensor cores", text, _without(case, slow_ms), advice, f"{brief}; {float32}")
    rates = case.evidence.rates
    fast, slow = rates.get("float16"), rates.get("float32")
    gain = _without(case, slow_ms * (1 - slow / fast)) if fast and slow else None
    return Cause("off the tensor cores", text, gain, None, brief)


def _without(case: Case, ms: float) -> Interval | None:
    """At the most, so many milliseconds of device time less."""
    left = case.union_ms - ms
    return Interval(1.0, case.union_ms / left) if left > 0 else None


def _short(kernel: str) -> str:
    """A kernel's name without its arguments, and whether it is for convolutions of few channels a group."""
    name = re.sub(r"^void ", "", kernel).partition("<")[0].partition("(")[0]
    name = name if len(name) <= 48 else f"{name[:47]}…"
    return f"{name} (depthwise or grouped)" if GROUPED.search(kernel) else name


def _in_float32(case: Case) -> str:
    """What an AMP level left in float32."""
    rows = case.evidence.dtypes.operators
    left = sum(row.calls for row in rows if set(row.dtypes) == {"float32"})
    return f"{left} of {sum(row.calls for row in rows)} operators were left in float32" if left else ""


def no_tensor_cores(case: Case) -> Cause | None:
    """A GPU without any."""
    if not _no_cores(case.environment) or case.job.precision not in HALVES:
        return None
    name = case.environment.device_name or "this GPU"
    return Cause("no tensor cores", f"{name} has no tensor cores: half precision saves memory traffic at most")


def _no_cores(environment: Environment) -> bool:
    capability = environment.compute_capability
    if capability is None:
        return False
    return tuple(map(int, capability.split("."))) < (7, 0) or "GTX 16" in (environment.device_name or "")


def near_the_roof(case: Case) -> Cause | None:
    """Nothing wrong."""
    share = case.row.seen.roof_fraction if case.row.seen else None
    if share is None or share < NEAR_ROOF:
        return None
    text = f"close to the roof: {share:.0%} of what this device could do layer by layer"
    return Cause("close to the roof", text, Interval(1.0, max(1.0, 1 / share)))


# --- everywhere, from the sweep ---


def small_batch(case: Case) -> Cause | None:
    """A larger batch of the same job in this sweep that is faster."""
    assert case.row.figures is not None
    here = dataclasses.replace(case.job, batch=1)
    larger = [
        r for r in case.others
        if r.job.batch > case.job.batch and dataclasses.replace(r.job, batch=1) == here and r.verdict != SUSPECT
    ]  # fmt: skip
    best = max(larger, key=lambda r: r.figures.throughput_img_s if r.figures else 0.0, default=None)
    if best is None or best.figures is None:
        return None
    gain = best.figures.throughput_img_s / case.row.figures.throughput_img_s
    if gain < LARGER_GAINS:
        return None
    text = f"small batch: batch {best.job.batch} of this sweep does {gain:.1f}x the images a second"
    return Cause("small batch", text, Interval(gain, gain), f"batch={best.job.batch}")


def no_bfloat16_unit(case: Case) -> Cause | None:
    """A CPU asked for a half that it has no instructions for."""
    environment = case.environment
    if environment.device != "cpu" or case.job.precision not in HALVES or not environment.cpu_features:
        return None
    if BFLOAT16_INSTRUCTIONS & set(environment.cpu_features):
        return None
    return Cause(
        "no bfloat16 unit", "this CPU has no bfloat16 instructions: half precision is emulated", None, "precision=fp32"
    )


def no_difference(case: Case) -> Cause | None:
    """A speed-up whose interval holds 1."""
    ci = case.row.speedup.ci95
    if ci is None or case.job.precision == "fp32" or not ci.low <= 1 <= ci.high:
        return None
    text = f"no difference from fp32: the speed-up's interval, {ci.low:.2f} to {ci.high:.2f}, holds 1"
    return Cause("no difference", text)


ON_GPU: tuple[Rule, ...] = (
    no_tensor_cores, launch_bound, off_tensor_cores, layout_conversions, elementwise_bound, near_the_roof,
)  # fmt: skip
EVERYWHERE: tuple[Rule, ...] = (small_batch, no_bfloat16_unit, no_difference)


# --- in a few lines ---

LINES = 5  # of a terminal, at most
CAUSES = 3
SAID = (
    *("launch-bound", "off the tensor cores", "layout conversions", "elementwise-bound"),
    *("no tensor cores", "no bfloat16 unit"),
)


def lines(rows: Sequence[Row], width: int = 80) -> list[str]:
    """What matters most in a sweep: three causes at most, each once, for the asked job that it costs most, in no more
    than five lines of a terminal."""
    found: dict[str, tuple[float, str]] = {}
    models = len({row.job.model for row in rows})
    for row in (r for r in rows if r.outcome.role == "asked"):
        for cause in explain(row, rows):
            gain = cause.gain.high if cause.gain else 0.0
            if cause.name in SAID and gain >= found.get(cause.name, (-1.0, ""))[0]:
                found[cause.name] = (gain, _line(row.job, cause, models > 1))
    ranked = [line for _, line in sorted(found.values(), key=lambda pair: -pair[0])][:CAUSES]
    while height(ranked, width) > LINES:
        ranked.pop()
    return ranked


def height(lines: Sequence[str], width: int) -> int:
    """The lines that these take in a terminal, at the least."""
    return sum(-(-len(line) // width) for line in lines)


def _line(job: Job, cause: Cause, with_model: bool) -> str:
    label = f"{f'{job.model} ' if with_model else ''}{job.precision} batch {job.batch} {job.layout} {job.engine}"
    said = f"{label}: {cause.name}" + (f", {cause.brief}" if cause.brief else "")
    if cause.advice == ADVICE_FUSION:
        return f"{said}; fused: {cause.gain_text}"
    if cause.advice:
        return f"{said}; try {cause.advice}" + (f": {cause.gain_text}" if cause.gain else "")
    return said


def causes(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Each cause of a job in a line, for notes and tables."""
    for cause in explain(row, rows):
        gain = f" [{cause.gain_text}]" if cause.gain else ""
        advice = f"; try {cause.advice}" if cause.advice and cause.advice != ADVICE_FUSION else ""
        yield f"{cause.text}{gain}{advice}"
