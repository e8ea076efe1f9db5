from __future__ import annotations

import dataclasses
import math

import pytest

from tcsweep.evidence.facts import Energy
from tcsweep.mistakes import Mistake
from tcsweep.objective import COMPARING, OBJECTIVES, named, value
from tcsweep.speedup import rows

from .sweeps import a_failure, a_job, a_result, outcomes


def test_every_objective_is_a_figure_of_a_measured_job() -> None:
    (row,) = rows([a_result(a_job(), 1000.0)])
    few = {"latency_ms_p99", "energy_j_per_img"}  # 3 rounds of 70 samples are too few for it; no energy phase
    assert {name for name, one in OBJECTIVES.items() if one.of(row) is None} == few


@pytest.mark.parametrize("name", ["energy", "throughput"])
def test_a_figure_that_is_not_measured_is_a_mistake_that_names_what_is(name: str) -> None:
    with pytest.raises(Mistake, match="throughput_img_s"):
        named(name)


def test_a_failed_job_gives_the_worst_value_of_its_direction() -> None:
    failed = rows([a_failure(a_job())])
    assert value(failed, named("throughput_img_s")) == 0.0
    assert value(failed, named("latency_ms_p50")) == math.inf


def test_a_latency_over_the_bound_gives_the_worst_value() -> None:
    made = rows([a_result(a_job(batch=8), 1000.0)])  # 8 ms a batch, 8.8 ms and a little alone
    best = named("throughput_img_s")
    assert value(made, best, latency_ms_p50_max=20) == pytest.approx(1000, rel=0.01)
    assert value(made, best, latency_ms_p50_max=8) == 0.0


def test_the_value_of_repeats_is_their_mean_and_one_that_failed_spoils_it() -> None:
    best = named("throughput_img_s")
    two = rows([a_result(a_job(), 1000.0), a_result(a_job(repeat=1), 2000.0)])
    assert value(two, best) == pytest.approx(1500, rel=0.01)
    assert value([*two, *rows([a_failure(a_job(repeat=2))])], best) == 0.0


def test_speedups_are_the_objectives_that_need_a_baseline() -> None:
    alone = rows([outcomes()[0]])
    missing = [n for n, one in OBJECTIVES.items() if one.of(alone[0]) is None]
    assert [n for n in missing if n not in ("latency_ms_p99", "energy_j_per_img")] == list(COMPARING)


def test_energy_is_the_mean_over_rounds_of_joules_an_image() -> None:
    result = a_result(a_job(), 1000.0)
    used = (Energy(120.0, 3.0, 1000), Energy(140.0, 3.0, 1000), Energy(missing="no counter"))
    rounds = tuple(dataclasses.replace(r, energy=e) for r, e in zip(result.rounds, used))
    assert value(rows([dataclasses.replace(result, rounds=rounds)]), named("energy_j_per_img")) == pytest.approx(0.13)
