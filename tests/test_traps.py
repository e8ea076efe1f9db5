"""Traps: one thing is spoiled in a real worker that measures a real model, and the result must say which."""

from __future__ import annotations

import csv
import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tcsweep.devices.reader import Absent, Reader
from tcsweep.devices.telemetry import Sampler, Windows, open_reader
from tcsweep.explain import SUSPECT, verdicts
from tcsweep.job import Environment, Job, Measure, Result, Round
from tcsweep.measure import RoundRequest
from tcsweep.models import build_model
from tcsweep.references import References
from tcsweep.stats import figures
from tcsweep.worker import Server

from .test_main import FAST, disturbed, environment, sweep_folder, tcsweep

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
QUICK = Measure(
    rounds=1, rounds_max=1, timed_s_min=0.1, timed_s_max=0.3, warmup_s_min=0.05, warmup_s_max=0.2, latency_s_max=0.05
)
SMALL = Job(model="resnet18", image_size=64, batch=2, device="cpu", measure=QUICK)
TASK = "tcsweep.task:measure_round"


class Bench:
    """Measures jobs as a sweep does, one worker a round with reference and evidence."""

    def __init__(self, folder: Path) -> None:
        self.server = Server()
        self.server.start()
        self.references = References(self.server, folder)
        self._environments: dict[str, Environment] = {}

    def __call__(self, job: Job, task: str = TASK, *others: Job) -> list[Result]:
        """A result a job: alone by `task`, several in one process."""
        jobs = (job, *others)
        requests = [self._request(one) for one in jobs]
        values: list[Any] = []

        def listen(kind: str, said: Any) -> None:
            if kind == "one":
                values.append(said[1])

        with Sampler(self._reader(job)) as sampler:
            alone = self.server.run(task, requests if others else requests[0], timeout_s=120, listen=listen)
        self.server.join()
        found = []
        for one, value in zip(jobs, values if others else [alone], strict=True):
            assert isinstance(value, Round), value
            if one.device != "cpu":
                assert value.timed_from is not None
                assert value.timed_until is not None
                seen = sampler.state(Windows((value.timed_from, value.timed_until)))
                value = dataclasses.replace(value, device_state=dataclasses.replace(seen, foreign_load=None))
            found.append(Result(one, "asked", 0, self._environment(one), (value,), 0.0, 1.0))
        return found

    def _reader(self, job: Job) -> Reader | Absent:
        on_gpu = job.device != "cpu"
        return open_reader(self._environment(job).gpu_uuid, Path("/"), on_gpu) if on_gpu else Absent("a CPU")

    def _request(self, job: Job) -> RoundRequest:
        reference = self.references.of(job, self._environment(job), lambda *said: None)
        assert reference.missing is None, reference.missing
        now = time.monotonic()
        return RoundRequest(job, 1, now, now + 20, None, reference, gathers=True)

    def _environment(self, job: Job) -> Environment:
        if job.device not in self._environments:
            resolved = self.server.run("tcsweep.devices:probe", (job.device,), timeout_s=120)
            self._environments[job.device] = resolved[job.device].environment
            self.server.join()
        return self._environments[job.device]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("bench"))
    yield made
    made.references.close()
    made.server.join()


def suspicions(result: Result, noise: tuple[str, ...] = ("others used", "times changed")) -> list[str]:
    """Why a result is suspect. On a machine that others use too, the `noise` may be said of any: left out here."""
    found = verdicts(result, figures(result.job, result.rounds))
    return [r for v in found if v.name == SUSPECT for r in v.reasons if not r.startswith(noise)]


def says(result: Result, *starts: str) -> None:
    """The result is suspect for reasons that start so, in this order, and for no other."""
    found = suspicions(result)
    assert len(found) == len(starts), found
    assert all(reason.startswith(start) for reason, start in zip(found, starts)), found


@pytest.mark.parametrize("precision", ["fp32", "bf16", "o0", "o1", "o2", "o3"])
def test_a_job_without_a_trap_is_not_suspect(bench: Bench, precision: str) -> None:
    amp = "torch" if precision.startswith("o") else None
    (result,) = bench(dataclasses.replace(SMALL, precision=precision, amp_backend=amp))
    assert suspicions(result) == []


def test_autocast_left_on_by_an_earlier_call_is_seen(bench: Bench) -> None:
    (result,) = bench(SMALL, "tests.traps:autocast_left_on")
    says(
        result,
        "observed bfloat16 in 21 of 21 operators, labelled float32",
        "autocast to bfloat16 was on",
        "the output is ",
    )


