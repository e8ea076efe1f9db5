"""`python -m tcsweep compare A B`: two saved sweeps side by side, two devices or two JetPacks; what differs between
them comes first. Nothing is measured, and torch is not needed.

Exit status 0, 2 for a folder that holds no sweep, or two whose figures must not be compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Job, Measure
from tcsweep.mistakes import Mistake
from tcsweep.speedup import Row
from tcsweep.stats import Interval

USAGE = "python -m tcsweep compare FOLDER FOLDER"
NOT_COMPARED = {"device", "host", "notes", "removed_variables"}  # what differs by itself, or changes no figure
# What every GPU, or CPU, has, so that a result that does not tell it leaves the question open. Others are a board's.
TOLD_OF_GPU = ("device_name", "gpu_uuid", "driver", "cuda", "cudnn", "torch")
TOLD_OF_CPU = ("cpu_model", "torch")
NAMED = 6  # jobs of one sweep alone
UNKNOWN = "unknown"
ONE_ROUND = "one round"
AXES = ("model", "precision", "batch", "layout", "engine")
ROOMY = 110  # columns of a terminal, from which on both speed-ups are shown

Change = tuple[str, Any, Any]  # a field, what it was, what it is


@dataclass(frozen=True)
class Line:
    """A job that both sweeps have, but for device and settings of the measurement; or two that differ in one field of
    the job, which `apart` names."""

    a: Row
    b: Row
    apart: tuple[Change, ...] = ()

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

    @property
    def note(self) -> str:
        """What has to be known of the ratio."""
        said = [f"{name} {_say(was)} → {_say(now)}" for name, was, now in self.apart]
        if self.reason:
            return "; ".join([self.reason, *said])
        ci = self.ci95
        if ci is None:
            return "; ".join([*said, ONE_ROUND])
        return "; ".join([*said, *(["not significant"] if ci.low <= 1 <= ci.high else [])])


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
    for name, one in (("A", a), ("B", b)):
        if not one.rows:
            raise Mistake(f"{name}, {one.folder}, has no results")
    versions = [one.sweep.measurement_version for one in (a, b)]
    if versions[0] != versions[1]:
        raise Mistake(f"A was measured in way {versions[0]}, B in way {versions[1]}: such figures must not be compared")
    _print(a, b, Console())
    return 0


def matched(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Line], list[Row], list[Row]]:
    """The jobs of both, in A's order, then pairs of the others that differ in one field; then those of A alone and of
    B alone."""
    there = {key(row.job): row for row in b}
    lines = [Line(row, there[key(row.job)]) for row in a if key(row.job) in there]
    ours = {key(row.job) for row in a}
    only_a, only_b = [r for r in a if key(r.job) not in there], [r for r in b if key(r.job) not in ours]
    for row in list(only_a):
        found = [(other, apart) for other in only_b if len(apart := fields_apart(row.job, other.job)) == 1]
        if len(found) == 1:
            ((other, apart),) = found
            lines.append(Line(row, other, apart))
            only_a.remove(row)
            only_b.remove(other)
    return lines, only_a, only_b


def key(job: Job) -> Job:
    """What makes two jobs the same one: all but the device, how they were measured and which amp backend ran."""
    backend = None if job.amp_backend is None else "any"
    return dataclasses.replace(job, device="any", measure=Measure(), seed=0, amp_backend=backend)


def fields_apart(a: Job, b: Job) -> tuple[Change, ...]:
    """The fields in which two jobs that should be the same one differ."""
    one, other = key(a), key(b)
    pairs = ((f.name, getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Job))
    return tuple((name, was, now) for name, was, now in pairs if was != now)


def changed(a: Environment, b: Environment) -> list[Change]:
    """The fields that differ, with both values, and those that a device has but neither tells: unknown is not equal."""
    names = [f.name for f in dataclasses.fields(Environment) if f.name not in NOT_COMPARED]
    told = TOLD_OF_GPU if a.device.startswith("cuda") or b.device.startswith("cuda") else TOLD_OF_CPU
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    return [(n, was, now) for n, was, now in pairs if was != now or (was is None and n in told)]


def differences(lines: Sequence[Line]) -> list[Change]:
    """All that differs between the two sweeps' jobs: environments, how they ran and how they were measured, each
    once."""
    found: dict[tuple[str, str, str], Change] = {}
    for line in lines:
        for one in (*_environment(line), *_rounds(line), *_measure(line), *line.apart):
            found.setdefault((one[0], _say(one[1]), _say(one[2])), one)
    return list(found.values())


def _environment(line: Line) -> Iterable[Change]:
    return changed(line.a.outcome.environment, line.b.outcome.environment)


def _rounds(line: Line) -> Iterable[Change]:
    """What the rounds say of themselves: what ran an O level, which weights, what half was, the input."""
    for name in ("amp_backend", "amp_version", "half_dtype", "weights_sha256", "input"):
        was, now = (next((v for r in row.outcome.rounds if (v := getattr(r, name))), None) for row in (line.a, line.b))
        if was != now and line.a.outcome.rounds and line.b.outcome.rounds:
            yield name, was, now


def _measure(line: Line) -> Iterable[Change]:
    for f in dataclasses.fields(Measure):
        was, now = (getattr(row.job.measure, f.name) for row in (line.a, line.b))
        if was != now:
            yield f"measure.{f.name}", was, now
    if line.a.job.seed != line.b.job.seed:
        yield "seed", line.a.job.seed, line.b.job.seed


def _print(a: Any, b: Any, console: Any) -> None:
    from tcsweep.report.words import device_title

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    lines, only_a, only_b = matched(a.rows, b.rows)
    for name, one in (("A", a), ("B", b)):
        title = device_title(one.rows[0].outcome.environment)
        say(f"{name}: {title}   {one.folder}")
    found = differences(lines)
    if a.folder == b.folder:
        say("A and B are the same folder")
    elif lines:
        _print_differences(found, say)
    if lines:
        common = [
            str(getattr(lines[0].a.job, name)) for name in AXES if len({getattr(n.a.job, name) for n in lines}) == 1
        ]
        say(" · ".join(common))
        console.print(_table(lines, console.width))
        if any(line.ratio is not None and line.ci95 is None for line in lines):
            say(f"{ONE_ROUND}: no interval, so nobody knows if a difference is significant; measure=default has one")
    else:
        say("no job is in both, and no two differ in one field only")
    if len(found) > 1 and a.folder != b.folder and any(line.ratio is not None for line in lines):
        say("B/A holds all of these differences at once: no single one is its cause")
    for name, rows in (("A", only_a), ("B", only_b)):
        if rows:
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            say(f"only in {name}: {', '.join(row.job.label for row in rows[:NAMED])}{more}")


def _print_differences(found: Sequence[Change], say: Any) -> None:
    say("what differs:" if found else "nothing differs between the environments")
    for name, was, now in found:
        both = was is None and now is None
        say(f"  {name}: {UNKNOWN} in both" if both else f"  {name}: {_say(was)} → {_say(now)}")


def _axes_apart(lines: Sequence[Line]) -> list[str]:
    return [name for name in AXES if len({getattr(line.a.job, name) for line in lines}) > 1] or ["precision"]


def _table(lines: Sequence[Line], width: int) -> Any:
    """A line a job: the axes that tell the jobs apart, and the figures; both speed-ups where there is room."""
    from rich.table import Table

    from tcsweep.report.words import number, span, times

    axes = _axes_apart(lines)
    table = Table(box=None, pad_edge=False)
    for heading in axes:
        table.add_column(heading, no_wrap=True)
    figures = ["A img/s", "B img/s", "B/A", "95%", *(["A x", "B x"] if width >= ROOMY else [])]
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for line in lines:
        rates = [number(row.figures.throughput_img_s if row.figures else None) for row in (line.a, line.b)]
        speedups = [times(row.speedup.value) for row in (line.a, line.b)] if width >= ROOMY else []
        cells = [str(getattr(line.a.job, name)) for name in axes]
        table.add_row(*cells, *rates, times(line.ratio), span(line.ci95), *speedups, line.note)
    return table


def _say(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value)) or "none"
    return UNKNOWN if value is None else str(value)
