"""The report's own pictures, one figure each, wide enough for a phone: where the time went, latencies, a roofline."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tcsweep.attribution import Part
from tcsweep.evidence.figures import roof_rates
from tcsweep.job import Result
from tcsweep.precision import PRECISIONS
from tcsweep.report.plot import matplotlib_quiet
from tcsweep.report.words import COLOURS, OTHER_COLOUR, number, times
from tcsweep.speedup import Row

BOXES = 40  # jobs whose latencies are drawn
MARKERS = "osD^vP*X<>"  # of the models in a roofline
SAVED, COST, WHOLE = "#117733", "#CC6677", "#555555"  # of a waterfall's bars
WIDTH, DPI = 8.0, 110  # inches


@dataclass(frozen=True)
class Picture:
    """A PNG, with what it shows for those who cannot see it."""

    title: str
    png: bytes
    alt: str


def pictures(rows: Sequence[Row], name: str, parts: Sequence[Part]) -> list[Picture]:
    """Those that there is evidence for. `name`, `parts`: the job whose time is taken apart, against its fp32."""
    found = [
        _drawn(f"Where the time went: {name}", "against its fp32", len(parts) * 0.35 + 1.4, _waterfall, parts),
        _drawn("Latency", "a box for each job", min(len(rows), BOXES) * 0.22 + 1.2, _latencies, rows),
        _drawn("Roofline", "each job at its intensity and rate", 5.0, _roofline, rows),
    ]
    return [picture for picture in found if picture is not None]


def _drawn(title: str, alt: str, height: float, draw: Callable[[Any, Any], bool], what: Any) -> Picture | None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib_quiet():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        if not draw(figure.subplots(), what):
            return None
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI)
    return Picture(title, file.getvalue(), f"{title}: {alt}")


def _waterfall(axis: Any, parts: Sequence[Part]) -> bool:
    """The baseline's iteration, what each kind of work saved or cost, and the job's: bars end to end."""
    if not parts:
        return False
    before, after = sum(p.before_ms for p in parts), sum(p.after_ms for p in parts)
    bars = [("fp32", 0.0, before, WHOLE, f"{number(before)} ms")]
    at = before
    for part in parts:
        colour = SAVED if part.saved_ms >= 0 else COST
        said = f"{-part.saved_ms:+.3g} ms" + (f", {times(part.speedup)}" if part.speedup is not None else "")
        bars.append((part.name, at - part.saved_ms, part.saved_ms, colour, said))
        at -= part.saved_ms
    bars.append(("this job", 0.0, after, WHOLE, f"{number(after)} ms, {times(before / after)}"))
    for place, (_, left, width, colour, said) in enumerate(bars):
        axis.barh(place, width, left=left, color=colour, height=0.7)
        end = max(left, left + width)
        axis.annotate(said, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axis.invert_yaxis()
    axis.set_xlim(0, max(before, after) * 1.25)
    axis.set_xlabel("ms an iteration")
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    return True


def _latencies(axis: Any, rows: Sequence[Row]) -> bool:
    """A box for each job: quartiles, and whiskers from the 5th to the 95th percentile."""
    told = [(row, [ms for one in row.outcome.rounds for ms in one.latency_ms]) for row in rows]
    told = [(row, samples) for row, samples in told if samples][:BOXES]
    if not told:
        return False
    for place, (row, samples) in enumerate(told, 1):
        colour = COLOURS.get(row.job.precision, OTHER_COLOUR)
        cuts = statistics.quantiles(samples, n=20, method="inclusive") if len(samples) > 1 else samples * 19
        low, quarter, middle, three, high = (cuts[at] for at in (0, 4, 9, 14, 18))  # 5, 25, 50, 75 and 95%
        axis.hlines(place, low, high, color=colour, linewidth=1.2)
        axis.barh(place, three - quarter, left=quarter, color=colour, height=0.6)
        axis.plot(middle, place, "o", color=colour, markeredgecolor="white", markersize=6)
    many = len({row.job.model for row, _ in told}) > 1
    axis.set_yticks(range(1, len(told) + 1), [short(row, many) for row, _ in told], fontsize=8)
    axis.invert_yaxis()
    _logarithmic(axis, "x")
    axis.set_xlabel("latency (ms): median, quartiles, 5th to 95th percentile")
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    return True


def short(row: Row, with_model: bool) -> str:
    """A job's axes, the model where there are several."""
    job = row.job
    return f"{f'{job.model} ' if with_model else ''}{job.precision} b{job.batch} {job.layout} {job.engine}"


