"""tcsweep from Python: the same sweeps and results as the command line's."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcsweep.job import Sweep
from tcsweep.mistakes import Mistake
from tcsweep.speedup import Row

if TYPE_CHECKING:
    import pandas as pd

DIRECTORY = "hydra.sweep.dir="
MISTAKE, FAILED = 2, 1  # exit statuses of the command line


@dataclass(frozen=True)
class Results:
    """A saved sweep: its record and a row a job, with figures, speed-up and verdicts made anew from what was measured.
    Printed, it is the terminal's table."""

    folder: Path
    sweep: Sweep
    rows: tuple[Row, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """A line a job, with the columns of summary.csv; what was not measured is missing."""
        import pandas as pd

        from tcsweep.report.files import columns

        shown = columns(self.rows)
        return pd.DataFrame([{name: of(row) for name, of in shown.items()} for row in self.rows])

    @property
    def verdicts(self) -> pd.DataFrame:
        """A line a verdict, the gravest of each job first: job, verdict, the reasons with their figures, the advice."""
        import pandas as pd

        found = [
            (row.job.label, verdict.name, "; ".join(verdict.reasons), verdict.advice)
            for row in self.rows
            for verdict in row.verdicts
        ]
        return pd.DataFrame(found, columns=["job", "verdict", "reasons", "advice"])

    @property
    def causes(self) -> pd.DataFrame:
        """A line a cause, what removing gains most first: job, cause, text with its figures, the gain, the advice."""
        import pandas as pd

        from tcsweep.why import Neighbours, explain

        others = Neighbours(self.rows)
        found = [
            (row.job.label, cause.name, cause.text, cause.gain_text, cause.advice)
            for row in self.rows
            for cause in explain(row, others)
        ]
        return pd.DataFrame(found, columns=["job", "cause", "text", "gain", "advice"])

    @property
    def picture(self) -> Path:
        """throughput.png in the sweep's folder."""
        from tcsweep.report.plot import PICTURE

        return self.folder / PICTURE

    def __str__(self) -> str:
        from rich.console import Console

        from tcsweep.report import table

        text = io.StringIO()
        table.render(self.sweep, list(self.rows), Console(file=text, width=120, force_jupyter=False))
        return text.getvalue()


def run_sweep(*overrides: str, folder: str | Path | None = None) -> Results:
    """Measure as `python -m tcsweep -m OVERRIDES` does, in a process of its own: nothing here changes a figure.

    `folder`: for the results; a new one in `outputs/DATE/` by default. What the command prints is printed. Jobs that
    failed are in the results. Raises Mistake, with nothing measured, for an override that cannot be right or a folder
    that a sweep has already; RuntimeError where the command ended otherwise; KeyboardInterrupt after Ctrl-C, with what
    was measured kept."""
    if folder is None:
        folder = Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    if any(word.startswith(DIRECTORY) for word in overrides):
        raise Mistake(f"{DIRECTORY}: name the folder as run_sweep(..., folder=...)")
    place = Path(folder).absolute()
    words = [word for word in overrides if word not in ("-m", "--multirun")]
    command = [sys.executable, "-m", "tcsweep", "-m", *words, f"{DIRECTORY}{_quoted(place)}"]
    status, last = _run(command)
    if status == MISTAKE:
        raise Mistake(last.removeprefix("tcsweep: "))
    if status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status not in (0, FAILED):
        raise RuntimeError(f"the sweep ended with status {status}: {last}")
    return load_results(place)


def load_results(folder: str | Path = "outputs") -> Results:
    """A saved sweep: of its folder, or the newest below a folder. Raises Mistake where there is none."""
    from tcsweep import speedup, store

    place = Path(folder)
    found = [place / store.SWEEP] if (place / store.SWEEP).is_file() else sorted(place.rglob(store.SWEEP), key=_time)
    if not found:
        raise Mistake(f"{folder}: no sweep is saved there, there is no {store.SWEEP}")
    try:
        sweep, outcomes = store.load_sweep(found[-1].parent)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Mistake(f"{found[-1].parent} cannot be read: {type(error).__name__}: {error}") from None
    return Results(found[-1].parent.absolute(), sweep, tuple(speedup.rows(outcomes)))


def _time(path: Path) -> float:
    return path.stat().st_mtime


def _quoted(path: Path) -> str:
    """As Hydra's grammar takes a path with anything in it."""
    text = str(path).replace("'", r"\'")
    return f"'{text}'"


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and the last line; what it prints is printed here, where a notebook shows it."""
    last = ""
    process: Any = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # one interrupt, ours, in a terminal as in a notebook
    )
    with process:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.strip() or last
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            for line in process.stdout:
                print(line, end="", flush=True)
    return process.returncode, last
