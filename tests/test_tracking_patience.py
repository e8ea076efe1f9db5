from __future__ import annotations

import os
from typing import Any

import pytest

from tcsweep.tracking_patience import PROMPT_S, TIMEOUT, OutOfPatienceError, Patience, Patient


class Clock:
    """A clock that a slow answer moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Server:
    def __init__(self, clock: Clock, takes_s: float) -> None:
        self.clock, self.takes_s, self.timeouts, self.name = clock, takes_s, [], "server"

    def ask(self, *, fail: bool = False) -> str:
        self.timeouts.append(int(os.environ[TIMEOUT]))
        self.clock.now += self.takes_s
        if fail:
            raise ConnectionError
        return "answer"


def patient(total_s: float, takes_s: float) -> tuple[Any, Server, Patience]:
    clock = Clock()
    server, patience = Server(clock, takes_s), Patience(total_s, clock)
    return Patient(server, patience), server, patience


def test_prompt_answers_cost_nothing_however_many_there_are() -> None:
    asked, server, patience = patient(5, PROMPT_S / 2)
    assert [asked.ask() for _ in range(1000)] == ["answer"] * 1000
    assert patience.left_s == pytest.approx(5)
    assert set(server.timeouts) == {5}
    assert asked.name == "server"


def test_slow_answers_add_up_and_each_may_take_what_is_left() -> None:
    asked, server, patience = patient(5, 1.5)
    for _ in range(4):
        asked.ask()
    with pytest.raises(OutOfPatienceError, match=r"answers too slowly: waited 6 s in all"):
        asked.ask()
    assert server.timeouts == [5, 3, 2, 1]
    assert patience.left_s == 0


def test_a_users_shorter_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "2")
    asked, server, _ = patient(5, 0)
    asked.ask()
    monkeypatch.setenv(TIMEOUT, "no number")
    asked.ask()
    assert server.timeouts == [2, 5]


def test_what_failed_was_waited_for_too_and_the_callers_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "77")
    asked, _, patience = patient(5, 2)
    with pytest.raises(ConnectionError):
        asked.ask(fail=True)
    assert patience.left_s == pytest.approx(3)
    assert os.environ[TIMEOUT] == "77"
