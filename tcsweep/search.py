"""A search: a sweeper, such as Optuna's, that asks for a few jobs at a time and looks at what came of them. Each trial
is a sweep of its own, in a folder named by its number, and can be gone on with alone."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tcsweep import app, overrides, resume, session
from tcsweep.config import Loaded
from tcsweep.job import Job
from tcsweep.mistakes import Interrupted, Mistake, NothingToMeasure
from tcsweep.objective import COMPARING, Objective
from tcsweep.report.words import number as figure
from tcsweep.sweep import signals_raise

DIRECTIONS = ("maximize", "minimize")
# What is about the search, or about its folder, is no part of a trial.
_OF_THE_SEARCH = ("hydra.sweep", "hydra/sweep", "hydra.mode", "hydra.run.dir")

Point = tuple[Job, int, float | None]  # repeats and bound are no part of a job


def is_search(sweeper: Mapping[str, Any]) -> bool:
    """Whether a sweeper's settings are those of another one than Hydra's own."""
    return not str(sweeper["_target_"]).endswith(".BasicSweeper")


def check(sweeper: Mapping[str, Any]) -> None:
    """Refuse settings of Hydra's sweepers that would end in a traceback, or in half of what was asked."""
    if sweeper.get("max_batch_size") is not None:
        raise Mistake("hydra.sweeper.max_batch_size splits a sweep, whose rounds go through all jobs: leave it out")
    for name in ("n_trials", "n_jobs"):
        if sweeper.get(name) is not None and sweeper[name] < 1:
            raise Mistake(f"hydra.sweeper.{name}={sweeper[name]}: must be 1 or more")
    direction = _direction(sweeper)
    if "direction" in sweeper and direction not in DIRECTIONS:
        shown = ",".join(map(str, direction)) if isinstance(direction, list) else direction
        wanted = f"one objective and one direction, {' or '.join(DIRECTIONS)}"
        raise Mistake(f"hydra.sweeper.direction={shown}: a search has {wanted}")


def _direction(sweeper: Mapping[str, Any]) -> Any:
    direction = sweeper.get("direction")
    return getattr(direction, "name", direction)


class Search:
    """The trials so far. A point that the sweeper comes back to is not measured again."""

    def __init__(self, folder: Path, first: Loaded, sweeper: Mapping[str, Any]) -> None:
        objective, direction = first.objective, _direction(sweeper)
        if direction not in (None, objective.direction):
            wanted = f"hydra.sweeper.direction={objective.direction}"
            raise Mistake(f"objective={objective.name} with direction={direction} looks for the worst: set {wanted}")
        self._folder, self._objective = folder, objective
        self._found: dict[Point, float] = {}
        self._bounded = False
        self._refusal: NothingToMeasure | None = None  # the last one

    def value(self, one: Loaded, words: Sequence[str], number: int) -> float:
        """A trial's objective; the worst value where this machine cannot do it. Raises Mistake, or what a signal that
        ended the trial raises: it ends the search, too."""
        point = (one.job, one.repeat, one.latency_ms_p50_max)
        if point not in self._found:
            self._bounded |= one.latency_ms_p50_max is not None
            self._found[point] = self._measured(one, words, number)
        return self._found[point]

    def _measured(self, one: Loaded, words: Sequence[str], number: int) -> float:
        trial = resume.origin_of(trial_words(session.ARGV, words), compare=self._objective.name in COMPARING)
        try:
            with signals_raise():
                (value,) = app.measure([one], self._folder / str(number), trial)
        except NothingToMeasure as error:
            self._refusal = error
            _say(f"{one.job.label}: {error}")
            return self._objective.worst
        status = session.EXIT_STATUS[-1]
        if status > 128:
            raise Interrupted if status == 128 + signal.SIGTERM else KeyboardInterrupt
        return value

    def tell(self) -> None:
        """Say what the search ended on, from the file that Optuna's sweeper leaves. Raises Mistake where no trial could
        be measured."""
        if self._refusal is not None and not session.EXIT_STATUS:
            raise self._refusal
        path = self._folder / "optimization_results.yaml"
        if path.exists():
            ended = yaml.safe_load(path.read_text(encoding="utf-8"))
            _say(best_line(ended["best_params"], ended["best_value"], self._objective, self._bounded))
        _say(f"Results: {self._folder}")


def best_line(chosen: Mapping[str, Any], value: float, objective: Objective, bounded: bool) -> str:
    """What a search found, in a line."""
    if value == objective.worst:
        return f"Best: none; no point has a {objective.name}{' within the bound' if bounded else ''}"
    point = " ".join(f"{name}={word}" for name, word in chosen.items()) or "the only point"
    return f"Best: {point}: {objective.name} {figure(value)}"


def trial_words(argv: Sequence[str], trial: Sequence[str]) -> list[str]:
    """The command line that repeats a trial alone: Hydra's own settings as typed for the search, then the trial's."""
    line = overrides.split(argv)
    flags = [flag for flag in line.flags if flag not in overrides.MULTIRUN_FLAGS]
    kept = [word for word in line.overrides if _goes_with_a_trial(word)]
    return [*flags, *kept, *trial, "hydra.mode=RUN"]


def _goes_with_a_trial(word: str) -> bool:
    """Hydra hands over all of a trial's words but its own, and but an address with a password, kept from it."""
    key = word.lstrip("+~")
    return (key.startswith("hydra") and not key.startswith(_OF_THE_SEARCH)) or overrides.is_secret_address(word)


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
