"""throughput.png: throughput and speed-up by batch, a panel row for each model, layout and engine; throughput per watt,
too, where power modes were chosen."""

from __future__ import annotations

import dataclasses
import io
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tcsweep.explain import SUSPECT
from tcsweep.job import Failure, Job, Skipped, Sweep
from tcsweep.report.words import COLOURS, OTHER_COLOUR, device_title, group_title, precision_labels
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.store import write_file

PICTURE = "throughput.png"
PANEL_ROWS = 6  # more are left to summary.csv, and said
SPEEDUP = "speed-up over fp32"
BAR_WIDEST = 0.3  # of the distance between batches: a single job is a bar, not a wall
BAR_BATCHES = 6  # more batches are drawn as lines
LOG_OVER = 50  # a range of more than so many times gets a logarithmic axis
_SETTINGS = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.06,
}
_MARKERS = "osD^vP*Xph"  # so that a line is known by more than its colour
_HATCHES = ("", "///", "...", "xxx")  # of jobs alike in precision: another amp backend, a repeat
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Series:
    """The jobs of a panel that share a label: one bar a batch, or one line."""

    label: str
    precision: str
    variant: int  # 0, and up for jobs alike in precision
    rows: dict[int, Row]  # by batch


@dataclass(frozen=True)
class Panel:
    """What is drawn side by side: jobs that differ in precision and batch only."""

    title: str
    batches: tuple[int, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Quantity:
    """What an axis shows of a row: its value and its 95% interval."""

    name: str
    value: Callable[[Row], float | None]
    interval: Callable[[Row], Interval | None]


QUANTITIES = (
    Quantity(
        "throughput (img/s)",
        lambda row: row.figures.throughput_img_s if row.figures else None,
        lambda row: row.figures.throughput_ci95 if row.figures else None,
    ),
    Quantity(SPEEDUP, lambda row: row.speedup.value, lambda row: row.speedup.ci95),
)
PER_WATT = Quantity(
    "throughput per watt (img/s a watt)", lambda row: row.seen.throughput_img_s_w if row.seen else None, lambda _: None
)


def draw(path: Path, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Draw the sweep's picture. Needs matplotlib, which is imported here only; raises what it raises."""
    found = panels(rows)
    with matplotlib_quiet():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        shown = found[:PANEL_ROWS]
        quantities = (*QUANTITIES, PER_WATT) if any(row.job.power for row in rows) else QUANTITIES
        size = (5.5 * len(quantities), 1.5 + 3.4 * max(len(shown), 1))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # not pyplot: no backend, window or list of figures of the process is touched
        _fill(figure, sweep, rows, shown, len(found), quantities)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())


@contextmanager
def matplotlib_quiet() -> Iterator[None]:
    """matplotlib with its own defaults, whatever the user's matplotlibrc; quiet where home cannot be written (it then
    keeps its cache in a temporary folder)."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_SETTINGS)
            yield
    finally:
        log.setLevel(level)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Panels in the order first seen; those that hold added jobs only are left out."""
    groups: dict[Job, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.outcome.index):
        groups.setdefault(dataclasses.replace(row.job.cell, batch=1), []).append(row)
    kept = {k: group for k, group in groups.items() if any(r.outcome.role == "asked" for r in group)}
    return [_panel(key, group, list(kept)) for key, group in kept.items()]


def _panel(key: Job, group: Sequence[Row], keys: Sequence[Job]) -> Panel:
    labelled: dict[str, dict[int, Row]] = {}
    for row, label in zip(group, precision_labels([r.job for r in group]), strict=True):
        labelled.setdefault(label, {})[row.job.batch] = row
    names = [next(iter(found.values())).job.precision for found in labelled.values()]
    series = [
        Series(label, name, names[:place].count(name), found)
        for place, (name, (label, found)) in enumerate(zip(names, labelled.items(), strict=True))
    ]
    title = group_title(key, keys).replace(" · batch 1", "")
    return Panel(title, tuple(sorted({r.job.batch for r in group})), tuple(sorted(series, key=_baseline_first)))


def _baseline_first(series: Series) -> bool:
    return series.precision != "fp32"


def _fill(
    figure: Any,
    sweep: Sweep,
    rows: Sequence[Row],
    shown: Sequence[Panel],
    found: int,
    quantities: Sequence[Quantity],
) -> None:
    figure.suptitle(_plain(_title(sweep, rows)), fontweight="bold")
    if not shown:
        figure.text(0.5, 0.5, "no jobs", ha="center")
        return
    axes = figure.subplots(len(shown), len(quantities), squeeze=False)
    lines = max(len(p.batches) for p in shown) > BAR_BATCHES
    for panel, pair in zip(shown, axes, strict=True):
        for quantity, axis in zip(quantities, pair, strict=True):
            _axis(axis, panel, quantity, lines)
            axis.set_title(_plain(panel.title), fontsize=9)
    _legend(figure, axes, _remarks(rows, len(shown), found))


def _title(sweep: Sweep, rows: Sequence[Row]) -> str:
    models = list(dict.fromkeys(r.job.model for r in rows))
    devices = list(dict.fromkeys(device_title(r.outcome.environment) for r in rows))
    day = datetime.fromtimestamp(sweep.started_at).date().isoformat()
    return " · ".join(t for t in (_some(models), _some(devices or [device_title(sweep.environment)]), day) if t)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _remarks(rows: Sequence[Row], shown: int, found: int) -> str:
    measured = [r.figures for r in rows if r.figures]
    parts = ["error bars: 95% intervals over rounds"] if any(f.throughput_ci95 for f in measured) else []
    if any(f.rounds == 1 for f in measured):
        parts.append("one round: no interval")
    if shown < found:
        parts.append(f"{shown} of {found} panels shown, all are in summary.csv")
    return " · ".join(parts)


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _axis(axis: Any, panel: Panel, quantity: Quantity, lines: bool) -> None:
    values = [v for s in panel.series for r in s.rows.values() if (v := quantity.value(r))]
    (_draw_lines if lines else _draw_bars)(axis, panel, quantity)
    _scale(axis, values)
    if quantity.name == SPEEDUP and values:
        axis.axhline(1, color=COLOURS["fp32"], linewidth=0.8, linestyle="--", zorder=0.8)
    axis.set_xlabel("batch")
    axis.set_ylabel(quantity.name)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _scale(axis: Any, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter

    if not values:
        axis.set_ylim(0, 1)
        axis.set_yticks([])
    elif max(values) / min(values) > LOG_OVER:
        axis.set_yscale("log")
        axis.set_ylim(min(values) / 2, max(values) * 2)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        axis.set_ylim(0, max(axis.get_ylim()[1], max(values) * 1.05))


def _draw_bars(axis: Any, panel: Panel, quantity: Quantity) -> None:
    width = min(0.8 / len(panel.series), BAR_WIDEST)
    for place, series in enumerate(panel.series):
        at = [x + (place - (len(panel.series) - 1) / 2) * width for x in range(len(panel.batches))]
        heights = [_value(series, batch, quantity) for batch in panel.batches]
        bars = axis.bar(
            at,
            heights,
            width * 0.92,
            color=_colour(series),
            hatch=_HATCHES[series.variant % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
            label=series.label,
        )
        for bar, batch in zip(bars, panel.batches, strict=True):
            if batch in series.rows and series.rows[batch].verdict == SUSPECT:
                bar.set_alpha(0.25)
        places = [(x, series.rows[b]) for x, b in zip(at, panel.batches, strict=True) if b in series.rows]
        _error_bars(axis, places, quantity, "#222222")
        for x, row in places:
            _mark(axis, x, _gap(row, quantity), min(9.0, 110 * width / len(panel.batches)))
    axis.set_xticks(range(len(panel.batches)), [str(b) for b in panel.batches])
    axis.set_xlim(-0.7, len(panel.batches) - 0.3)


def _draw_lines(axis: Any, panel: Panel, quantity: Quantity) -> None:
    size = 4 if len(panel.batches) <= 20 else 2.5
    gaps: dict[int, dict[str, list[str]]] = {}
    for place, series in enumerate(panel.series):
        heights = [_value(series, batch, quantity) for batch in panel.batches]
        line = f"{_MARKERS[place % len(_MARKERS)]}{_LINES[series.variant % len(_LINES)]}"
        axis.plot(panel.batches, heights, line, markersize=size, color=_colour(series), label=series.label)
        _error_bars(axis, list(series.rows.items()), quantity, _colour(series))
        for batch, row in series.rows.items():
            gaps.setdefault(batch, {}).setdefault(_gap(row, quantity), []).append(series.label)
    for batch, words in gaps.items():
        _mark(axis, batch, "; ".join(f"{w}: {_few(labels)}" for w, labels in words.items() if w), 7.0)
    _batch_axis(axis, panel.batches)


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 3 else f"{len(labels)} precisions"


def _batch_axis(axis: Any, batches: Sequence[int]) -> None:
    """Batches that grow by factors get a logarithmic axis, those that grow by steps a linear one."""
    gaps = [b - a for a, b in itertools.pairwise(batches)]
    if gaps and max(gaps) > 8 * min(gaps):
        _powers_of_two(axis)
        axis.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    else:
        margin = max(0.04 * (batches[-1] - batches[0]), 0.5)
        axis.set_xlim(batches[0] - margin, batches[-1] + margin)


def _powers_of_two(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def _value(series: Series, batch: int, quantity: Quantity) -> float:
    row = series.rows.get(batch)
    value = None if row is None else quantity.value(row)
    return math.nan if value is None else value


def _error_bars(axis: Any, places: Sequence[tuple[float, Row]], quantity: Quantity, colour: str) -> None:
    for x, row in places:
        value, interval = quantity.value(row), quantity.interval(row)
        if value is None or interval is None or interval.low == interval.high:
            continue  # one round, or a baseline over itself
        ends = [[max(value - interval.low, 0.0)], [max(interval.high - value, 0.0)]]
        axis.errorbar([x], [value], yerr=ends, fmt="none", ecolor=colour, elinewidth=1, capsize=2)


def _gap(row: Row, quantity: Quantity) -> str:
    """The word for a job without a figure; empty where there is one."""
    if isinstance(row.outcome, (Failure, Skipped)):
        return row.outcome.status
    if row.verdict == SUSPECT:
        return SUSPECT
    return "" if quantity.value(row) is not None else "no baseline"


def _mark(axis: Any, x: float, words: str, size: float) -> None:
    """Words at the foot of the axis, upright, where a bar or a point is missing."""
    axis.text(
        x,
        0.02,
        _plain(words),
        transform=axis.get_xaxis_transform(),
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=size,
        color="#AA0000" if words.startswith(("failed", SUSPECT)) else "#777777",
    )


def _colour(series: Series) -> str:
    return COLOURS.get(series.precision, OTHER_COLOUR)


def _legend(figure: Any, axes: Any, remarks: str) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    legend = figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 10), frameon=False
    )
    legend.set_title(_plain(remarks), prop={"size": 8})
    for patch in legend.get_patches():
        patch.set_alpha(1)  # a precision's colour, also where its first bar is a suspect's pale one
