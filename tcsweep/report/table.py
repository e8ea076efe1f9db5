"""What a person sees when a sweep ends: one table a cell, like the published benchmark's, and the lines around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tcsweep import published, why
from tcsweep.explain import SUSPECT, Verdict
from tcsweep.job import Failure, Job, Skipped, Sweep
from tcsweep.report.frame import ONCE, closing, failure_words, failures, footnotes, heading, suspicions
from tcsweep.report.pairs import Pair, paired, print_pair
from tcsweep.report.words import (
    MISSING,
    encodable,
    group_title,
    number,
    one_line,
    percent,
    precision_labels,
    seconds_for_images,
    span,
    times,
)
from tcsweep.speedup import OK, Row, Speedup

GAP = 2  # columns between two columns
NOTE_LEAST = 14  # "no difference" and "added baseline" on one line
NOTE_ROOMY = 30  # from here on a note gives its reasons too
# rich's SIMPLE with a rule for its sections, and no ends: added jobs stand under the rule.
_BOX = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")


@dataclass(frozen=True)
class Column:
    """A column of figures: its name in sentences, its heading, what it shows, and when it goes in a narrow terminal."""

    name: str
    heading: str
    show: Callable[[Row], str]
    drop: int | None = None  # the lowest goes first; None always stays


def _seconds(row: Row) -> str:
    return number(seconds_for_images(row.figures)) if row.figures else MISSING


def _throughput(row: Row) -> str:
    return number(row.figures.throughput_img_s) if row.figures else MISSING


def _half_width(row: Row) -> str:
    if row.figures is None:
        return MISSING
    if row.figures.throughput_ci95 is None:
        return "1 round" if row.figures.rounds == 1 else MISSING
    return percent(row.figures.throughput_ci95.half_width)


def _interval(row: Row) -> str:
    return MISSING if row.job.is_baseline else span(row.speedup.ci95)


def _latency(row: Row) -> str:
    return number(row.figures.latency_ms_p50) if row.figures else MISSING


def _per_watt(row: Row) -> str:
    return number(row.seen.throughput_img_s_w) if row.seen else MISSING


PER_WATT = "img/s a watt"  # only where a power mode was chosen

COLUMNS = (
    Column("seconds for 3000 images", "3000\nimg (s)", _seconds, drop=4),
    Column("img/s", "img/s", _throughput),
    Column("±95%", "±95%", _half_width, drop=2),
    Column("speed-up", "speed-\nup", lambda row: times(row.speedup.value)),
    Column("95% interval of the speed-up", "95%\ninterval", _interval, drop=1),
    Column("total speed-up", "total\nspeed-\nup", lambda row: times(row.speedup_total.value)),
    Column(PER_WATT, "img/s\na W", _per_watt),
    Column("latency p50", "latency\np50 (ms)", _latency, drop=3),
)
STANDING = {"asked": "", "stored": "stored "}  # else tcsweep added it
TOTAL = "total speed-up"  # only where it can differ from the speed-up


@dataclass(frozen=True)
class Layout:
    """The columns that a terminal has room for, their widths, and the width left for the note."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...]  # precision first, then the columns
    note: int
    space: int  # that the note might have had: enough for reasons or not
    left_out: tuple[str, ...]

    @property
    def width(self) -> int:
        """Of the whole table, with the space that rich leaves after its last column."""
        return sum(self.widths) + GAP * len(self.widths) + self.note + 1


def render(sweep: Sweep, rows: list[Row], console: Console) -> None:
    """Print the sweep's tables, what failed and the counts; aligned everywhere, coloured on a terminal only."""
    if console.options.ascii_only:
        with console.capture() as captured:
            _render(sweep, rows, console)
        console.out(encodable(captured.get(), console.encoding), end="", highlight=False)
    else:
        _render(sweep, rows, console)


