"""Going on with a sweep that was cut off: which command line it had, and whether the machine is still the same."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tcsweep import store
from tcsweep.job import MEASUREMENT_VERSION, Environment, Origin, Outcome, Sweep
from tcsweep.mistakes import Mistake, cannot_write
from tcsweep.plan import Planned
from tcsweep.tracking_uri import redact

WORD = "resume="
FOLDER_WORDS = ("hydra.sweep.dir=", "hydra.run.dir=")
# What must not differ between two rounds of one job: figures from both sides of a difference are not one sample.
ALWAYS = ("device", "device_name", "gpu_uuid", "driver", "cuda", "cudnn", "torch", "torchvision", "power_mode")
ON_A_CPU = ("cpu_model", "cpu_threads")
WITH_APEX = ("apex", "apex_version", "apex_build")


def split(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder that `resume=` names, made absolute, and the other words. Raises Mistake where it holds no sweep."""
    named = [word[len(WORD) :].strip("'\"") for word in argv if word.startswith(WORD)]
    others = [word for word in argv if not word.startswith(WORD)]
    if not named:
        return None, others
    if len(named) > 1 or not named[0]:
        raise Mistake("resume= takes the folder of one sweep: resume=outputs/DATE/TIME")
    folder = Path(named[0]).expanduser().resolve()
    if not _has_sweep(folder):
        raise Mistake(f"resume={named[0]}: no sweep's folder, it has no {store.SWEEP}{_newest()}")
    return folder, others


def _newest() -> str:
    found = sorted(Path("outputs").glob(f"*/*/{store.SWEEP}"))
    return f"; the newest here is resume={found[-1].parent}" if found else ""


def _has_sweep(folder: Path) -> bool:
    try:
        return (folder / store.SWEEP).is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def origin_of(words: Sequence[str], compare: bool = True) -> Origin:
    """What is saved of a command line that is typed here. A word with a password is left out: whoever goes on with the
    sweep types it again, or gives it by the environment."""
    secret = [word for word in words if _is_secret(word)]
    kept = [word for word in words if not _is_secret(word)]
    return Origin(tuple(kept), tuple(redact(word) for word in secret), os.getcwd(), compare)


def _is_secret(word: str) -> bool:
    return redact(word) != word


def origin(folder: Path) -> Origin | None:
    """What the sweep in `folder` was started with, None where that is not saved. Raises Mistake."""
    try:
        return store.load_origin(folder)
    except (OSError, ValueError, TypeError) as error:
        raise Mistake(f"resume={folder}: {store.SWEEP} cannot be read ({error})") from None


def words(folder: Path, others: Sequence[str]) -> list[str]:
    """The command line of the sweep in `folder`; what is typed beside `resume=` must be the same words, in any order,
    or only those that hold a password. Raises Mistake."""
    saved = origin(folder)
    if saved is None:
        if others:
            return list(others)
        raise Mistake(f"resume={folder}: its command line is not saved there: type it beside resume=")
    plain = [word for word in others if not _is_secret(word)]
    secret = [word for word in others if _is_secret(word)]
    unknown = {redact(word) for word in secret} - set(saved.withheld)
    if unknown or (plain and sorted(plain) != sorted(saved.argv)):
        typed = shlex.join([*saved.argv, *saved.withheld]) or "no options"
        raise Mistake(f"resume={folder}: that sweep was started with {typed}: leave the rest out, or type just that")
    return [*saved.argv, *secret]


def go_back(saved: Origin) -> str | None:
    """Be in the folder that the sweep was started in: its relative paths and its store are there. A line where it
    cannot be."""
    if saved.cwd is None:
        return None
    try:
        os.chdir(saved.cwd)
    except OSError as error:
        return f"the sweep was started in {saved.cwd} ({error.strerror}): relative paths are taken from here"
    return None


def forgotten(saved: Origin, words: Sequence[str]) -> str | None:
    """A line about the words with a password that were not given again."""
    given = {redact(word) for word in words}
    by_environment = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    lost = [w for w in saved.withheld if w not in given and not (by_environment and w.startswith("tracking.uri="))]
    if not lost:
        return None
    return f"going on without {shlex.join(lost)}: its password is not saved; type it again beside resume= to have it"


def folder_words(folder: Path) -> list[str]:
    """Hydra's overrides that keep it from making a folder of its own."""
    text = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.{kind}.dir='{text}'" for kind in ("run", "sweep")]


def named_folders(argv: Sequence[str]) -> list[str]:
    """The folders for results that the words name, as typed."""
    return [word.partition("=")[2].strip("'\"") for word in argv if word.startswith(FOLDER_WORDS)]


def refuse_taken(folder: Path) -> None:
    """Raises Mistake where a sweep lies in a folder that was named for a new one."""
    try:
        taken = (folder / store.SWEEP).exists()
    except OSError as error:
        raise cannot_write(folder, error) from None
    if taken:
        raise Mistake(f"{folder} holds a sweep already: choose another folder, or go on with it: {line(folder)}")


def line(folder: Path) -> str:
    """What a person types to go on."""
    return f"python -m tcsweep {shlex.quote(f'{WORD}{folder}')}"


def check(folder: Path, sweep: Sweep, saved: Mapping[str, Outcome], planned: Sequence[Planned]) -> None:
    """Raises Mistake where the rounds on disk and those to come would not be one measurement: another machine, other
    software, another way of measuring, or other jobs. `saved` are the outcomes by folder name."""
    measured = [o for o in saved.values() if o.rounds]
    if not measured:
        return
    if sweep.measurement_version != MEASUREMENT_VERSION:
        _refuse(folder, [f"the way of measuring was version {sweep.measurement_version}, is {MEASUREMENT_VERSION}"])
    names = {p.job.folder for p in planned}
    for one in planned:
        before = saved.get(one.job.folder)
        if before is not None and before.rounds:
            _refuse(folder, differences(before.environment, one.environment, fields_of(before)))
    lost = [o.job.label for o in measured if o.job.folder not in names]
    if lost:
        now = planned[0].environment
        changed = differences(sweep.environment, now, (*ALWAYS, *ON_A_CPU, *WITH_APEX))
        _refuse(folder, changed or [f"the same words now mean other jobs: {', '.join(lost[:3])} is not among them"])


def fields_of(outcome: Outcome) -> tuple[str, ...]:
    """The facts of the environment that an outcome's figures depend on."""
    cpu = ON_A_CPU if outcome.environment.device == "cpu" else ()
    return (*ALWAYS, *cpu, *(WITH_APEX if outcome.job.amp_backend == "apex" else ()))


def differences(before: Environment, now: Environment, fields: Iterable[str]) -> list[str]:
    """What changed, in words; a value that could not be read then or now is no difference."""
    changed = []
    for name in fields:
        old, new = getattr(before, name), getattr(now, name)
        if old is not None and new is not None and old != new:
            changed.append(f"{name} was {old}, is {new}")
    return changed


def _refuse(folder: Path, changed: Sequence[str]) -> None:
    if changed:
        raise Mistake(f"resume={folder}: {'; '.join(changed)}: not mixed into one result; start a new sweep")
