"""Reports: results of a sweep as a terminal table, a CSV file and a picture. They render `speedup.Row`s and compute
nothing that belongs upstream; what is not on disk, they don't know."""

from __future__ import annotations

import sys
from pathlib import Path

from tcsweep import speedup, store
from tcsweep.report import files, plot
from tcsweep.report.words import one_line


def write(sweep_dir: Path) -> list[speedup.Row]:
    """Write summary.csv and throughput.png of a saved sweep; returns its rows. A picture that can't be drawn is one
    line on standard error; a sweep that can't be read raises OSError or ValueError."""
    sweep, outcomes = store.load_sweep(sweep_dir)
    rows = speedup.rows(outcomes)
    files.write_csv(sweep_dir / files.SUMMARY, rows)
    try:
        plot.draw(sweep_dir / plot.PICTURE, sweep, rows)
    except Exception as error:
        print(f"{plot.PICTURE} was not drawn: {type(error).__name__}: {one_line(str(error))}", file=sys.stderr)
    return rows