def _roofline(axis: Any, rows: Sequence[Row]) -> bool:
    """Each job at its arithmetic intensity (layer by layer traffic, weights once a batch) and its rate, under the rates
    that this device was measured to reach."""
    points = [(row, point) for row in rows if (point := _point(row)) is not None]
    if not points:
        return False
    _roofs(axis, points)
    models = list(dict.fromkeys(row.job.model for row, _ in points))
    labelled: set[str] = set()
    for row, (x, y) in points:
        marker = MARKERS[models.index(row.job.model) % len(MARKERS)]
        label = f"{row.job.model} {row.job.precision}" if len(models) > 1 else row.job.precision
        size = 5 + 3 * (row.job.batch > 1)
        axis.plot(
            *(x, y, marker),
            color=COLOURS.get(row.job.precision, OTHER_COLOUR),
            markersize=size,
            markeredgecolor="white",
            label=None if label in labelled else label,
        )
        labelled.add(label)
    best_row, (x, y) = max(points, key=lambda pair: pair[1][1])
    said = short(best_row, len(models) > 1)
    axis.annotate(said, (x, y), fontsize=8, xytext=(-6, 6), textcoords="offset points", ha="right")
    _logarithmic(axis, "x")
    _logarithmic(axis, "y")
    axis.set_xlabel("arithmetic intensity (FLOP a byte); small marks: batch 1")
    axis.set_ylabel("TFLOP/s")
    axis.grid(color="#EEEEEE", linewidth=0.6)
    axis.legend(fontsize=8, loc="lower right", frameon=False, ncols=2 if len(labelled) > 5 else 1)
    return True


def _roofs(axis: Any, points: Sequence[tuple[Row, tuple[float, float]]]) -> None:
    first = points[0][0].outcome
    rates = first.evidence.rates if isinstance(first, Result) and first.evidence else {}
    copy = rates.get("copy")
    least, most = (f(x for _, (x, _) in points) for f in (min, max))
    for name in ("float32", "tf32", "float16", "bfloat16"):
        rate = rates.get(name)
        if copy and rate and any(_roof_of(row) == rate for row, _ in points):
            xs = [least / 3, rate / copy, max(most * 3, rate / copy * 2)]
            axis.plot(xs, [min(x * copy, rate) / 1e12 for x in xs], color="#777777", linewidth=1)
            axis.annotate(f"{name} as measured", (xs[2], rate / 1e12), ha="right", va="bottom", fontsize=8)


def _roof_of(row: Row) -> float | None:
    rates = roof_rates(row.outcome) if isinstance(row.outcome, Result) else None
    return rates[1] if rates else None


def _logarithmic(axis: Any, which: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_formatter(NullFormatter())


def _point(row: Row) -> tuple[float, float] | None:
    evidence = row.outcome.evidence if isinstance(row.outcome, Result) else None
    if evidence is None or row.seen is None or not row.seen.achieved_tflop_s or not evidence.work.layers:
        return None
    weights = sum(layer.weight_elements for layer in evidence.work.layers) / row.job.batch
    moved = PRECISIONS[row.job.precision].promise.element_bytes * (evidence.work.traffic_elements + weights)
    return evidence.work.flops / moved, row.seen.achieved_tflop_s
