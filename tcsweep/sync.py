"""`python -m tcsweep sync [FOLDER ...]`: saved sweeps sent to MLflow, to any server, each run exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tcsweep import store
from tcsweep.mistakes import Mistake, unknown_word
from tcsweep.tracking_uri import Target

USAGE = "python -m tcsweep sync [FOLDER ...] [tracking.uri=ADDRESS] [tracking.experiment=NAME]"
HELP = f"""{USAGE}
Sends saved sweeps to MLflow: those of the folders named, else all in ./outputs. What is there already stays as it is.
With tracking.uri they go to that server, whether or not they are on another one; passwords belong into
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or into the address in MLFLOW_TRACKING_URI."""
WORDS = ("tracking.uri", "tracking.experiment")


def main(arguments: list[str]) -> int:
    """Send them; exit status 1 where something is still pending. Raises Mistake."""
    if arguments in (["--help"], ["-h"]):
        print(HELP)
        return 0
    from rich.console import Console

    from tcsweep import app
    from tcsweep.tracking import SYNC_WAIT_S, upload

    words = dict(a.split("=", 1) for a in arguments if a.startswith("tracking."))
    named = [Path(a) for a in arguments if not a.startswith("tracking.")]
    target = target_of(words)
    folders = [_sweep_folder(one) for one in named] or sorted(sweeps_in(Path("outputs")))
    if not folders:
        raise Mistake(f"no sweep in ./outputs: {USAGE}")
    console = Console()
    sent = []
    for folder in (one.resolve() for one in folders):
        if len(folders) > 1:
            console.print(f"{folder}", soft_wrap=True, highlight=False, markup=False)
        sent.append(app.say_uploaded(folder, target, upload(folder, target, SYNC_WAIT_S), console))
    return 0 if all(sent) else 1


def target_of(words: dict[str, str]) -> Target:
    """The MLflow that a command's words name. Raises Mistake for an unknown word, and for a password in an address."""
    for word in words:
        if word not in WORDS:
            raise unknown_word("word", word, WORDS)
    uri = words.get("tracking.uri") or None
    if uri and urlsplit(uri).password:
        raise Mistake("a password in tracking.uri is seen by every user of this machine: use MLFLOW_TRACKING_URI")
    return Target(uri=uri, experiment=words.get("tracking.experiment") or "tcsweep", store=Path("outputs").resolve())


def _sweep_folder(folder: Path) -> Path:
    if str(folder).startswith("-"):
        raise Mistake(f"sync has no option {folder}: {USAGE}")
    if not store.is_planned(folder):
        raise Mistake(f"{folder} is no sweep's folder: it has no {store.SWEEP}")
    return folder


def sweeps_in(folder: Path) -> Iterator[Path]:
    """The folders of all sweeps below a folder, as deep as sweeps are put: DATE/TIME, and a search's trials."""
    for pattern in (f"*/{store.SWEEP}", f"*/*/{store.SWEEP}", f"*/*/*/{store.SWEEP}"):
        yield from (path.parent for path in folder.glob(pattern) if store.is_planned(path.parent))
