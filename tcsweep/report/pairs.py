"""One process beside a process each: two cells that differ in isolation only, as one table and one conclusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from tcsweep.explain import SUSPECT
from tcsweep.job import Job
from tcsweep.report.words import MISSING, number, percent, precision_labels, ratio, span, times
from tcsweep.speedup import Row

GAP = "  "
TOGETHER, ALONE = "in one process", "a process each"


@dataclass(frozen=True)
class Pair:
    """The rows of two cells that differ in isolation only."""

    together: tuple[Row, ...]
    alone: tuple[Row, ...]

    @property
    def job(self) -> Job:
        """What both halves have in common."""
        return self.alone[0].job


@dataclass(frozen=True)
class Column:
    """A column of one half: heading, what it shows, and when it goes in a narrow terminal (the lowest first)."""

    heading: str
    show: Callable[[Row], str]
    left: bool = False
    drop: int | None = None


def _throughput(row: Row) -> str:
    return number(row.figures.throughput_img_s) if row.figures else MISSING


def _half_width(row: Row) -> str:
    interval = row.figures.throughput_ci95 if row.figures else None
    return MISSING if interval is None else percent(interval.half_width)


def _speedup(row: Row) -> str:
    return times(row.speedup.value)


def _interval(row: Row) -> str:
    return MISSING if row.job.is_baseline else span(row.speedup.ci95)


def _verdict(row: Row) -> str:
    return row.verdict or row.outcome.status


HALVES: dict[str, tuple[Column, ...]] = {
    TOGETHER: (
        Column("img/s", _throughput),
        Column("speed-up", _speedup, drop=2),
        Column("verdict", _verdict, left=True),
    ),
    ALONE: (
        Column("img/s", _throughput),
        Column("±95%", _half_width, drop=1),
        Column("speed-up", _speedup),
        Column("95% interval", _interval, drop=3),
        Column("verdict", _verdict, left=True),
    ),
}


def paired(groups: Sequence[Sequence[Row]]) -> list[Pair | Sequence[Row]]:
    """The groups in their order, two that belong together as a pair at the place of the first."""
    by_cell = {group[0].job.cell: group for group in groups}
    found: dict[Job, Pair | Sequence[Row]] = {}
    for cell, group in by_cell.items():
        isolated = dataclasses.replace(cell, isolation="process")
        together = by_cell.get(dataclasses.replace(cell, isolation="none"))
        alone = by_cell.get(isolated)
        if together and alone:
            found.setdefault(isolated, Pair(tuple(together), tuple(alone)))
        else:
            found[cell] = group
    return list(found.values())


def print_pair(pair: Pair, title: str, console: Console) -> None:
    """The table, then what it says."""
    console.print(Text(title, style="bold cyan"))
    for line in lines(pair, console.width):
        console.print(line, no_wrap=True, crop=False, overflow="ignore")
    console.print()
    for said in conclusion(pair):
        console.print(Text(said, style="bold"))


def lines(pair: Pair, width: int) -> list[Text]:
    """The table's lines for a terminal of that width."""
    labels = list(dict.fromkeys(precision_labels([r.job for r in (*pair.together, *pair.alone)])))
    rows = {TOGETHER: _by_label(pair.together), ALONE: _by_label(pair.alone)}
    halves = _fitting(labels, rows, width)
    first = max(len("precision"), *map(len, labels))
    table = {name: _half(columns, [rows[name].get(label) for label in labels]) for name, columns in halves.items()}
    widths = {name: max(len(name), len(cells[0])) for name, cells in table.items()}
    made = [
        Text(GAP.join([" " * first, *(f"{name:^{widths[name]}}" for name in table)]), style="bold"),
        Text(
            GAP.join([f"{'precision':<{first}}", *(f"{cells[0]:<{widths[n]}}" for n, cells in table.items())]), "bold"
        ),
        Text(GAP.join("─" * size for size in (first, *widths.values()))),
    ]
    for place, label in enumerate(labels, 1):
        made.append(Text(f"{label:<{first}}"))
        for name, cells in table.items():
            row = rows[name].get(label)
            style = "red" if row and row.verdict == SUSPECT else ""
            made[-1].append(GAP).append(f"{cells[place]:<{widths[name]}}", style)
    return made


def _by_label(rows: Sequence[Row]) -> dict[str, Row]:
    return dict(zip(precision_labels([r.job for r in rows]), rows, strict=True))


def _fitting(labels: Sequence[str], rows: dict[str, dict[str, Row]], width: int) -> dict[str, tuple[Column, ...]]:
    """The columns of both halves that the terminal has room for."""
    halves = dict(HALVES)
    for drop in sorted(c.drop for columns in HALVES.values() for c in columns if c.drop):
        needed = max(len("precision"), *map(len, labels))
        for name, columns in halves.items():
            needed += len(GAP) + max(len(name), len(_half(columns, list(rows[name].values()))[0]))
        if needed <= width:
            break
        halves = {name: tuple(c for c in columns if c.drop != drop) for name, columns in halves.items()}
    return halves


def _half(columns: Sequence[Column], rows: Sequence[Row | None]) -> list[str]:
    """A half's heading and its lines, all of one length; a row that is not there is empty."""
    texts = [[c.heading, *(c.show(row) if row else "" for row in rows)] for c in columns]
    sizes = [max(map(len, column)) for column in texts]
    aligned = [
        [f"{text:<{size}}" if c.left else f"{text:>{size}}" for text in column]
        for c, column, size in zip(columns, texts, sizes, strict=True)
    ]
    return [GAP.join(cells) for cells in zip(*aligned, strict=True)]


def conclusion(pair: Pair) -> list[str]:
    """What the two halves say together: the lie, and the truth."""
    lie = next((said for row in _baseline_first(pair.together) if (said := _lie(row, pair.alone))), None)
    if lie is None and any(row.verdict == SUSPECT for row in pair.together):
        lie = f"{TOGETHER} some jobs were suspect: see below"
    truth = [
        f"{label} {times(row.speedup.value)}"
        for label, row in _by_label(pair.alone).items()
        if row.speedup.value is not None and not row.job.is_baseline
    ]
    return [
        lie or f"{TOGETHER} no job was suspect: what one left behind changed none of the next",
        f"true speed-up over fp32: {', '.join(truth)}" if truth else "no true speed-up: see the notes below",
    ]


def _baseline_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: not row.job.is_baseline)


def _lie(row: Row, others: Sequence[Row]) -> str | None:
    """What a suspect job of the shared process was, beside the same one alone."""
    alone = next((r for r in others if dataclasses.replace(r.job, isolation=row.job.isolation) == row.job), None)
    if row.verdict != SUSPECT or row.figures is None or alone is None or alone.figures is None:
        return None
    if alone.verdict == SUSPECT:
        return None
    rates = row.figures.throughput_img_s, alone.figures.throughput_img_s
    much = (
        f"{ratio(rates[0] / rates[1])} times what it does alone" if rates[0] > 1.05 * rates[1] else "as fast as alone"
    )
    reason = next(v.reasons[0] for v in row.verdicts if v.name == SUSPECT)
    return f"{TOGETHER} {row.job.precision} ran at {number(rates[0])} img/s, {much}: {reason}"
