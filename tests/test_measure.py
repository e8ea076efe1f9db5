"""The clockwork of a round, to the last digit: a fake clock that only the fake device moves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tcsweep.job import Measure
from tcsweep.measure import Hint, Samples, Watch, block_size, latency, run_round, timed_blocks, warm_up


@dataclass
class FakeDevice:
    """Each iteration takes the next time of `ms`; the clock moves by it and by nothing else."""

    ms: Iterator[float]
    now_s: float = 0.0
    calls: list[int] = field(default_factory=list)
    device_share: float | None = None

    def clock(self) -> float:
        return self.now_s

    def block(self, iterations: int) -> tuple[float, float | None]:
        self.calls.append(iterations)
        wall = sum(next(self.ms) for _ in range(iterations))
        self.now_s += wall / 1e3
        return wall, None if self.device_share is None else wall * self.device_share

    def one(self) -> float:
        return self.block(1)[0]


def steady(ms: float) -> FakeDevice:
    return FakeDevice(itertools.repeat(ms))


def watch(device: FakeDevice, deadline: float = float("inf")) -> Watch:
    return Watch(device.clock, deadline)


def falling(start_ms: float, floor_ms: float, factor: float) -> Callable[[], Iterator[float]]:
    def times() -> Iterator[float]:
        now = start_ms
        while True:
            yield max(now, floor_ms)
            now *= factor

    return times


def test_warm_up_of_a_steady_device_ends_at_its_floor() -> None:
    device = steady(10.0)
    done, warmed_up, iteration_ms = warm_up(device, Measure(warmup_s_min=0.25), watch(device), None)
    assert (done, warmed_up, iteration_ms) == (25, True, 10.0)


def test_warm_up_goes_on_while_times_fall_over_their_last_half() -> None:
    device = FakeDevice(falling(20.0, 10.0, 0.99)())
    done, warmed_up, iteration_ms = warm_up(device, Measure(warmup_s_min=0.1), watch(device), None)
    # 20 * 0.99**69 < 10: the fall ends at iteration 70, and the last half must have lost its trend
    assert warmed_up
    assert done > 70
    assert iteration_ms == pytest.approx(10.0, rel=0.02)


def test_warm_up_goes_on_while_times_rise() -> None:
    device = FakeDevice(iter([10.0 + 0.01 * i for i in range(2000)]))
    done, warmed_up, _ = warm_up(device, Measure(warmup_s_min=0.1, warmup_s_max=2.0), watch(device), None)
    assert (warmed_up, device.now_s >= 2.0) == (False, True)
    assert done < 200


def test_warm_up_never_ends_before_its_floor_in_iterations() -> None:
    device = steady(4000.0)
    done, _, _ = warm_up(device, Measure(warmup_iterations_min=3, warmup_s_max=5.0), watch(device), None)
    assert done == 3


def test_warm_up_ends_at_its_ceiling_in_iterations() -> None:
    device = FakeDevice(iter([1.0 + 0.001 * i for i in range(100_000)]))
    settings = Measure(warmup_s_min=0.001, warmup_s_max=1e6, warmup_iterations_max=400)
    assert warm_up(device, settings, watch(device), None)[:2] == (400, False)


def test_later_rounds_warm_up_as_often_as_round_one() -> None:
    device = steady(10.0)
    done, _, _ = warm_up(device, Measure(), watch(device), Hint(warmup_iterations=42, block_iterations=3))
    assert done == 42


def test_a_warm_up_takes_no_more_than_a_quarter_of_the_rounds_time() -> None:
    device = FakeDevice(iter([1000.0 + i for i in range(100)]))
    done, _, _ = warm_up(device, Measure(warmup_iterations_min=2, warmup_s_max=60), watch(device, deadline=20.0), None)
    assert (done, device.now_s) == (5, pytest.approx(5.01))


def test_a_spent_budget_ends_the_warm_up_after_its_floor() -> None:
    device = FakeDevice(iter([1000.0 + i for i in range(100)]))
    done, _, _ = warm_up(device, Measure(warmup_iterations_min=2, warmup_s_max=60), watch(device, deadline=1.5), None)
    assert done == 2


@pytest.mark.parametrize(
    ("iteration_ms", "settings", "expected"),
    [
        (1.0, Measure(), 30),  # a block of 30 ms
        (11.0, Measure(), 3),
        (2000.0, Measure(), 1),
        (1.0, Measure(timed_s_max=60.0), 600),  # long rounds have about a hundred blocks
        (11.0, Measure(iterations=30), 3),  # 10 equal blocks of 3
        (0.001, Measure(iterations=30), 6),  # at least 5 blocks
        (100.0, Measure(iterations=30), 1),
        (1.0, Measure(iterations=7), 1),
    ],
)
def test_a_block_is_long_enough_to_hide_its_two_synchronisations(
    iteration_ms: float, settings: Measure, expected: int
) -> None:
    assert block_size(settings, iteration_ms, None) == expected


def test_later_rounds_reuse_the_block_size_of_round_one() -> None:
    assert block_size(Measure(), 1.0, Hint(warmup_iterations=9, block_iterations=7)) == 7


def test_a_steady_device_is_timed_for_the_minimum_only() -> None:
    device = steady(10.0)
    walls, devices, converged = timed_blocks(device, Measure(timed_s_min=0.5), watch(device), 3)
    assert (walls, devices, converged) == ([30.0] * 17, [None] * 17, True)  # 17 * 30 ms is the first over 0.5 s


def test_a_noisy_device_is_timed_to_the_maximum_and_said_not_to_have_converged() -> None:
    device = FakeDevice(itertools.cycle([10.0, 30.0]))
    walls, _, converged = timed_blocks(device, Measure(timed_s_max=2.0), watch(device), 1)
    assert (sum(walls), converged) == (2000.0, False)


def test_an_exact_number_of_iterations_is_kept_whatever_the_interval() -> None:
    device = FakeDevice(itertools.cycle([10.0, 30.0]))
    walls, _, _ = timed_blocks(device, Measure(iterations=30, timed_s_max=0.001), watch(device), 3)
    assert (len(walls), sum(device.calls)) == (10, 30)


def test_a_spent_budget_leaves_two_blocks() -> None:
    device = steady(3000.0)
    walls, _, converged = timed_blocks(device, Measure(timed_s_max=60.0), watch(device, deadline=0.0), 1)
    assert (walls, converged) == ([3000.0, 3000.0], False)


def test_latency_lasts_its_time() -> None:
    device = steady(10.0)
    assert latency(device, Measure(latency_s_max=0.5), watch(device)) == [10.0] * 50


def test_latency_takes_its_share_of_the_medians_eleven_samples_of_a_slow_device() -> None:
    device = steady(400.0)
    assert latency(device, Measure(latency_s_max=0.5, rounds=3), watch(device)) == [400.0] * 4
    device = steady(400.0)
    assert latency(device, Measure(latency_s_max=0.5, rounds=1), watch(device)) == [400.0] * 11


def test_latency_stops_when_the_budget_is_spent() -> None:
    device = steady(400.0)
    assert latency(device, Measure(latency_s_max=0.5, rounds=1), watch(device, deadline=1.0)) == [400.0] * 3


def test_latency_takes_no_more_samples_than_its_rarest_percentile_needs() -> None:
    device = steady(0.01)
    assert len(latency(device, Measure(latency_s_max=10.0), watch(device))) == 662


def test_a_whole_round_keeps_every_raw_time() -> None:
    device = FakeDevice(itertools.repeat(10.0), device_share=0.9)
    samples = run_round(device, Measure(latency_s_max=0.02, rounds=6), watch(device))
    assert samples == Samples(
        warmup_iterations=25,
        warmed_up=True,
        block_iterations=3,
        block_wall_ms=(30.0,) * 17,
        block_device_ms=(27.0,) * 17,
        converged=True,
        latency_ms=(10.0, 10.0),
        stage_s={
            "warmup": pytest.approx(0.25),
            "throughput": pytest.approx(0.51),
            "latency": pytest.approx(0.02),
        },
        timed_from=pytest.approx(0.25),
        timed_until=pytest.approx(0.76),
    )


def test_estimates_are_told_between_blocks_with_their_half_width() -> None:
    device, told = steady(10.0), []
    timed_blocks(
        device, Measure(timed_s_min=0.06), Watch(device.clock, tell=lambda *said: told.append((*said, device.now_s))), 3
    )
    assert told == [
        ("throughput", 10.0, None, pytest.approx(0.03)),
        *[("throughput", 10.0, 0.0, pytest.approx(0.03 * n)) for n in range(2, 6)],
    ]
