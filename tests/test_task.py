"""One round, measured for real on the CPU."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tcsweep import task
from tcsweep.evidence.facts import Energy
from tcsweep.job import Job, Measure, Round
from tcsweep.measure import Hint, RoundRequest
from tcsweep.models import HostMemoryError
from tcsweep.task import CpuDevice, Stages, measure_round
from tcsweep.worker import Server

STAGES = ["start", "context", "build", "input", "first_call", "warmup", "throughput", "latency"]
BRIEF = Measure(
    iterations=6, warmup_s_min=0.0, warmup_s_max=60.0, warmup_iterations_min=3, latency_s_max=0.001, rounds=3
)
JOB = Job(model="mobilenet_v3_small", image_size=32, batch=2, device="cpu", measure=BRIEF)
HINT = Hint(warmup_iterations=4, block_iterations=2)


class FakeTell:
    """Keeps what a task says, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def stage(self, name: str) -> None:
        self.told.append(name)

    def estimate(self, iteration_ms: float, half_width: float | None) -> None:
        self.told.append((iteration_ms, half_width))

    def turn(self) -> None:
        self.told.append("turn")

    @property
    def stages(self) -> list[str]:
        return [said for said in self.told if isinstance(said, str)]


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What TF32 was set to. A worker's process ends with what it sets; this one goes on, so all of it is put back."""
    was_set: list[bool] = []
    monkeypatch.setattr(task, "set_tf32", was_set.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads that wait for each other on a busy machine take a hundred times as long
    with warnings.catch_warnings():
        yield was_set
    torch.set_num_threads(threads)
    gc.enable()


def request(job: Job = JOB, number: int = 1, hint: Hint | None = HINT) -> RoundRequest:
    return RoundRequest(job, number, time.monotonic(), math.inf, hint)


def shape(one: Round) -> dict[str, Any]:
    """A round without its times: how many there are of each, and whether they can be true."""
    facts = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    times = (*one.block_wall_ms, *one.latency_ms, one.worker_s, one.peak_memory_mib or 0, one.host_memory_mib or 0)
    facts["positive"] = all(t > 0 for t in times)
    facts["stage_s"] = sorted(one.stage_s, key=STAGES.index)
    facts["timed"] = 0 < one.timed_from < one.timed_until
    facts["switches"] = one.arithmetic_before == one.arithmetic_after
    facts["host"] = one.host_state.affinity
    facts |= {"block_wall_ms": len(one.block_wall_ms), "latency_ms": len(one.latency_ms) >= 4}
    for name in ("started_at", "worker_s", "peak_memory_mib", "host_memory_mib", "warmed_up", "converged", *SINCE):
        del facts[name]
    return facts


SINCE = ("timed_from", "timed_until", "arithmetic_before", "arithmetic_after", "host_state")

SHAPE = {
    "number": 2,
    "stage_s": STAGES,
    "warmup_iterations": 4,
    "block_iterations": 2,
    "block_wall_ms": 3,
    "block_device_ms": None,
    "latency_ms": True,
    "reserved_memory_mib": None,
    "power_mode": None,
    "amp_backend": None,
    "amp_version": None,
    "half_dtype": None,
    "notes": (),
    "device_state": None,
    "energy": None,
    "input": "standard normal, seeded",
    "weights_sha256": None,
    "evidence": None,
    "timed": True,
    "switches": True,
    "host": len(os.sched_getaffinity(0)),
    "positive": True,
}


def test_a_round_of_fp32_has_every_stage_and_every_time() -> None:
    assert shape(measure_round(request(number=2), FakeTell())) == SHAPE


def test_the_stages_of_a_round_add_up_to_no_more_than_the_worker_took() -> None:
    before, asked = time.time(), request()
    one = measure_round(asked, FakeTell())
    assert 0 < sum(one.stage_s.values()) <= one.worker_s <= time.monotonic() - asked.asked_at
    assert before <= one.started_at <= time.time()


def test_a_round_waits_for_its_turn_between_model_and_input() -> None:
    tell = FakeTell()
    measure_round(request(), tell)
    assert tell.stages == ["context", "build", "turn", "input", "first_call", "warmup", "throughput"]


def test_an_estimate_follows_the_stage_that_it_belongs_to() -> None:
    tell = FakeTell()
    measure_round(request(), tell)
    for name in ("warmup", "throughput"):
        iteration_ms, half_width = tell.told[tell.told.index(name) + 1]
        assert (iteration_ms > 0, half_width) == (True, None)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", [False]), ("tf32", [True])])
def test_tf32_is_set_once_as_the_precision_wants_it(tf32: list[bool], precision: str, expected: list[bool]) -> None:
    measure_round(request(dataclasses.replace(JOB, precision=precision)), FakeTell())
    assert tf32 == expected


def test_nothing_is_collected_inside_the_timed_regions() -> None:
    class Watching(FakeTell):
        def stage(self, name: str) -> None:
            self.told.append((name, gc.isenabled()))

        def estimate(self, iteration_ms: float, half_width: float | None) -> None: ...

    tell = Watching()
    measure_round(request(), tell)
    assert dict(t for t in tell.told if t != "turn") == {
        "context": True,
        "build": True,
        "input": True,
        "first_call": False,
        "warmup": False,
        "throughput": False,
    }


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_model_and_input_are_in_the_jobs_layout(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    seen: list[tuple[bool, bool]] = []
    build = task.build_model

    def watched(job: Job, device: torch.device) -> torch.nn.Module:
        model = build(job, device)
        last = torch.channels_last
        # of the first convolution, 3 channels and 3 by 3: its layout shows in its strides
        first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_hook(
            lambda conv, args, _: seen.append(
                tuple(t.is_contiguous(memory_format=last) for t in (conv.weight, args[0]))
            )
        )
        return model

    monkeypatch.setattr(task, "build_model", watched)
    measure_round(request(dataclasses.replace(JOB, layout=layout)), FakeTell())
    assert set(seen) == {(layout == "nhwc",) * 2}


def test_fp16_says_what_half_meant() -> None:
    one = measure_round(request(dataclasses.replace(JOB, precision="fp16"), number=2), FakeTell())
    assert shape(one) == {**SHAPE, "half_dtype": "float16", "notes": one.notes}


def test_a_round_without_a_hint_finds_its_own_warm_up_and_blocks() -> None:
    one = measure_round(request(hint=None), FakeTell())
    assert one.warmup_iterations >= 3
    assert one.block_iterations * len(one.block_wall_ms) == 6


def test_a_failure_leaves_the_stage_told_last() -> None:
    tell = FakeTell()
    with pytest.raises(HostMemoryError):
        measure_round(request(dataclasses.replace(JOB, batch=10**12)), tell)
    assert tell.told == ["context", "build", "turn", "input"]


def test_an_o_level_runs_in_a_worker_and_says_what_ran_it(tmp_path: Path) -> None:
    server, told = Server(), []
    server.start()
    job = dataclasses.replace(JOB, precision="o1", amp_backend="torch")
    one = server.run(
        "tcsweep.task:measure_round",
        request(job, number=2),
        log=tmp_path / "log",
        listen=lambda *said: told.append(said),
    )
    assert isinstance(one, Round), f"{one}\n{(tmp_path / 'log').read_text()}"
    assert shape(one) == {
        **SHAPE,
        "amp_backend": "torch",
        "amp_version": str(torch.__version__),
        "half_dtype": "bfloat16",
        "notes": one.notes,
    }
    stages = list(dict.fromkeys(value for kind, value in told if kind == "stage" and value != "start"))
    assert stages == ["context", "build", "input", "first_call", "warmup", "throughput"]


class Counted:
    """A clock that only iterations move, 10 ms each."""

    now = 0.0

    def iterate(self) -> None:
        self.now += 0.01


def test_a_cpu_block_is_the_wall_time_of_all_its_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted()
    monkeypatch.setattr(task.time, "perf_counter", lambda: counted.now)
    device = CpuDevice(counted.iterate)
    assert (device.block(3), device.one()) == ((pytest.approx(30.0), None), pytest.approx(10.0))


def test_a_stage_that_fails_is_named_and_has_no_time() -> None:
    tell = FakeTell()
    stages = Stages(tell, time.monotonic())  # type: ignore[arg-type]
    with stages.stage("build"):
        pass
    with pytest.raises(RuntimeError, match="boom"), stages.stage("input"):
        raise RuntimeError("boom")
    assert (tell.told, list(stages.seconds)) == (["build", "input"], ["start", "build"])


def test_estimates_are_passed_on_four_times_a_second_and_stages_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tell, now = FakeTell(), [100.0]
    monkeypatch.setattr(task.time, "monotonic", lambda: now[0])
    pass_on: Callable[..., None] = task._teller(tell)  # type: ignore[arg-type]
    for at, stage in ((0.0, "warmup"), (0.2, "warmup"), (0.25, "warmup"), (0.3, "throughput"), (0.5, "throughput")):
        now[0] = 100.0 + at
        pass_on(stage, at, None)
    assert tell.told == ["warmup", (0.0, None), (0.25, None), "throughput", (0.3, None)]


def test_a_cpu_is_asked_for_no_energy_and_says_so() -> None:
    job = dataclasses.replace(JOB, measure=dataclasses.replace(JOB.measure, energy_s=1.0))
    assert measure_round(request(job), FakeTell()).energy == Energy(missing="a CPU: its energy is not read")