def _render(sweep: Sweep, rows: list[Row], console: Console) -> None:
    for line in heading(sweep, rows):
        console.print(Text(line, style="bold"))
    groups = paired(grouped(rows))
    single = [row for group in groups if not isinstance(group, Pair) for row in group]
    layout = plan(single, console.width)
    jobs = [row.job for row in rows]
    for group in groups:
        console.print()
        if isinstance(group, Pair):
            same = [dataclasses.replace(job, isolation=group.job.isolation) for job in jobs]
            print_pair(group, group_title(group.job, same), console)
            continue
        console.print(Text(group_title(group[0].job, jobs), style="bold cyan"))
        console.print(_table(group, layout), crop=False, no_wrap=False)
    console.print()
    if single and any(c.name == TOTAL for c in layout.columns):
        console.print(Text("total speed-up: over fp32, nchw, eager of the same batch", style="dim"))
    told = why.lines(rows, console.width)
    if (gap := published.line(rows)) and why.height([*told, gap], console.width) <= why.LINES:
        told.append(gap)
    for line in told:
        console.print(line, highlight=False, markup=False)
    if told:
        console.print()
    for line in footnotes(sweep, rows, layout.left_out, console.width):
        console.print(Text(line, style="dim"))
    _print_suspicions(rows, console)
    _print_failures(rows, console)
    if any(isinstance(row.outcome, Failure) or row.verdict == SUSPECT for row in rows):
        console.print()
    console.print(Text(closing(sweep, rows), style="bold"))


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by cell in the order first seen; in a cell those asked for first, in the order typed."""
    ordered = sorted(rows, key=lambda row: row.outcome.index)
    groups: dict[Job, list[Row]] = {}
    for row in ordered:
        groups.setdefault(row.job.cell, []).append(row)
    return [sorted(group, key=lambda row: row.outcome.role != "asked") for group in groups.values()]


def plan(rows: Sequence[Row], width: int) -> Layout:
    """The columns for a terminal of that width, the same for every table of the sweep."""
    wanted = {TOTAL: _total_differs(rows), PER_WATT: any(row.job.power for row in rows)}
    columns = [c for c in COLUMNS if wanted.get(c.name, True)]
    names = [_cell_width(["precision", *precision_labels([r.job for r in rows])])]
    widths = {c.name: _cell_width([*c.heading.split("\n"), *map(c.show, rows)]) for c in columns}
    left_out = []

    def room() -> int:
        return width - 1 - names[0] - GAP - sum(widths[c.name] + GAP for c in columns)

    for column in sorted((c for c in columns if c.drop), key=lambda c: c.drop or 0):
        if room() >= NOTE_LEAST:
            break
        columns.remove(column)
        if any(column.show(row) != MISSING for row in rows):
            left_out.append(column.name)
    space = max(room(), NOTE_LEAST)
    note = min(space, max((len(note_of(r, space, columns)) for r in rows), default=0))
    return Layout(
        columns=tuple(columns),
        widths=(*names, *(widths[c.name] for c in columns)),
        note=max(note, len("note")),
        space=space,
        left_out=tuple(left_out),
    )


def _cell_width(texts: Sequence[str]) -> int:
    return max(len(t) for t in texts)


def _total_differs(rows: Sequence[Row]) -> bool:
    return len({(r.job.layout, r.job.engine) for r in rows}) > 1


def _table(group: Sequence[Row], layout: Layout) -> Table:
    table = Table(box=_BOX, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), width=layout.width)
    lines = max(c.heading.count("\n") for c in layout.columns)
    table.add_column(_low("precision", lines), width=layout.widths[0], no_wrap=True)
    for column, width in zip(layout.columns, layout.widths[1:], strict=True):
        table.add_column(_low(column.heading, lines), width=width, justify="right", no_wrap=True)
    table.add_column(_low("note", lines), width=layout.note, overflow="fold")
    labels = precision_labels([row.job for row in group])
    for place, (row, label) in enumerate(zip(group, labels, strict=True)):
        if place and row.outcome.role != "asked" and group[place - 1].outcome.role == "asked":
            table.add_section()
        figures = [Text(c.show(row), style=_figure_style(c, row)) for c in layout.columns]
        note = Text(note_of(row, layout.space, layout.columns), style=_note_style(row))
        table.add_row(Text(label), *figures, note, style="dim" if row.outcome.role != "asked" else "")
    return table


def _low(heading: str, lines: int) -> str:
    """The heading at the foot of the header."""
    return "\n" * (lines - heading.count("\n")) + heading


def note_of(row: Row, room: int, columns: Sequence[Column] = ()) -> str:
    """What has to be said of a row; reasons with their figures where there is room for them."""
    outcome, with_total = row.outcome, any(c.name == TOTAL for c in columns)
    said = [_standing(row, with_total)]
    if isinstance(outcome, Failure):
        said.append(f"failed: {failure_words(outcome)}")
    elif isinstance(outcome, Skipped):
        said.append(f"skipped: {one_line(outcome.reason)}")
    else:
        if row.verdict != SUSPECT:  # then that is why
            said += [_no_difference(row), _missing(row.speedup), _missing(row.speedup_total) if with_total else ""]
        said += [_verdict(v, room) for v in row.verdicts if v.name not in ONCE]
    return "; ".join(dict.fromkeys(s for s in said if s))


def _standing(row: Row, with_total: bool) -> str:
    """What other jobs are compared with this one, and whether tcsweep added it."""
    names = ["baseline"] if row.job.is_baseline else []
    if row.job.is_reference and (with_total or row.outcome.role == "reference"):
        names.append("reference")
    return STANDING.get(row.outcome.role, "added ") + " and ".join(names)


def _no_difference(row: Row) -> str:
    interval = row.speedup.ci95
    if interval is None or row.job.is_baseline or not interval.low <= 1 <= interval.high:
        return ""
    return "no difference"


def _missing(speedup: Speedup) -> str:
    """Why there is no speed-up, its first two parts: a failed baseline is told in full where it failed."""
    if speedup.value is not None or not speedup.reason:
        return ""
    return ": ".join(one_line(speedup.reason).split(": ", 2)[:2])


def _verdict(verdict: Verdict, room: int) -> str:
    """With its reasons where there is room; a suspicion's stand below the tables."""
    if room < NOTE_ROOMY or verdict.name == SUSPECT:
        return verdict.name
    return f"{verdict.name}: {', '.join(verdict.reasons)}"


def _figure_style(column: Column, row: Row) -> str:
    interval = row.speedup.ci95
    if column.name != "speed-up" or interval is None or row.job.is_baseline:
        return ""
    return "bold green" if interval.low > 1 else "bold red" if interval.high < 1 else ""


def _note_style(row: Row) -> str:
    if isinstance(row.outcome, Failure) or row.verdict == SUSPECT:
        return "red"
    if isinstance(row.outcome, Skipped) or row.verdict not in (None, OK, *ONCE):
        return "yellow"
    return ""


def _print_suspicions(rows: Sequence[Row], console: Console) -> None:
    for label, reasons in suspicions(rows):
        console.print()
        console.print(Text(f"suspect: {label}", style="red"), soft_wrap=True)
        for reason in reasons:
            console.print(Padding(Text(reason, overflow="fold"), (0, 0, 0, 2), expand=False))


def _print_failures(rows: Sequence[Row], console: Console) -> None:
    for label, what, log in failures(rows):
        console.print()
        console.print(Text(f"failed: {label}", style="red"), soft_wrap=True)
        console.print(Padding(Text(what, overflow="fold"), (0, 0, 0, 2), expand=False))
        if log:
            console.print(Text(f"  log: {log}"), soft_wrap=True)
