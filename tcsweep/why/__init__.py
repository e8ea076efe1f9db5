"""Why a job is not faster: from its saved evidence, its baseline's and the device's measured rates to causes, each with
its figures, what removing it would gain, and one thing to try that exists and would run here. Pure; of a suspect result
only what spoiled it is told, since its times are not to be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tcsweep.explain import SUSPECT
from tcsweep.job import Job, Result
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.why.case import LEAST_GAIN, Case, Cause, Neighbours, Rule
from tcsweep.why.kernels import (
    FLOAT32,
    attention_in_float32,
    elementwise_bound,
    float32_on_cuda_cores,
    launch_bound,
    layout_conversions,
    no_tensor_cores,
    off_tensor_cores,
)
from tcsweep.why.layers import bandwidth_bound, depthwise_or_grouped, first_layer, near_the_roof, small_batch
from tcsweep.why.machine import no_bfloat16_unit, no_difference, not_seen, power_capped, spoiled

__all__ = ["CAUSES", "LINES", "Cause", "Neighbours", "causes", "explain", "height", "in_a_line", "lines", "main_cause"]

KERNELS: tuple[Rule, ...] = (  # need a GPU's kernels
    no_tensor_cores, launch_bound, float32_on_cuda_cores, attention_in_float32, off_tensor_cores, layout_conversions,
)  # fmt: skip
EVERYWHERE: tuple[Rule, ...] = (
    elementwise_bound, depthwise_or_grouped, first_layer, bandwidth_bound, power_capped, near_the_roof, small_batch,
    no_bfloat16_unit, no_difference,
)  # fmt: skip
FIRST = "launch-bound"  # as long as the host sets the pace, nothing else helps
UNSEEN = "not seen"
LAST = ("small batch", "no difference", UNSEEN)  # said after what holds the job itself back


def explain(row: Row, rows: Sequence[Row] | Neighbours) -> tuple[Cause, ...]:
    """The causes of a job's time, the one whose removal gains most first, then what the rest of the sweep tells and
    what could not be seen; none for what was not measured. `rows`: the sweep's, or what was made of them once."""
    result = row.outcome
    if not isinstance(result, Result) or row.figures is None:
        return ()
    if row.verdict == SUSPECT:
        return tuple(spoiled(row, result))
    if result.evidence is None:
        return (Cause(UNSEEN, "what ran: measure it again with this version"),)
    others = rows if isinstance(rows, Neighbours) else Neighbours(rows)
    case = Case(row, result, result.evidence, others)
    rules = (*KERNELS, *EVERYWHERE) if case.kernels.kernels else EVERYWHERE
    if case.on_gpu and not case.kernels.kernels:
        rules = (no_tensor_cores, power_capped, small_batch, no_difference)
    found = [cause for rule in rules if (cause := rule(case)) is not None and _worth_it(cause)]
    found.sort(key=lambda cause: (cause.name in LAST, cause.name != FIRST, -(cause.gain.high if cause.gain else 0.0)))
    if all(cause.name in LAST for cause in found):
        found.insert(0, _nothing_found(row))
    return (*found, *not_seen(case))


def _nothing_found(row: Row) -> Cause:
    """What is known all the same: how far from the roof, and how much of it on tensor cores."""
    roof = row.seen.roof_fraction if row.seen else None
    cores = row.seen.tensor_core_time_fraction if row.seen else None
    said = [f"it does {roof:.0%} of what this device could do layer by layer"] if roof else []
    said += [f"tensor cores have {cores:.0%} of device time"] if cores is not None else []
    text = "; ".join(["nothing found: no rule here tells why it is not faster", *said])
    return Cause("nothing found", text, Interval(1.0, 1 / roof) if roof and roof < 1 else None, None, "", "at the roof")


def _worth_it(cause: Cause) -> bool:
    return cause.gain is None or cause.gain.high >= LEAST_GAIN or cause.name == "close to the roof"


# --- in a few lines ---

LINES = 5  # of a terminal, at most
CAUSES = 3
# What a terminal's lines leave out: nothing to do, or seen in the table.
LEFT_OUT = ("close to the roof", "small batch", "no difference", "nothing found", UNSEEN, FLOAT32)


def lines(rows: Sequence[Row], width: int = 80) -> list[str]:
    """What matters most in a sweep: three causes at most, each once, for the asked job that it costs most, in no more
    than five lines of a terminal."""
    found: dict[str, tuple[float, str]] = {}
    models, others = len({row.job.model for row in rows}), Neighbours(rows)
    for row in (r for r in rows if r.outcome.role == "asked"):
        for cause in explain(row, others):
            gain = cause.gain.high if cause.gain else 0.0
            if cause.name not in LEFT_OUT and gain >= found.get(cause.name, (-1.0, ""))[0]:
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
    gain = f": {cause.gain_text}" if cause.gain_text else ""
    if cause.remark and gain:
        return f"{said}; {cause.remark}{gain}"
    if cause.advice:
        return f"{said}; try {cause.advice}{gain}"
    return f"{said}; without it{gain}" if gain else said


def main_cause(row: Row, rows: Sequence[Row] | Neighbours) -> Cause | None:
    """What holds a job back first, None where nothing is known of it."""
    return next((cause for cause in explain(row, rows) if cause.name != UNSEEN), None)


def causes(row: Row, rows: Sequence[Row] | Neighbours) -> Iterator[str]:
    """Each cause of a job in a line, for notes and tables."""
    for cause in explain(row, rows):
        yield in_a_line(cause)


def in_a_line(cause: Cause) -> str:
    """With its gain and what to try."""
    text = f"{cause.name}: {cause.text}" if cause.name == UNSEEN else cause.text
    gain = f" [{cause.remark + ': ' if cause.remark else ''}{cause.gain_text}]" if cause.gain_text else ""
    advice = f"; try {cause.advice}" if cause.advice else ""
    return f"{text}{gain}{advice}"
