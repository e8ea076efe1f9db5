"""report.html and report.md: a sweep told with the answer first, from saved results alone. One file each."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tcsweep import published
from tcsweep.attribution import Part, attribution
from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Failure, Measure, Result, Skipped, Sweep
from tcsweep.precision import PRECISIONS
from tcsweep.report.plot import PICTURE, _matplotlib
from tcsweep.report.words import COLOURS, OTHER_COLOUR, device_title, number, one_line, times
from tcsweep.speedup import Row
from tcsweep.store import write_file
from tcsweep.why import Neighbours, causes

HTML, MARKDOWN = "report.html", "report.md"
TEMPLATE = Path(__file__).with_name("page.html")
BOXES = 24  # jobs whose latencies are drawn
HEADINGS = (
    "model",
    "precision",
    "batch",
    "layout",
    "engine",
    "img/s",
    "speed-up",
    "95% interval",
    "latency p50 (ms)",
    "verdict",
)


@dataclass(frozen=True)
class Cell:
    """What is shown, and the exact value behind it."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """A job in the table."""

    cells: tuple[Cell, ...]
    state: str  # "ok", a verdict, or "failed"


def write(folder: Path, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Write both files into a sweep's folder. Raises what matplotlib, jinja2 or the disk raises."""
    write_file(folder / HTML, html(sweep, rows, folder).encode())
    write_file(folder / MARKDOWN, markdown(sweep, rows).encode())


def answer(rows: Sequence[Row]) -> list[str]:
    """The best job, its speed-up, what holds it back; how far it is from what was published."""
    able = [r for r in rows if r.outcome.role == "asked" and r.figures is not None and r.verdict != SUSPECT]
    best = max(able, key=lambda row: row.figures.throughput_img_s if row.figures else 0.0, default=None)
    if best is None or best.figures is None:
        return ["Nothing was measured that can be believed."]
    ci = best.speedup.ci95
    gained = ""
    if best.speedup.value is not None and best.job.precision != "fp32":
        within = f" (95% interval {ci.low:.2f} to {ci.high:.2f})" if ci else ""
        gained = f", {times(best.speedup.value)} the fp32 of its batch, layout and engine{within}"
    lines = [f"Best: {_name(best)}, {number(best.figures.throughput_img_s)} img/s{gained}."]
    held = next(causes(best, rows), None)
    if held:
        lines.append(f"What holds it back: {held}.")
    if gap := published.line(rows):
        lines.append(f"{gap}.")
    return lines


def _name(row: Row) -> str:
    job = row.job
    return f"{job.model} {job.precision}, batch {job.batch}, {job.layout}, {job.engine}"


def table(rows: Sequence[Row]) -> list[Line]:
    """All jobs, in the order of the terminal's table."""
    return [Line(_cells(row), row.verdict or row.outcome.status) for row in rows]


def _cells(row: Row) -> tuple[Cell, ...]:
    job, f, ci = row.job, row.figures, row.speedup.ci95
    axes = (job.model, job.precision, str(job.batch), job.layout, job.engine)
    rate, latency = (f.throughput_img_s, f.latency_ms_p50) if f else (None, None)
    said = row.verdict or row.outcome.status
    if isinstance(row.outcome, (Failure, Skipped)):
        said = f"{row.outcome.status}: {one_line(row.outcome.reason)}"
    elif row.outcome.role != "asked":
        said = f"{said} ({row.outcome.role})"
    return (
        *map(Cell, axes),
        Cell(number(rate), rate),
        Cell(times(row.speedup.value), row.speedup.value),
        Cell(f"{ci.low:.2f}–{ci.high:.2f}" if ci else "—"),
        Cell(number(latency), latency),
        Cell(said),
    )


def findings(rows: Sequence[Row]) -> list[tuple[str, list[str], list[str]]]:
    """Each job with its verdicts and its causes; jobs with neither are left out."""
    others = Neighbours(rows)
    found = [
        (_name(row), [f"{v.name}: {'; '.join(v.reasons)}" for v in row.verdicts], list(causes(row, others)))
        for row in rows
    ]
    return [one for one in found if one[1] or one[2]]


def where(rows: Sequence[Row]) -> tuple[str, tuple[Part, ...]]:
    """Where the time of the best explained job went against its fp32: its name, and the parts."""
    able = [r for r in rows if r.outcome.role == "asked" and r.figures is not None]
    for row in sorted(able, key=lambda row: -row.figures.throughput_img_s if row.figures else 0.0):
        if parts := attribution(row, rows):
            return _name(row), parts
    return "", ()


