"""report.html and report.md: a sweep told with the answer first, from saved results alone. One file each."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tcsweep import published
from tcsweep.attribution import Part, attribution, by_layer, longest
from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Failure, Measure, Skipped, Sweep
from tcsweep.report.pictures import Picture, pictures
from tcsweep.report.plot import PICTURE
from tcsweep.report.words import device_title, number, one_line, span, times
from tcsweep.speedup import Row
from tcsweep.store import write_file
from tcsweep.why import Cause, Neighbours, causes, main_cause

HTML, MARKDOWN = "report.html", "report.md"
TEMPLATE = Path(__file__).with_name("page.html")
LAYERS = 12  # that gained or lost most
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
    "held back by",
)


@dataclass(frozen=True)
class Cell:
    """What is shown, and the exact value behind it."""

    text: str
    value: float | None = None
    figure: bool = False  # set to the right


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
    others = Neighbours(rows)
    return [Line(_cells(row, main_cause(row, others)), row.verdict or row.outcome.status) for row in rows]


def _cells(row: Row, cause: Cause | None) -> tuple[Cell, ...]:
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
        Cell(number(rate), rate, True),
        Cell(times(row.speedup.value), row.speedup.value, True),
        Cell(span(None if row.job.is_baseline else ci), None, True),
        Cell(number(latency), latency, True),
        Cell(said),
        Cell(cause.name if cause else "—"),
    )


def findings(rows: Sequence[Row]) -> list[tuple[str, list[str], list[str]]]:
    """Each job with its verdicts and its causes; jobs with neither are left out."""
    others = Neighbours(rows)
    found = [
        (_name(row), [f"{v.name}: {'; '.join(v.reasons)}" for v in row.verdicts], list(causes(row, others)))
        for row in rows
    ]
    return [one for one in found if one[1] or one[2]]


@dataclass(frozen=True)
class Where:
    """Where the time of a job went against its fp32: the job's name, and the parts."""

    name: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def whole(self) -> Part:
        """All of them."""
        return Part("all", sum(p.before_ms for p in self.parts), sum(p.after_ms for p in self.parts))


def where(rows: Sequence[Row]) -> Where:
    """By kind of work, of the fastest job that can be taken apart."""
    return _taken_apart(rows, attribution)


def where_by_layer(rows: Sequence[Row]) -> Where:
    """By layer, of the fastest eager one: the layers that gained or lost most, and the others as one."""
    found = _taken_apart(rows, by_layer)
    return Where(found.name, longest(found.parts, LAYERS))


def _taken_apart(rows: Sequence[Row], split: Callable[[Row, Sequence[Row]], tuple[Part, ...]]) -> Where:
    able = [r for r in rows if r.outcome.role == "asked" and r.figures is not None]
    for row in sorted(able, key=lambda row: -row.figures.throughput_img_s if row.figures else 0.0):
        if parts := split(row, rows):
            return Where(_name(row), parts)
    return Where()


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

    by_kind = where(rows)
    drawn = pictures(rows, by_kind.name, by_kind.parts)
    if (folder / PICTURE).is_file():
        title = "Throughput and speed-up by batch"
        drawn.insert(0, Picture(title, (folder / PICTURE).read_bytes(), f"{title}: the figures are in the table above"))
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text()
    )
    return template.render(
        title=_title(sweep, rows),
        answer=answer(rows),
        headings=HEADINGS,
        lines=table(rows),
        pictures=[(one.title, one.alt, _encoded(one.png)) for one in drawn],
        findings=findings(rows),
        tables=[("by kind of work", by_kind), ("by layer", where_by_layer(rows))],
        environment=environment(sweep, rows),
        settings=settings(rows),
        command=sweep.command,
        removed=sweep.environment.removed_variables,
    )


def markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The same without pictures but the sweep's own."""
    parts = [f"# {_title(sweep, rows)}", *answer(rows), f"![throughput]({PICTURE})", _markdown_table(HEADINGS, rows)]
    for title, one in (("by kind of work", where(rows)), ("by layer", where_by_layer(rows))):
        if one.parts:
            parts.append(f"## Where the time went, {title}\n{one.name} against its fp32, ms an iteration")
            parts.append(_markdown_parts(one))
    parts.append("## Each job")
    for name, verdicts, why in findings(rows):
        parts.append("\n".join([f"**{name}**", "", *(f"- {line}" for line in (*verdicts, *why))]))
    parts.append("## Environment\n" + "\n".join(f"- {name}: {value}" for name, value in environment(sweep, rows)))
    parts.append("## How it was measured\n" + "\n".join(f"- {name}: {value}" for name, value in settings(rows)))
    parts.append(f"    {sweep.command}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [" | ".join(cell.text.replace("|", "\\|") for cell in line.cells) for line in table(rows)]
    return "\n".join(f"| {line} |" for line in (" | ".join(headings), " | ".join("---" for _ in headings), *lines))


def _markdown_parts(one: Where) -> str:
    lines = ["| | fp32 (ms) | now (ms) | times as fast | saved (ms) |", "|---|---|---|---|---|"]
    lines += [
        f"| {p.name} | {p.before_ms:.3f} | {p.after_ms:.3f} | {times(p.speedup)} | {p.saved_ms:.3f} |"
        for p in (*one.parts, one.whole)
    ]
    return "\n".join(lines)


def _title(sweep: Sweep, rows: Sequence[Row]) -> str:
    models = ", ".join(dict.fromkeys(row.job.model for row in rows)) or "no jobs"
    device = device_title(rows[0].outcome.environment if rows else sweep.environment)
    return f"{models} on {device}, {datetime.fromtimestamp(sweep.started_at).date().isoformat()}"


def _encoded(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
