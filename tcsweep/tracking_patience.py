"""How long tracking may wait: a measurement's end is no time to wait for a server. Knows no MLflow."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from tcsweep._process import environment

PROMPT_S = 0.3  # an answer that takes no longer is none that was waited for: a login costs a quarter of a second
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # of one answer, read by MLflow before each call, in whole seconds


class OutOfPatienceError(Exception):
    """So long was waited in all, and not all is done."""


class Patience:
    """A budget of seconds for waiting, spent by every answer that is not prompt."""

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_s = total_s
        self.waited_s = 0.0
        self._clock = clock

    @property
    def left_s(self) -> float:
        """What is left, 0 or more."""
        return max(0.0, self.total_s - self.waited_s)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it within what is left. Raises OutOfPatienceError where nothing is, and what the function raises."""
        if self.left_s <= 0:
            raise OutOfPatienceError(f"answers too slowly: waited {self.waited_s:.0f} s in all")
        began = self._clock()
        try:
            with environment({TIMEOUT: str(max(1, math.floor(min(self.left_s, _users()))))}):
                return function(*args, **kwargs)
        finally:
            took = self._clock() - began
            self.waited_s += took if took > PROMPT_S else 0.0


def _users() -> float:
    """The user's own limit of one answer."""
    try:
        return float(os.environ[TIMEOUT])
    except (KeyError, ValueError):
        return math.inf


class Patient:
    """An object whose methods are called with patience."""

    def __init__(self, of: Any, patience: Patience) -> None:
        self._of, self._patience = of, patience

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        return (lambda *a, **k: self._patience.call(found, *a, **k)) if callable(found) else found
