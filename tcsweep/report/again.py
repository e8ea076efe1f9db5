"""`python -m tcsweep report FOLDER|RUN_ID`: a sweep's files made again from saved results alone, of its folder or from
MLflow."""

from __future__ import annotations

from pathlib import Path

from tcsweep.mistakes import Mistake

USAGE = "python -m tcsweep report FOLDER, or report RUN_ID [tracking.uri=ADDRESS]"
HELP = f"""{USAGE}
summary.csv, throughput.png, report.html and report.md of a saved sweep, made again. RUN_ID: the id of the sweep's run
in MLflow, or of one of its jobs'; its results are put into outputs/mlflow/SWEEP first."""
FETCHED = Path("outputs/mlflow")


def main(arguments: list[str]) -> int:
    """Write the files and print where. Raises Mistake."""
    from tcsweep.api import load_results
    from tcsweep.report import page, write

    if arguments in (["--help"], ["-h"]):
        print(HELP)
        return 0
    words = dict(a.split("=", 1) for a in arguments if a.startswith("tracking."))
    named = [a for a in arguments if not a.startswith("tracking.")]
    if len(named) != 1 or named[0].startswith("-"):
        raise Mistake(f"report takes a sweep's folder or its run in MLflow: {USAGE}")
    folder = load_results(_folder(named[0], words)).folder
    write(folder)
    print(folder / page.HTML)
    return 0


def _folder(name: str, words: dict[str, str]) -> Path:
    """The folder named; for the id of a run, one that its results were fetched into."""
    from tcsweep.tracking_saved import RUN_ID, fetch

    if Path(name).exists() or not RUN_ID.fullmatch(name):
        return Path(name)
    from tcsweep.sync import target_of

    return fetch(name, target_of(words), FETCHED)
