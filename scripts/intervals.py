"""Whether a default sweep's intervals hold what many fresh processes say: record rounds once, draw sweeps from them.

PYTHONPATH=. python scripts/intervals.py --record 60 --out rounds.jsonl [--seconds 500] JOB WORDS ...
PYTHONPATH=. python scripts/intervals.py --draw rounds.jsonl [rounds2.jsonl ...]

--record   so many rounds of each job, each in a fresh process as a sweep measures it, jobs in turn; the file is written
           after each round, and gone on with where it has rounds already. Words are those of tcsweep's command line;
           a comma makes several jobs of them: model=resnet50 precision=fp16 layout=nhwc batch=1,128
--draw     a Markdown table: of 1,000 sweeps of 3 to 5 rounds drawn from a job's rounds, how often each interval holds
           the mean of all its rounds
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

from tcsweep import catalog, config, overrides
from tcsweep.job import Environment, Job, Round, from_json, to_json
from tcsweep.lock import device_lock
from tcsweep.measure import Hint, RoundRequest
from tcsweep.mistakes import Mistake
from tcsweep.plan import Planned, plan
from tcsweep.report.words import device_title
from tcsweep.stats import Interval, figures, geometric_mean, round_throughput
from tcsweep.sweep import State
from tcsweep.worker import Broken, Server

SWEEPS = 1000
DRAW_MIN = 6  # rounds of a job; a sweep may take five of them


# --- recording ---


@dataclass(frozen=True)
class Recorded:
    """One round of a job: a line of the file."""

    job: Job
    environment: Environment
    round: Round


Measure = Callable[[RoundRequest], "Round | Broken"]


def composed(words: Sequence[str]) -> list[Job]:
    """The jobs of a command line's words: every pair of their values. Raises Mistake."""
    config.register()
    choices = [[f"{key}={one}" for one in values.split(",")] for key, _, values in (w.partition("=") for w in words)]
    with initialize_config_dir(config_dir=str(catalog.conf_dir()), version_base="1.3"):
        return [
            config.load(compose("config", overrides=overrides.rewrite(chosen, config.keys()))).job
            for chosen in itertools.product(*choices)
        ]


def read(path: Path) -> list[Recorded]:
    """The rounds of a file. A last line that was cut off is left out; raises ValueError for another that is broken."""
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [from_json(Recorded, json.loads(line)) for line in whole]


def append(path: Path, recorded: Recorded) -> None:
    """One more line, in place of one that was cut off."""
    text = path.read_bytes() if path.exists() else b""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.truncate(text.rfind(b"\n") + 1)
        file.seek(0, 2)
        file.write(json.dumps(to_json(recorded), allow_nan=False).encode() + b"\n")


def record(planned: Sequence[Planned], rounds: int, path: Path, measure: Measure, seconds: float) -> Iterator[Recorded]:
    """Measure what the file lacks of so many rounds of each job, jobs in turn, and save each before it is given. A
    round that would not be done in time is not begun. Raises Mistake where a round fails."""
    began = time.monotonic()
    made: dict[Job, list[Round]] = {p.job: [] for p in planned}
    for one in read(path):
        made.setdefault(one.job, []).append(one.round)
    for number, one_job in itertools.product(range(1, rounds + 1), planned):
        job, earlier = one_job.job, made[one_job.job]
        if len(earlier) >= number:
            continue
        if time.monotonic() - began + max((r.worker_s for r in earlier), default=0.0) > seconds:
            return
        value = measure(request(job, number, earlier))
        if isinstance(value, Broken):
            raise Mistake(f"{job.label}: {value.reason} (stage: {value.stage})")
        earlier.append(value)
        found = Recorded(job, one_job.environment, value)
        append(path, found)
        yield found


def request(job: Job, number: int, earlier: Sequence[Round]) -> RoundRequest:
    """The round as a sweep asks for it: counts of the first one reused, a share of the budget for each."""
    now = time.monotonic()
    hint = Hint(earlier[0].warmup_iterations, earlier[0].block_iterations) if earlier else None
    return RoundRequest(job, number, now, now + job.measure.budget_s / job.measure.rounds, hint)


def record_here(words: Sequence[str], rounds: int, path: Path, seconds: float) -> None:
    """Record on this machine. Raises Mistake."""
    jobs = composed(words)
    server = Server()
    server.start()
    devices = server.run("tcsweep.devices:probe", tuple(j.device for j in jobs))
    if isinstance(devices, Broken):
        raise Mistake(f"torch cannot be used: {devices.reason}")
    planned = plan(jobs, devices, compare=False)
    for one in planned:
        if one.reason is not None:
            raise Mistake(f"{one.job.label}: {one.reason}")
    names = {p.environment.gpu_uuid or p.environment.device for p in planned}
    if len(names) > 1:
        raise Mistake("one device at a time")

    def measure(asked: RoundRequest) -> Round | Broken:
        value = server.run("tcsweep.task:measure_round", asked, timeout_s=asked.job.measure.timeout_s)
        if isinstance(value, Broken):
            return value
        return dataclasses.replace(value, worker_s=time.monotonic() - asked.asked_at)

    with device_lock(names.pop(), lambda said: print(said, file=sys.stderr)):
        for one in record(planned, rounds, path, measure, seconds):
            rate = round_throughput(one.job.batch, one.round)
            print(f"{one.job.label} round {one.round.number}: {rate:.4g} img/s, {one.round.worker_s:.1f} s", flush=True)
        server.join()


