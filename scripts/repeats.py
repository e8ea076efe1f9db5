"""What several sweeps of the same jobs agree on, and where their time went.

PYTHONPATH=. python scripts/repeats.py outputs/DATE/TIME [outputs/DATE/TIME ...]
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

from tcsweep.job import Result
from tcsweep.stats import Interval, figures
from tcsweep.store import load_sweep


def stages(folder: Path) -> str:
    """Seconds by stage: of the rounds that every job is asked for, and of the ones that noisy jobs got besides."""
    sweep, outcomes = load_sweep(folder)
    asked: Counter[str] = Counter()
    extra = 0.0
    for outcome in (o for o in outcomes if isinstance(o, Result)):
        for one in outcome.rounds:
            if one.number > outcome.job.measure.rounds:
                extra += one.worker_s
            else:
                asked.update(one.stage_s)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in asked.most_common())
    return (
        f"{folder}: {sweep.wall_s or 0:.1f} s; asked rounds {asked.total():.1f} ({parts}); further rounds {extra:.1f}"
    )


def intervals(folder: Path) -> dict[str, Interval]:
    """The throughput's interval of each job that has one, by the job's label."""
    results = [o for o in load_sweep(folder)[1] if isinstance(o, Result)]
    found = {o.job.label: figures(o.job, o.rounds).throughput_ci95 for o in results}
    return {label: interval for label, interval in found.items() if interval is not None}


def main() -> None:
    folders = [Path(a) for a in sys.argv[1:]]
    for folder in folders:
        print(stages(folder))
    pairs = apart = 0
    for one, two in itertools.combinations([intervals(f) for f in folders], 2):
        for label in one.keys() & two.keys():
            pairs += 1
            if not one[label].overlaps(two[label]):
                apart += 1
                print(f"apart: {label}: {one[label]} {two[label]}")
    print(f"{pairs - apart} of {pairs} pairs of a job's intervals overlap")


if __name__ == "__main__":
    main()
