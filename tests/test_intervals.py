"""Whether intervals hold the truth: sweeps by the real Runner and the real round, on a fake device and clock."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tcsweep import sweep
from tcsweep.devices import Resolved
from tcsweep.evidence.facts import Work
from tcsweep.job import Environment, Job, Outcome, Result, Round
from tcsweep.measure import Reference, RoundRequest, Watch, run_round
from tcsweep.report.progress import PlainProgress
from tcsweep.speedup import rows

from .test_stats import one_round

SEEDS = 100
SETUP_S = 1.0  # of a worker: what the clock moves by before a round is measured
SWEEP_S = 60.0  # about what a sweep of six jobs takes by the fake clock
# True milliseconds an image: speed-ups over fp32 of 1.6 and 2.5.
IMAGE_MS = {"fp32": 1.0, "fp16": 1 / 2.5, "bf16": 1 / 1.6}
JOBS = tuple(Job(precision=p, batch=b, device="cpu") for b in (8, 32) for p in IMAGE_MS)


@dataclass(frozen=True)
class Noise:
    """Coefficients of variation between processes, and between the blocks of one; and the machine's drift."""

    process: float
    block: float
    drift: float = 0.1  # slower after `SWEEP_S` than at the start, all jobs alike


@dataclass
class FakeDevice:
    """A process's device: its clock is the machine's, and so is the drift."""

    machine: Machine
    iteration_ms: float

    def block(self, iterations: int) -> tuple[float, float | None]:
        """So many iterations at the speed of now."""
        now = 1 + self.machine.noise.drift * self.machine.now_s / SWEEP_S
        noise = math.exp(self.machine.source.gauss(0, self.machine.noise.block))
        wall = iterations * self.iteration_ms * now * noise
        self.machine.now_s += wall / 1e3
        return wall, None

    def one(self) -> float:
        """One iteration."""
        return self.block(1)[0]


class Machine:
    """A server whose workers measure a `FakeDevice` by `run_round`, each with a speed of its own."""

    removed = ()
    worker_pid = None

    def __init__(self, seed: int, noise: Noise) -> None:
        self.source, self.noise, self.now_s = random.Random(seed), noise, 0.0

    def clock(self) -> float:
        """Seconds; only the fake device moves them."""
        return self.now_s

    def start(self) -> None:
        """Nothing to start."""

    def join(self) -> None:
        """Nobody to wait for."""

    def run(self, task: str, request: Any, **_: Any) -> Any:
        """A probe, or one round of a job."""
        if task.endswith(":probe"):
            return {name: Resolved(name, Environment(device="cpu", device_name="Fake")) for name in request}
        if task.endswith("reference:make"):
            return Reference(None, Work(), missing="nothing is compared")
        return self._round(request)

    def _round(self, request: RoundRequest) -> Round:
        self.now_s += SETUP_S
        job = request.job
        speed = math.exp(self.source.gauss(0, self.noise.process))
        device = FakeDevice(self, job.batch * IMAGE_MS[job.precision] * speed)
        samples = run_round(device, job.measure, Watch(self.clock, request.deadline), request.hint)
        return one_round(
            request.number,
            samples.block_wall_ms,
            block_iterations=samples.block_iterations,
            warmup_iterations=samples.warmup_iterations,
            latency_ms=samples.latency_ms,
        )


def swept(folder: Path, seed: int, noise: Noise) -> tuple[tuple[Outcome, ...], float]:
    """The outcomes of one simulated default sweep, and the seconds that it took by the fake clock."""
    machine = Machine(seed, noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "Server", lambda: machine)
        patch.setattr("tcsweep.sweep.time.monotonic", machine.clock)
        patch.setattr("tcsweep.store.save_outcome", lambda folder, outcome: folder)  # not what is tested, and slow
        finished = sweep.run(JOBS, sweep.claim(folder), PlainProgress(), order_seed=seed)
    return finished.outcomes, machine.now_s


@dataclass
class Coverage:
    """How often the intervals of many sweeps hold the truth, and how many rounds were made."""

    held: int = 0
    intervals: int = 0
    rounds: int = 0
    results: int = 0
    seconds: float = 0.0


def coverage(tmp_path: Path, noise: Noise, seeds: int = SEEDS) -> Coverage:
    """Of the speed-ups of all jobs but the baselines."""
    found = Coverage()
    for seed in range(seeds):
        outcomes, seconds = swept(tmp_path / str(seed), seed, noise)
        found.seconds += seconds / seeds
        for row in rows(outcomes):
            assert isinstance(row.outcome, Result)
            found.results += 1
            found.rounds += len(row.outcome.rounds)
            if not row.job.is_baseline:
                assert row.speedup.ci95 is not None
                truth = IMAGE_MS["fp32"] / IMAGE_MS[row.job.precision]
                found.intervals += 1
                found.held += row.speedup.ci95.low <= truth <= row.speedup.ci95.high
    return found


@pytest.mark.parametrize(
    ("noise", "least_rounds", "most_rounds"),
    [
        (Noise(process=0.03, block=0.01), 4.5, 5.0),  # drift: nearly all jobs get every round there is
        (Noise(process=0.008, block=0.005, drift=0.0), 3.2, 4.0),  # about every second job stops at 3, by chance
    ],
    ids=["drift", "optional stopping"],
)
def test_at_least_90_of_100_speedup_intervals_of_default_sweeps_hold_the_true_speedup(
    tmp_path: Path, noise: Noise, least_rounds: float, most_rounds: float
) -> None:
    found = coverage(tmp_path, noise)
    assert found.intervals == 4 * SEEDS
    assert found.held / found.intervals >= 0.9
    assert least_rounds <= found.rounds / found.results <= most_rounds


def test_the_simulated_sweep_lasts_as_long_as_its_drift_is_meant_for(tmp_path: Path) -> None:
    assert 0.75 * SWEEP_S <= coverage(tmp_path, Noise(process=0.03, block=0.01), seeds=5).seconds <= 1.5 * SWEEP_S
