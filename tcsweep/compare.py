"""`python -m tcsweep compare A B`: two saved sweeps side by side, two devices or two JetPacks, and what differs between
them. Nothing is measured, and torch is not needed.

Exit status 0, 2 for a folder that holds no sweep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Job, Measure
from tcsweep.mistakes import Mistake
from tcsweep.speedup import Row
from tcsweep.stats import Interval

USAGE = "python -m tcsweep compare FOLDER FOLDER"
NOT_COMPARED = {"device", "host", "notes", "removed_variables"}  # what differs by itself, or changes no figure
NAMED = 6  # jobs of one sweep alone


@dataclass(frozen=True)
class Line:
    """A job that both sweeps have, but for device and settings of the measurement."""

    a: Row
    b: Row

    @property
    def reason(self) -> str | None:
        """Why there is no ratio."""
        for name, row in (("A", self.a), ("B", self.b)):
            if row.figures is None:
                return f"{name} was not measured"
            if row.verdict == SUSPECT:
                return f"{name} is suspect"
        return None

    @property
    def ratio(self) -> float | None:
        """B's throughput over A's."""
        if self.reason is not None or self.a.figures is None or self.b.figures is None:
            return None
        return self.b.figures.throughput_img_s / self.a.figures.throughput_img_s

    @property
    def ci95(self) -> Interval | None:
        """Of the ratio: two independent intervals, their half-widths on a log scale added in quadrature."""
        ratio = self.ratio
        ends = [row.figures.throughput_ci95 for row in (self.a, self.b) if row.figures]
        if ratio is None or len(ends) < 2 or any(e is None or e.low <= 0 for e in ends):
            return None
        wide = math.hypot(*(math.log(e.high / e.low) / 2 for e in ends if e is not None))
        return Interval(ratio * math.exp(-wide), ratio * math.exp(wide))


def main(arguments: list[str]) -> int:
    """Print both side by side. Raises Mistake."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\nTwo saved sweeps side by side, and what differs between their environments.")
        return 0
    if len(arguments) != 2 or any(a.startswith("-") for a in arguments):
        raise Mistake(f"compare takes two sweeps' folders: {USAGE}")
    from rich.console import Console

    from tcsweep.api import load_results

    a, b = (load_results(name) for name in arguments)
    _print(a, b, Console())
    return 0


def matched(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Line], list[Row], list[Row]]:
    """The jobs of both, in A's order; then those of A alone and of B alone."""
    there = {key(row.job): row for row in b}
    lines = [Line(row, there[key(row.job)]) for row in a if key(row.job) in there]
    ours = {key(row.job) for row in a}
    alone = [row for row in a if key(row.job) not in there], [row for row in b if key(row.job) not in ours]
    return lines, *alone


def key(job: Job) -> Job:
    """What makes two jobs the same one: all but the device, how they were measured and which amp backend ran."""
    backend = None if job.amp_backend is None else "any"
    return dataclasses.replace(job, device="any", measure=Measure(), seed=0, amp_backend=backend)


def changed(a: Environment, b: Environment) -> list[tuple[str, Any, Any]]:
    """The fields that differ, with both values; one that neither or only an old result has not told is left out."""
    fields = [f.name for f in dataclasses.fields(Environment) if f.name not in NOT_COMPARED]
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in fields]
    return [(name, was, now) for name, was, now in pairs if was != now]


def _print(a: Any, b: Any, console: Any) -> None:
    from rich.table import Table

    from tcsweep.report.words import device_title, number, times

    lines, only_a, only_b = matched(a.rows, b.rows)
    for name, one in (("A", a), ("B", b)):
        title = device_title(one.rows[0].outcome.environment if one.rows else one.sweep.environment)
        console.print(f"{name}: {title}   {one.folder}", soft_wrap=True, highlight=False, markup=False)
    if not lines:
        console.print("no job is in both")
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "precision", "batch", "layout", "engine"):
        table.add_column(heading, overflow="fold")
    for heading in ("A img/s", "B img/s", "B/A", "95% interval", "A speed-up", "B speed-up"):
        table.add_column(heading, justify="right")
    table.add_column("note", overflow="fold")
    for line in lines:
        job, ci = line.a.job, line.ci95
        rates = [number(row.figures.throughput_img_s) if row.figures else "—" for row in (line.a, line.b)]
        interval = f"{ci.low:.2f}–{ci.high:.2f}" if ci else "—"
        same = "no difference" if ci is not None and ci.low <= 1 <= ci.high else ""
        speedups = [times(row.speedup.value) for row in (line.a, line.b)]
        table.add_row(
            *(job.model, job.precision, str(job.batch), job.layout, job.engine),
            *(*rates, times(line.ratio), interval, *speedups, line.reason or same),
        )
    if lines:
        console.print(table)
    for name, rows in (("A", only_a), ("B", only_b)):
        if rows:
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            labels = ", ".join(row.job.label for row in rows[:NAMED]) + more
            console.print(f"only in {name}: {labels}", soft_wrap=True, highlight=False, markup=False)
    _print_changes(lines, console)


def _print_changes(lines: Sequence[Line], console: Any) -> None:
    if not lines:
        return
    first = lines[0]
    found = changed(first.a.outcome.environment, first.b.outcome.environment)
    settings = [
        (f"measure.{f.name}", getattr(first.a.job.measure, f.name), getattr(first.b.job.measure, f.name))
        for f in dataclasses.fields(Measure)
    ]
    found += [(name, was, now) for name, was, now in settings if was != now]
    console.print("what differs:" if found else "nothing differs between the environments")
    for name, was, now in found:
        console.print(f"  {name}: {_say(was)} → {_say(now)}", soft_wrap=True, highlight=False, markup=False)


def _say(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    return "not told" if value is None else str(value)