def test_a_half_that_was_undone_in_one_block_is_seen(bench: Bench) -> None:
    (result,) = bench(dataclasses.replace(SMALL, precision="bf16"), "tests.traps:block_undone")
    says(result, "observed float32 in 5 of 21 operators, labelled bf16 (bfloat16)")


def test_times_that_trend_are_seen(bench: Bench) -> None:
    longer = dataclasses.replace(QUICK, timed_s_min=0.8, timed_s_max=0.8)
    made = [bench(dataclasses.replace(SMALL, measure=longer), "tests.traps:slower_and_slower")[0] for _ in range(3)]
    rounds = tuple(dataclasses.replace(one.rounds[0], number=n) for n, one in enumerate(made, 1))
    result = dataclasses.replace(made[0], rounds=rounds)  # three processes, as `default` has
    said = suspicions(result, noise=("others used",))
    seen = [one[:18] for one in said] == ["times changed by +"]
    if not seen and len(said) < len(suspicions(result)):
        pytest.skip("others used this machine: a trend does not stand out")
    assert seen, said


def test_evidence_of_another_model_than_was_timed_is_seen(bench: Bench) -> None:
    (result,) = bench(SMALL, "tests.traps:evidence_of_another")
    says(result, "the output is ")
    assert result.evidence is not None
    assert result.evidence.numerics.relative_error is not None
    assert result.evidence.numerics.relative_error > 0.5  # two strangers


def weights(path: Path, change: Callable[[torch.nn.Module], None]) -> str:
    model = build_model(SMALL, torch.device("cpu"))
    with torch.no_grad():
        change(model)
    torch.save(model.state_dict(), path)
    return str(path)


def test_an_output_with_nan_is_seen(bench: Bench, tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        model.fc.weight[0, 0] = torch.nan

    (result,) = bench(dataclasses.replace(SMALL, weights=weights(tmp_path / "nan.pt", spoil)))
    (said,) = suspicions(result)  # of 16 images, or as many as a busy machine has the time for
    assert re.fullmatch(r"the output holds [1-9]\d* NaN and 0 Inf", said)


def test_fp16_that_overflows_by_its_weights_is_seen_and_float32_does_not(bench: Bench, tmp_path: Path) -> None:
    def scale(model: Any) -> None:
        model.conv1.weight.mul_(1e6)

    job = dataclasses.replace(SMALL, weights=weights(tmp_path / "large.pt", scale))
    (exact,) = bench(job)
    (half,) = bench(dataclasses.replace(job, precision="fp16"))
    assert suspicions(exact) == []
    says(half, "the output holds ")


def test_denormal_weights_are_hinted_at(bench: Bench, tmp_path: Path) -> None:
    def shrink(model: Any) -> None:
        model.layer1[0].conv1.weight.mul_(1e-38)

    (result,) = bench(dataclasses.replace(SMALL, weights=weights(tmp_path / "small.pt", shrink)))
    found = [v for v in verdicts(result, figures(result.job, result.rounds)) if v.name == "wide"]
    assert any(r.startswith("denormals: ") for v in found for r in v.reasons)
    assert result.job.weights == str(tmp_path / "small.pt")


def test_a_cpu_that_others_use_is_seen(bench: Bench) -> None:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        (result,) = bench(SMALL)
    finally:
        for one in others:
            one.kill()
            one.wait()
    found = verdicts(result, figures(result.job, result.rounds))
    assert any(r.startswith("others used") and r.endswith("% of the CPU") for v in found for r in v.reasons)


def test_what_o1_leaves_behind_in_a_process_is_seen_and_what_float32_leaves_is_nothing(bench: Bench) -> None:
    shared = dataclasses.replace(SMALL, isolation="none")
    o1 = dataclasses.replace(shared, precision="o1", amp_backend="torch")
    _, leaked = bench(o1, "tcsweep.task:measure_together", shared)
    first, _ = bench(shared, "tcsweep.task:measure_together", o1)
    says(
        leaked,
        "observed bfloat16 in 21 of 21 operators, labelled float32",
        "torch's functions were patched (",
        "the output is ",
    )
    assert suspicions(first) == []


def test_the_puzzle_is_caught_in_the_act(tmp_path: Path) -> None:
    small = ["device=cpu", "model=resnet18", "model.image_size=64", "batch=2", "measure=quick", "tracking=none"]
    done = tcsweep(tmp_path, "+experiment=puzzle", *small, *FAST, "amp_backend=torch")
    assert done.returncode == 0, done.stderr
    with open(sweep_folder(tmp_path) / "summary.csv", newline="") as file:
        rows = {(r["isolation"], r["precision"]): r for r in csv.DictReader(file)}
    assert list(rows) == [(i, p) for i in ("none", "process") for p in ("o3", "o2", "o1", "o0", "fp32")]
    patched = [key for key, r in rows.items() if re.match("suspect: .*functions were patched", r["reason"])]
    assert patched == [("none", "o0"), ("none", "fp32")]
    assert {rows[key]["verdict"] for key in (("none", "o0"), ("none", "fp32"))} == {SUSPECT}
    assert rows["none", "fp32"]["speedup"] == rows["none", "o3"]["speedup"] == ""
    assert rows["process", "fp32"]["dtypes"] == "float32"
    if disturbed(list(rows.values())):
        pytest.skip("others used this machine: no speed-up is taken")
    assert "in one process fp32 ran at" in done.stdout
    assert "true speed-up over fp32: " in done.stdout


# --- on a GPU ---

ON_GPU = Job(model="resnet50", batch=32, device="cuda:0", measure=QUICK)


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "job",
    [
        ON_GPU,
        dataclasses.replace(ON_GPU, precision="tf32"),
        dataclasses.replace(ON_GPU, precision="fp16", layout="nhwc"),
        dataclasses.replace(ON_GPU, model="vgg16"),
        dataclasses.replace(ON_GPU, model="vit_b_16"),
        dataclasses.replace(ON_GPU, model="vit_b_16", precision="o1", amp_backend="torch"),
    ],
    ids=lambda job: job.label,
)
def test_a_job_on_a_gpu_without_a_trap_is_not_suspect(bench: Bench, job: Job) -> None:
    (result,) = bench(job)
    assert suspicions(result) == []


