from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tcsweep.evidence.energy import Power, Reading, between_steps, integral_j, measure_energy, measure_sampled
from tcsweep.evidence.facts import Energy


class Device:
    """400 W, 10 ms an iteration; its counter moves every 0.1 s."""

    def __init__(self, step_s: float = 0.1) -> None:
        self.now_s, self.step_s, self.ran = 0.0, step_s, 0

    def block(self, iterations: int) -> None:
        self.ran += iterations
        self.now_s += iterations * 0.01

    def joules(self) -> float:
        return 400.0 * self.step_s * math.floor(self.now_s / self.step_s + 1e-9)

    def clock(self) -> float:
        return self.now_s


def test_energy_is_the_devices_power_whatever_the_counters_steps() -> None:
    for step_s in (0.1, 0.07, 0.01):
        device = Device(step_s)
        found = measure_energy(device.block, 10.0, 8, 3.0, device.joules, device.clock)
        assert found.joules
        assert found.seconds
        assert found.images
        assert found.joules / found.seconds == pytest.approx(400.0, rel=0.03)
        assert found.joules / found.images == pytest.approx(400.0 * 0.01 / 8, rel=0.03)
        assert 2.5 < found.seconds <= 3.0
        assert device.ran == pytest.approx(330, abs=5)


def test_only_what_lies_between_two_steps_of_the_counter_is_counted() -> None:
    readings = [Reading(0.0, 5.0, 0), Reading(0.1, 5.0, 10), Reading(0.2, 9.0, 20), Reading(0.3, 9.0, 30)]
    readings += [Reading(0.4, 17.0, 40), Reading(0.5, 17.0, 50)]
    assert between_steps(readings, 4) == Energy(8.0, pytest.approx(0.2), 80)


@pytest.mark.parametrize(
    ("joules", "reason"),
    [
        ((5.0, 5.0, 5.0), "the energy counter did not move twice"),
        ((5.0, 6.0, 6.0), "the energy counter did not move twice"),
        ((5.0, 9.0, 1.0), "the energy counter did not move twice"),  # it began anew
        ((5.0, math.nan, 6.0), "the energy counter stopped answering"),
    ],
)
def test_a_counter_that_tells_nothing_is_missing_energy(joules: tuple[float, ...], reason: str) -> None:
    readings = [Reading(float(n), j, n) for n, j in enumerate(joules)]
    assert between_steps(readings, 1) == Energy(missing=reason)


def test_without_a_counter_nothing_runs() -> None:
    device = Device()
    found = measure_energy(device.block, 10.0, 8, 3.0, None, device.clock)
    assert (found, device.ran) == (Energy(missing="this device has no energy counter that could be read"), 0)


# --- boards without a counter ---


class SampledBoard:
    """A board whose power follows a function of time, sampled every 0.05 s of its own clock; 10 ms an iteration."""

    source, gap_s = "sampled board power, INA3221 VDD_IN", 0.5

    def __init__(self, watts: Callable[[float], float | None], dead_from: float = math.inf) -> None:
        self.now_s, self.watts, self.dead_from, self.entered = 0.0, watts, dead_from, False

    def __enter__(self) -> SampledBoard:
        self.entered = True
        return self

    def __exit__(self, *error: object) -> None:
        self.entered = False

    @property
    def powers(self) -> list[Power]:
        times = [n * 0.05 for n in range(int(self.now_s / 0.05) + 2) if n * 0.05 < self.dead_from]
        return [Power(at, watts) for at in times if (watts := self.watts(at)) is not None]

    def block(self, iterations: int) -> None:
        assert self.entered
        self.now_s += iterations * 0.01

    def clock(self) -> float:
        return self.now_s


def test_sampled_energy_is_the_integral_of_the_power_over_the_images_that_were_run() -> None:
    board = SampledBoard(lambda at: 20.0 + 2.0 * at)  # linear: what the trapezoid rule knows exactly
    found = measure_sampled(board.block, 10.0, 4, 3.0, board, board.clock)
    assert found.seconds == pytest.approx(3.0, abs=0.04)
    began, ended = 0.3, 0.3 + (found.seconds or 0.0)
    assert found == Energy(
        pytest.approx(20.0 * (ended - began) + ended**2 - began**2),
        pytest.approx(ended - began),
        round((ended - began) / 0.01) * 4,
        source="sampled board power, INA3221 VDD_IN",
    )


def test_samples_that_were_missed_are_bridged_for_half_a_second_and_no_longer() -> None:
    def flaky(gap_s: float) -> Energy:
        board = SampledBoard(lambda at: None if 1.01 < at < 1.01 + gap_s else 30.0)
        return measure_sampled(board.block, 10.0, 4, 3.0, board, board.clock)

    assert flaky(0.4).joules == pytest.approx(30.0 * 3.0, rel=0.02)
    assert flaky(0.7) == Energy(missing="the sensor of the board's power stopped answering")


@pytest.mark.parametrize("dead_from", [0.0, 0.2, 2.0])
def test_a_sensor_that_dies_or_hangs_leaves_no_energy_and_does_not_stop_the_phase(dead_from: float) -> None:
    board = SampledBoard(lambda at: 30.0 if dead_from else None, dead_from or math.inf)
    found = measure_sampled(board.block, 10.0, 4, 3.0, board, board.clock)
    assert (found, board.now_s) == (
        Energy(missing="the sensor of the board's power stopped answering"),
        pytest.approx(3.3, abs=0.1),
    )


@pytest.mark.parametrize(
    ("powers", "joules"),
    [
        ([(0.0, 10.0), (0.4, 20.0), (0.8, 10.0)], 9.75),  # 12.5 at 0.1, 20 at 0.4, 12.5 at 0.7
        ([(0.0, 10.0), (0.4, 10.0), (0.6, 10.0)], 6.0),  # constant after the last
        ([(0.0, 10.0), (0.4, 10.0), (0.6, 10.0), (9.0, 1.0)], None),
        ([(0.2, 10.0), (0.4, 10.0), (0.8, 10.0)], None),  # not from the start
        ([(0.0, 10.0)], None),
        ([], None),
    ],
)
def test_the_integral_is_the_trapezoids_between_two_moments(
    powers: list[tuple[float, float]], joules: float | None
) -> None:
    found = integral_j([Power(*one) for one in powers], 0.1, 0.7, 0.5)
    assert found == (None if joules is None else pytest.approx(joules))