# --- drawing ---


@dataclass(frozen=True)
class Drawn:
    """What the drawn sweeps of one job say. Shares and half-widths are fractions of 1."""

    recorded: int  # rounds
    cv_between: float  # of the rounds' throughputs
    cv_within: float  # of block times, median over rounds
    rounds_mean: float  # of a drawn sweep
    held: float  # share of sweeps whose ci95 holds the mean of all rounds
    half_width: float  # of ci95, mean
    held_within: float
    half_width_within: float


def a_sweep(job: Job, rounds: Sequence[Round], source: random.Random) -> list[Round]:
    """The rounds that a sweep would have had: the asked ones, more while their interval is wide."""
    state = State(Planned(job, "asked", 0, Environment()))
    for one in source.sample(rounds, min(job.measure.rounds_max, len(rounds))):
        if len(state.rounds) >= job.measure.rounds and not state.wide():
            break
        state.rounds.append(one)
    return state.rounds


def draw(job: Job, rounds: Sequence[Round], sweeps: int = SWEEPS, seed: int = 0) -> Drawn:
    """Draw sweeps without replacement in each. The truth is the geometric mean of all rounds' throughputs. Raises
    Mistake for fewer than `DRAW_MIN` rounds, or a job that is measured in one."""
    if len(rounds) < DRAW_MIN or job.measure.rounds < 2:
        raise Mistake(f"{job.label}: {DRAW_MIN} recorded rounds and measure.rounds=2 at least")
    source = random.Random(f"{seed}/{job.label}")
    rates = [round_throughput(job.batch, r) for r in rounds]
    truth = geometric_mean(rates)
    drawn = [figures(job, a_sweep(job, rounds, source)) for _ in range(sweeps)]
    between = [f.throughput_ci95 for f in drawn if f.throughput_ci95]
    within = [f.throughput_ci95_within for f in drawn if f.throughput_ci95_within]
    return Drawn(
        recorded=len(rounds),
        cv_between=_cv(rates),
        cv_within=statistics.median(_cv(r.block_wall_ms) for r in rounds),
        rounds_mean=statistics.fmean(f.rounds for f in drawn),
        held=_held(between, truth),
        half_width=statistics.fmean(i.half_width for i in between),
        held_within=_held(within, truth),
        half_width_within=statistics.fmean(i.half_width for i in within),
    )


def _cv(values: Sequence[float]) -> float:
    return statistics.stdev(values) / statistics.fmean(values)


def _held(intervals: Sequence[Interval], truth: float) -> float:
    return sum(i.low <= truth <= i.high for i in intervals) / len(intervals)


def table(found: Sequence[tuple[Job, Drawn]]) -> str:
    """Markdown, a line for each job."""
    lines = [
        "| job | rounds recorded | cv between, within | rounds a sweep | `ci95` holds the mean | half-width | "
        "`ci95_within` holds it | half-width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {job.label} | {d.recorded} | {d.cv_between:.2%}, {d.cv_within:.2%} | {d.rounds_mean:.1f} | {d.held:.1%} | "
        f"{d.half_width:.2%} | {d.held_within:.1%} | {d.half_width_within:.2%} |"
        for job, d in found
    ]
    return "\n".join(lines)


def report(paths: Sequence[Path]) -> str:
    """The machine, and the table of all jobs in the files. Raises Mistake."""
    recorded = [one for path in paths for one in read(path)]
    rounds: dict[Job, list[Round]] = {}
    for one in recorded:
        rounds.setdefault(one.job, []).append(one.round)
    machines = sorted({f"{device_title(e)}, torch {e.torch}" for e in (one.environment for one in recorded)})
    return "\n\n".join([*machines, table([(job, draw(job, made)) for job, made in rounds.items()])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=int, metavar="N")
    what.add_argument("--draw", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S")
    parser.add_argument("words", nargs="*", metavar="JOB WORD")
    asked = parser.parse_intermixed_args()
    if asked.record is not None and asked.out is None:
        parser.error("--record needs --out")
    try:
        if asked.draw:
            print(report(asked.draw))
        else:
            record_here(asked.words, asked.record, asked.out, asked.seconds)
    except Mistake as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
