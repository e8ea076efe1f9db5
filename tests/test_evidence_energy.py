from __future__ import annotations

import math

import pytest

from tcsweep.evidence.energy import Reading, between_steps, measure_energy
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
