"""Reports: results of a sweep as a terminal table, a CSV file and a picture. They render `speedup.Row`s and compute
nothing that belongs upstream; what is not on disk, they don't know."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tcsweep import speedup, store
from tcsweep.report import files, page, plot
from tcsweep.report.words import one_line


def write(sweep_dir: Path) -> list[speedup.Row]:
    """Write summary.csv, throughput.png, report.html and report.md of a saved sweep; returns its rows. What can't be
    drawn is one line on standard error; a sweep that can't be read raises OSError or ValueError."""
    sweep, outcomes = store.load_sweep(sweep_dir)
    rows = speedup.rows(outcomes)
    files.write_csv(sweep_dir / files.SUMMARY, rows)
    with _told(plot.PICTURE):
        plot.draw(sweep_dir / plot.PICTURE, sweep, rows)
    with _told(page.HTML):
        page.write(sweep_dir, sweep, rows)
    return rows


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"{name} was not drawn: {type(error).__name__}: {one_line(str(error))}", file=sys.stderr)