@gpu
@needs_gpu
@pytest.mark.parametrize("model", ["resnet50", "vit_b_16"])
def test_tf32_left_on_is_seen_by_the_kernels_that_ran(bench: Bench, model: str) -> None:
    job = dataclasses.replace(ON_GPU, model=model)
    (said,) = bench(job, "tests.traps:tf32_left_on")
    (hidden,) = bench(job, "tests.traps:tf32_on_but_hidden")
    says(said, "kernels multiply in tf32 for ", "TF32 was on, labelled fp32", "the output is ")
    says(hidden, "kernels multiply in tf32 for ", "the output is ")


@gpu
@needs_gpu
@pytest.mark.parametrize("batch", [32, 512])
def test_a_timed_region_that_forgets_to_wait_is_seen(bench: Bench, batch: int) -> None:
    few = dataclasses.replace(QUICK, iterations=10)  # two a block: more would fill the launch queue, and so wait
    (result,) = bench(dataclasses.replace(ON_GPU, batch=batch, measure=few), "tests.traps:nobody_waits")
    found = suspicions(result)
    assert any("shorter than the device's work" in reason for reason in found)
    assert batch == 32 or any("over the device's peak" in reason for reason in found)


@gpu
@needs_gpu
def test_kernels_of_another_model_than_was_timed_are_seen(bench: Bench) -> None:
    (result,) = bench(ON_GPU, "tests.traps:evidence_of_another")
    assert any("the evidence does not match the timing" in reason for reason in suspicions(result))


@gpu
@needs_gpu
def test_a_gpu_that_another_process_uses_is_seen_in_every_row(tmp_path: Path) -> None:
    busy = (
        "import torch\nx = torch.randn(4096, 4096, device='cuda')\nwhile True:\n    x @ x; torch.cuda.synchronize()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", busy], env=environment())
    try:
        time.sleep(8)  # until it computes
        done = tcsweep(tmp_path, "-m", "precision=fp32,fp16", "batch=32", "measure=quick", "tracking=none")
    finally:
        other.kill()
        other.wait()
    assert done.returncode == 0, done.stderr
    assert "held by" in done.stdout + done.stderr
    with open(sweep_folder(tmp_path) / "summary.csv", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert len(reasons) == 2
    assert all("others used" in reason for reason in reasons)


@gpu
@needs_gpu
def test_energy_is_measured_where_it_is_asked_for(bench: Bench) -> None:
    measure = dataclasses.replace(QUICK, energy_s=2.0)
    (result,) = bench(dataclasses.replace(ON_GPU, precision="fp16", measure=measure))
    energy = result.rounds[0].energy
    assert energy is not None
    assert energy.missing is None
    assert energy.joules
    assert energy.seconds
    assert 80 < energy.joules / energy.seconds < 750  # watts of a card at work


@gpu
@needs_gpu
def test_the_clock_in_band_is_the_one_that_the_driver_tells(bench: Bench) -> None:
    (result,) = bench(ON_GPU)
    assert result.evidence is not None
    told = torch.cuda.clock_rate() if hasattr(torch.cuda, "clock_rate") else None
    assert result.evidence.sm_mhz_in_band is not None
    assert 200 < result.evidence.sm_mhz_in_band < 3500
    assert told is None or told > 0
