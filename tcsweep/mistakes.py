"""What a person typed wrong: one line that says what it was, what is allowed and the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mistake(ValueError):
    """An override that can never be right: the whole sweep is refused, exit status 2. The text is one line."""


def unknown(what: str, value: str, allowed: Iterable[str], *, limit: int = 24) -> Mistake:
    """A Mistake for a value outside a list: names the nearest match and, where the list is short, all of it."""
    names = list(allowed)
    near = difflib.get_close_matches(value.strip().lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    text = f"{what}={value!r} is unknown" if value != value.strip() or not value else f"{what}={value} is unknown"
    if near:
        text += f"; did you mean {next(n for n in names if n.lower() == near[0])}?"
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return Mistake(f"{text} Allowed: {shown}" if near else f"{text}. Allowed: {shown}")
