"""What a person typed wrong: one line that says what it was, what is allowed and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class Mistake(ValueError):
    """An override that can never be right: the whole sweep is refused, exit status 2. The text is one line."""


class NothingToMeasure(Mistake):
    """This machine can do none of a sweep's jobs."""


class Interrupted(BaseException):
    """SIGTERM; Ctrl-C is Python's own KeyboardInterrupt."""


def first_line(text: str) -> str:
    """The first line that says something; empty where none does."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def unknown(what: str, value: str, allowed: Iterable[str]) -> Mistake:
    """A Mistake for a value outside a list: `precision=fp61 is unknown; did you mean fp16? Allowed: ...`."""
    shown = value if value and value == value.strip() and value.isprintable() else repr(value)
    return _unknown(f"{what}={shown} is unknown", value, allowed)


def unknown_word(kind: str, word: str, allowed: Iterable[str]) -> Mistake:
    """The same for a word that is no value: `unknown key modle; did you mean model? Allowed: ...`."""
    return _unknown(f"unknown {kind} {word}", word, allowed)


def cannot_write(path: Path, error: OSError) -> Mistake:
    """Results need a folder: the path, the reason, and the two settings that choose another."""
    reason = error.strerror or str(error)
    choices = "set hydra.sweep.dir=FOLDER, for one job hydra.run.dir=FOLDER"
    return Mistake(f"cannot write in {path.absolute()} ({reason}): {choices}")


def _unknown(text: str, value: str, allowed: Iterable[str], limit: int = 24) -> Mistake:
    names = list(allowed)
    near = difflib.get_close_matches(value.strip().lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = f"; did you mean {next(n for n in names if n.lower() == near[0])}?" if near else "."
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return Mistake(f"{text}{hint} Allowed: {', '.join(names[:limit])}{rest}")
