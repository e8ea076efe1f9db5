"""scripts/intervals.py: recording that can be cut off, and drawing from rounds whose truth is known."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.intervals import Recorded, a_sweep, append, composed, draw, read, record, report, request
from tcsweep.job import Environment, Job, Measure, Round
from tcsweep.measure import Hint, RoundRequest
from tcsweep.mistakes import Mistake
from tcsweep.plan import Planned
from tcsweep.worker import Broken

from .test_stats import one_round

ROOT = Path(__file__).resolve().parent.parent
CPU = Environment(device="cpu", device_name="Fake", torch="2.9.1")
PLANNED = [Planned(Job(batch=b, device="cpu"), "asked", 0, CPU) for b in (1, 8)]
TINY = ("model=resnet18", "model.image_size=32", "batch=1", "device=cpu", "measure.warmup_s_min=0")
BRIEF = ("measure.timed_s_min=0.05", "measure.timed_s_max=0.2", "measure.warmup_s_max=0.1", "measure.latency_s_max=0")


def synthetic(rounds: int, between: float, within: float, seed: int = 1) -> list[Round]:
    """Rounds of 25 blocks around 30 ms, with these coefficients of variation."""
    source, made = random.Random(seed), []
    for number in range(1, rounds + 1):
        level = 30 * math.exp(source.gauss(0, between))
        walls = tuple(level * math.exp(source.gauss(0, within)) for _ in range(25))
        made.append(one_round(number, walls))
    return made


def measured(asked: RoundRequest) -> Round:
    return one_round(asked.number, (10.0 * asked.number,) * 5, warmup_iterations=7, block_iterations=3)


def test_words_with_commas_are_several_jobs() -> None:
    jobs = composed(["model=resnet18", "precision=fp32,bf16", "batch=1,48", "measure.timed_s_max=0.7"])
    assert [(j.model, j.precision, j.batch, j.measure.timed_s_max) for j in jobs] == [
        ("resnet18", "fp32", 1, 0.7),
        ("resnet18", "fp32", 48, 0.7),
        ("resnet18", "bf16", 1, 0.7),
        ("resnet18", "bf16", 48, 0.7),
    ]


def test_a_wrong_word_is_a_mistake() -> None:
    with pytest.raises(Mistake, match="resnet19"):
        composed(["model=resnet19"])


def test_jobs_take_turns_and_each_round_is_in_the_file_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    seen = []
    for one in record(PLANNED, 2, path, measured, math.inf):
        seen.append((one.job.batch, one.round.number, len(read(path))))
    assert seen == [(1, 1, 1), (8, 1, 2), (1, 2, 3), (8, 2, 4)]
    assert read(path)[3] == Recorded(PLANNED[1].job, CPU, measured(request(PLANNED[1].job, 2, ())))


def test_recording_goes_on_where_a_cut_off_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for _ in record(PLANNED, 2, path, measured, math.inf):
        pass
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again = [(one.job.batch, one.round.number) for one in record(PLANNED, 2, path, measured, math.inf)]
    assert (again, path.read_bytes()) == ([(8, 2)], whole)


def test_recording_stops_in_time_with_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    # Its first round is always begun; a round takes 3 s (`one_round`), so a second one would be too late.
    assert [one.round.number for one in record(PLANNED[:1], 9, path, measured, 2.0)] == [1]
    assert [one.round.number for one in record(PLANNED[:1], 2, path, measured, 60.0)] == [2]


def test_a_round_that_fails_ends_the_recording_with_its_reason(tmp_path: Path) -> None:
    broken = Broken("build", "error", "RuntimeError: no")
    with pytest.raises(Mistake, match="RuntimeError: no"):
        list(record(PLANNED, 1, tmp_path / "rounds.jsonl", lambda asked: broken, math.inf))


def test_later_rounds_are_asked_for_as_a_sweep_does() -> None:
    job = Job(measure=Measure(budget_s=30.0, rounds=3))
    first, second = request(job, 1, ()), request(job, 2, [measured(request(job, 1, ()))])
    assert (first.hint, second.hint) == (None, Hint(7, 3))
    assert second.deadline - second.asked_at == pytest.approx(10.0)


@pytest.mark.parametrize(("between", "made"), [(0.0005, {3}), (0.5, {5})])
def test_a_drawn_sweep_has_more_rounds_while_it_is_wide(between: float, made: set[int]) -> None:
    rounds = synthetic(40, between, 0.0)
    source = random.Random(2)
    assert {len(a_sweep(Job(), rounds, source)) for _ in range(50)} == made


def test_no_round_is_drawn_twice_in_a_sweep() -> None:
    drawn = a_sweep(Job(), synthetic(6, 0.5, 0.0), random.Random(1))
    assert len({r.number for r in drawn}) == len(drawn) == 5


def test_intervals_over_processes_that_differ_hold_the_mean_and_those_within_do_not() -> None:
    found = draw(Job(), synthetic(60, 0.05, 0.005), sweeps=400)
    assert found.held >= 0.9
    assert found.held_within <= 0.3
    assert found.half_width > 5 * found.half_width_within
    assert (found.recorded, found.cv_between, found.cv_within) == (
        60,
        pytest.approx(0.05, rel=0.3),
        pytest.approx(0.005, rel=0.1),
    )


def test_drawing_is_seeded() -> None:
    rounds = synthetic(20, 0.03, 0.01)
    assert draw(Job(), rounds, sweeps=50) == draw(Job(), rounds, sweeps=50) != draw(Job(), rounds, sweeps=50, seed=1)


def test_too_few_rounds_to_draw_from_are_said() -> None:
    with pytest.raises(Mistake, match="6 recorded rounds"):
        draw(Job(), synthetic(5, 0.1, 0.1))


def test_the_report_is_a_machine_and_a_markdown_table(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    for one in synthetic(20, 0.03, 0.01):
        append(path, Recorded(PLANNED[0].job, CPU, one))
    machine, shown = report([path]).split("\n\n")
    assert "Fake" in machine
    assert "torch 2.9.1" in machine
    head, rule, line = shown.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == 9
    assert line == ("| resnet50-fp32-b1-nchw-eager-cpu | 20 | 3.42%, 0.92% | 4.9 | 97.8% | 4.58% | 10.7% | 0.19% |")


def test_three_rounds_of_a_tiny_job_are_recorded_by_real_workers(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    command = [sys.executable, "scripts/intervals.py", "--record", "3", "--out", str(path), *TINY, *BRIEF]
    subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    found = read(path)
    assert [one.round.number for one in found] == [1, 2, 3]
    assert len({one.round.block_iterations for one in found}) == 1
    assert all(one.round.worker_s > sum(one.round.block_wall_ms) / 1e3 for one in found)
    with pytest.raises(Mistake, match="resnet18"):
        report([path])  # three are too few