def environment(sweep: Sweep, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The fields that are known, of the first job's."""
    one = rows[0].outcome.environment if rows else sweep.environment
    pairs = [(f.name, getattr(one, f.name)) for f in dataclasses.fields(Environment)]
    return [
        (n, " ".join(map(str, v)) if isinstance(v, (tuple, list)) else str(v))
        for n, v in pairs
        if v not in (None, (), [])
    ]


def settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """How it was measured."""
    one = rows[0].job.measure if rows else Measure()
    return [(f.name, str(getattr(one, f.name))) for f in dataclasses.fields(Measure)]


def html(sweep: Sweep, rows: Sequence[Row], folder: Path) -> str:
    """The page."""
    import jinja2

    pictures = (
        [("Throughput and speed-up by batch", _encoded((folder / PICTURE).read_bytes()))]
        if (folder / PICTURE).is_file()
        else []
    )
    pictures += [(title, _encoded(picture)) for title, picture in _drawn(rows)]
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    return template.render(
        title=_title(sweep, rows),
        answer=answer(rows),
        headings=HEADINGS,
        lines=table(rows),
        pictures=pictures,
        findings=findings(rows),
        where=where(rows),
        environment=environment(sweep, rows),
        settings=settings(rows),
        command=sweep.command,
        removed=sweep.environment.removed_variables,
    )


def markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The same without pictures but the sweep's own."""
    parts = [f"# {_title(sweep, rows)}", *answer(rows), f"![throughput]({PICTURE})", _markdown_table(HEADINGS, rows)]
    for name, verdicts, why in findings(rows):
        parts.append("\n".join([f"**{name}**", "", *(f"- {line}" for line in (*verdicts, *why))]))
    parts.append("## Environment\n" + "\n".join(f"- {name}: {value}" for name, value in environment(sweep, rows)))
    parts.append("## How it was measured\n" + "\n".join(f"- {name}: {value}" for name, value in settings(rows)))
    parts.append(f"    {sweep.command}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [" | ".join(cell.text.replace("|", "\\|") for cell in line.cells) for line in table(rows)]
    return "\n".join(f"| {line} |" for line in (" | ".join(headings), " | ".join("---" for _ in headings), *lines))


def _title(sweep: Sweep, rows: Sequence[Row]) -> str:
    models = ", ".join(dict.fromkeys(row.job.model for row in rows)) or "no jobs"
    device = device_title(rows[0].outcome.environment if rows else sweep.environment)
    return f"{models} on {device}, {datetime.fromtimestamp(sweep.started_at).date().isoformat()}"


def _encoded(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


# --- pictures ---


def _drawn(rows: Sequence[Row]) -> list[tuple[str, bytes]]:
    """Latency distributions beside a roofline, each where there is what it needs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _matplotlib():
        figure = Figure(figsize=(14, 6))
        FigureCanvasAgg(figure)
        titles = []
        for title, draw, axis in zip(("Latency", "roofline"), (_latencies, _roofline), figure.subplots(1, 2)):
            if draw(axis, rows):
                titles.append(title)
            else:
                axis.set_axis_off()
        if not titles:
            return []
        figure.subplots_adjust(0.06, 0.33, 0.99, 0.97)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=90)
    return [(" and ".join(titles).capitalize(), picture.getvalue())]


def _latencies(axis: Any, rows: Sequence[Row]) -> bool:
    """A box for each job: quartiles, and whiskers from the 5th to the 95th percentile."""
    told = [(row, [ms for one in row.outcome.rounds for ms in one.latency_ms]) for row in rows]
    told = [(row, samples) for row, samples in told if samples][:BOXES]
    if not told:
        return False
    boxes = axis.boxplot([samples for _, samples in told], whis=(5, 95), showfliers=False, patch_artist=True)
    for box, (row, _) in zip(boxes["boxes"], told):
        box.set_facecolor(COLOURS.get(row.job.precision, OTHER_COLOUR))
    many = len({row.job.model for row, _ in told}) > 1
    axis.set_xticklabels([_short(row, many) for row, _ in told], fontsize=7, rotation=90)
    axis.set_yscale("log")
    axis.set_ylabel("latency (ms): quartiles, 5th to 95th percentile")
    return True


def _short(row: Row, with_model: bool) -> str:
    job = row.job
    return f"{f'{job.model} ' if with_model else ''}{job.precision} b{job.batch} {job.layout} {job.engine}"


def _roofline(axis: Any, rows: Sequence[Row]) -> bool:
    """Each job at its arithmetic intensity (layer by layer traffic, weights once a batch) and its rate, under the rates
    that this device was measured to reach."""
    points = [(row, point) for row in rows if (point := _point(row)) is not None]
    if not points:
        return False
    first = points[0][0].outcome
    rates = first.evidence.rates if isinstance(first, Result) and first.evidence else {}
    copy = rates.get("copy")
    least, most = (f(x for _, (x, _) in points) for f in (min, max))
    ends = [least / 3, most * 3]
    for name in ("float32", "float16"):
        if copy and name in rates:
            xs = [ends[0], rates[name] / copy, max(ends[1], rates[name] / copy * 2)]
            axis.plot(xs, [min(x * copy, rates[name]) / 1e12 for x in xs], color="#777777", linewidth=1)
            axis.annotate(f"{name} as measured", (xs[2], rates[name] / 1e12), ha="right", va="bottom", fontsize=8)
    for row, (x, y) in points:
        axis.plot(x, y, "o", color=COLOURS.get(row.job.precision, OTHER_COLOUR))
        axis.annotate(
            f"{row.job.precision} b{row.job.batch}", (x, y), fontsize=7, xytext=(4, 2), textcoords="offset points"
        )
    from matplotlib.ticker import NullFormatter

    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("arithmetic intensity (FLOP a byte)")
    axis.set_ylabel("TFLOP/s")
    return True


def _point(row: Row) -> tuple[float, float] | None:
    evidence = row.outcome.evidence if isinstance(row.outcome, Result) else None
    if evidence is None or row.seen is None or not row.seen.achieved_tflop_s or not evidence.work.layers:
        return None
    size = PRECISIONS[row.job.precision].promise.element_bytes
    weights = sum(layer.weight_elements for layer in evidence.work.layers) / row.job.batch
    moved = size * (evidence.work.traffic_elements + weights)
    return evidence.work.flops / moved, row.seen.achieved_tflop_s
