"""The sweep's logic with a server that measures nothing: rounds, order, budget, failures, interruption."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcsweep import store, sweep
from tcsweep.devices import Resolved
from tcsweep.devices.reader import Limits, Users
from tcsweep.evidence.facts import Work
from tcsweep.job import Environment, Failure, Job, Measure, Result, Round, Skipped
from tcsweep.measure import Hint, Reference, RoundRequest
from tcsweep.mistakes import Mistake
from tcsweep.report.progress import PlainProgress
from tcsweep.worker import Broken

from .test_stats import one_round

Answer = Callable[[RoundRequest], Round | Broken]


class FakeServer:
    """Answers as a fork server would; `answer` decides what each round gives."""

    removed: tuple[str, ...] = ()
    answer: Answer
    requests: list[RoundRequest]
    joined: int = 0
    worker_pid: int | None = None

    def start(self) -> None: ...

    def join(self) -> None:
        FakeServer.joined += 1

    def run(self, task: str, request: Any, **_: Any) -> Any:
        if task.endswith(":probe"):
            environment = Environment(device="cpu", device_name="Fake")
            return {
                name: Resolved(name, environment) if name != "cuda" else Resolved(name, None, "no GPU here")
                for name in request
            }
        if task.endswith("reference:make"):
            return Reference(None, Work(), missing="nothing is compared")
        FakeServer.requests.append(request)
        return FakeServer.answer(request)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> type[FakeServer]:
    FakeServer.answer = staticmethod(lambda request: rate_of(request, 100.0))
    FakeServer.requests, FakeServer.joined = [], 0
    monkeypatch.setattr(sweep, "Server", FakeServer)
    return FakeServer


def rate_of(request: RoundRequest, img_s: float, worker_s: float = 0.0) -> Round:
    return one_round(request.number, (request.job.batch * 2 / img_s * 1e3,) * 5, worker_s=worker_s)


def run(tmp_path: Path, *jobs: Job, **options: Any) -> sweep.Finished:
    return sweep.run(jobs, sweep.claim(tmp_path / "sweep"), PlainProgress(), **options)


def jobs(*precisions: str, batch: int = 1, **changes: Any) -> list[Job]:
    levels = {p: "auto" if p.startswith("o") else None for p in precisions}
    return [Job(precision=p, amp_backend=a, batch=batch, **changes) for p, a in levels.items()]


def test_every_job_is_measured_once_before_any_is_measured_again(tmp_path: Path) -> None:
    finished = run(tmp_path, *jobs("fp32", "fp16", "bf16"), *jobs("fp32", "fp16", batch=8))
    numbers = [r.number for r in FakeServer.requests]
    assert numbers == [1] * 5 + [2] * 5 + [3] * 5
    assert [len(o.rounds) for o in finished.outcomes if isinstance(o, Result)] == [3] * 5
    assert finished.exit_status == 0


def test_the_jobs_of_a_cell_stay_together_in_every_round(tmp_path: Path) -> None:
    run(tmp_path, *(j for b in (1, 2, 4, 8) for j in jobs("fp32", "fp16", "bf16", batch=b)))
    for start in range(0, 36, 12):
        batches = [r.job.batch for r in FakeServer.requests[start : start + 12]]
        assert [batches[i : i + 3].count(batches[i]) for i in range(0, 12, 3)] == [3] * 4


def test_one_seed_gives_one_order_and_rounds_differ(tmp_path: Path) -> None:
    asked = [j for b in (1, 2, 4, 8) for j in jobs("fp32", "fp16", batch=b)]
    run(tmp_path / "a", *asked, order_seed=5)
    first, FakeServer.requests = [r.job for r in FakeServer.requests], []
    run(tmp_path / "b", *asked, order_seed=5)
    assert [r.job for r in FakeServer.requests] == first
    assert first[:8] != first[8:16]
    assert store.load_sweep(tmp_path / "a" / "sweep")[0].order_seed == 5


def test_rows_stay_in_the_order_typed(tmp_path: Path) -> None:
    finished = run(tmp_path, *jobs("o1", "fp32", "bf16"))
    assert [(o.index, o.job.precision) for o in finished.outcomes] == [(0, "o1"), (1, "fp32"), (2, "bf16")]


def test_a_single_job_gets_the_baseline_and_the_reference_it_lacks(tmp_path: Path) -> None:
    finished = run(tmp_path, *jobs("o1", layout="nhwc"))
    assert [(o.role, o.job.precision, o.job.layout) for o in finished.outcomes] == [
        ("asked", "o1", "nhwc"),
        ("baseline", "fp32", "nhwc"),
        ("reference", "fp32", "nchw"),
    ]


def test_the_same_point_asked_for_three_times_is_three_jobs(tmp_path: Path) -> None:
    finished = run(tmp_path, Job(), Job(), Job())
    assert [o.job.repeat for o in finished.outcomes] == [0, 1, 2]
    assert len({o.job.folder for o in finished.outcomes}) == 3


def test_later_rounds_get_the_first_ones_counts(tmp_path: Path) -> None:
    run(tmp_path, Job())
    assert [r.hint for r in FakeServer.requests] == [None, Hint(5, 2), Hint(5, 2)]


def test_a_noisy_job_gets_two_more_rounds_and_its_baseline_with_it(tmp_path: Path) -> None:
    def answer(request: RoundRequest) -> Round:
        noisy = request.job.precision == "fp16"
        return rate_of(request, 100.0 * (1 + 0.2 * request.number if noisy else 1))

    FakeServer.answer = staticmethod(answer)
    finished = run(tmp_path, *jobs("fp32", "fp16", "bf16"))
    assert [len(o.rounds) for o in finished.outcomes if isinstance(o, Result)] == [5, 5, 3]


def test_the_budget_ends_a_jobs_rounds_and_one_is_always_finished(tmp_path: Path) -> None:
    slow = {"fp32": 30.0, "fp16": 9.0, "bf16": 4.0}
    clock = [0.0]

    def answer(request: RoundRequest) -> Round:
        clock[0] += slow[request.job.precision]
        return rate_of(request, 100.0, slow[request.job.precision])

    FakeServer.answer = staticmethod(answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcsweep.sweep.time.monotonic", lambda: clock[0])
        finished = run(tmp_path, *jobs("fp32", "fp16", "bf16"))
    found = [(len(o.rounds), o.stopped) for o in finished.outcomes if isinstance(o, Result)]
    assert found == [(1, "budget"), (2, "budget"), (3, None)]
    assert finished.exit_status == 0


def test_a_round_is_told_its_share_of_the_budget(tmp_path: Path) -> None:
    run(tmp_path, Job(measure=Measure(budget_s=30)))
    shares = [r.deadline - r.asked_at for r in FakeServer.requests]
    assert shares == [pytest.approx(10, abs=0.5), pytest.approx(15, abs=0.5), pytest.approx(30, abs=0.5)]


def test_a_failed_job_is_a_row_and_the_others_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: RoundRequest) -> Round | Broken:
        if request.job.precision == "fp16" and request.number == 2:
            return Broken("throughput", "killed", "worker killed by SIGKILL, probably out of memory")
        return rate_of(request, 100.0)

    FakeServer.answer = staticmethod(answer)
    finished = run(tmp_path, *jobs("o0", "o1", "fp32", "fp16", "bf16"))
    statuses = [o.status for o in finished.outcomes]
    assert (statuses, finished.exit_status) == (["ok", "ok", "ok", "failed", "ok"], 1)
    failure = finished.outcomes[3]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.kind, len(failure.rounds)) == ("throughput", "killed", 1)
    assert "precision=fp16" in capsys.readouterr().out  # said when it happened, with its overrides


def test_first_jobs_that_all_fail_alike_stop_the_sweep(tmp_path: Path) -> None:
    FakeServer.answer = staticmethod(lambda request: Broken("build", "error", "RuntimeError: same"))
    asked = [j for b in (1, 2, 4, 8) for j in jobs("fp32", "fp16", batch=b)]
    finished = run(tmp_path, *asked)
    statuses = sorted(o.status for o in finished.outcomes)
    assert statuses == ["failed"] * 5 + ["skipped"] * 3
    reasons = {o.reason for o in finished.outcomes if isinstance(o, Skipped)}
    assert (reasons, finished.exit_status) == ({"the first 5 jobs failed alike"}, 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_fault_of_one_model_or_batch_does_not_stop_the_others(tmp_path: Path, seed: int) -> None:
    def answer(request: RoundRequest) -> Round | Broken:
        if request.job.model == "vgg11" or request.job.batch == 8:
            return Broken("first_call", "error", "RuntimeError: same")
        return rate_of(request, 100.0)

    FakeServer.answer = staticmethod(answer)
    levels = ("fp32", "fp16", "bf16", "o0", "o1")
    asked = [j for m in ("vgg11", "resnet18") for b in (1, 8) for j in jobs(*levels, model=m, batch=b)]
    finished = run(tmp_path, *asked, order_seed=seed)
    measured = [(o.job.model, o.job.batch) for o in finished.outcomes if isinstance(o, Result)]
    assert measured == [("resnet18", 1)] * 5


def test_different_failures_do_not_stop_the_sweep(tmp_path: Path) -> None:
    FakeServer.answer = staticmethod(lambda r: Broken("build", "error", f"batch {r.job.batch}"))
    finished = run(tmp_path, *(j for b in (1, 2, 4, 8) for j in jobs("fp32", "fp16", batch=b)))
    assert [o.status for o in finished.outcomes] == ["failed"] * 8


def test_what_this_machine_cannot_do_is_skipped_with_its_reason(tmp_path: Path) -> None:
    finished = run(tmp_path, *jobs("tf32", "fp32"))
    skipped = finished.outcomes[0]
    assert isinstance(skipped, Skipped)
    assert "TF32" in skipped.reason
    assert finished.exit_status == 0


def test_a_sweep_in_which_nothing_can_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="nothing can be measured here: fp32 on cuda: no GPU here"):
        run(tmp_path, Job(device="cuda"))
    assert FakeServer.requests == []


@pytest.mark.parametrize(("error", "number"), [(KeyboardInterrupt, signal.SIGINT), (sweep.Interrupted, signal.SIGTERM)])
def test_an_interrupted_sweep_keeps_what_it_measured(
    tmp_path: Path, error: type[BaseException], number: signal.Signals
) -> None:
    def answer(request: RoundRequest) -> Round:
        if len(FakeServer.requests) == 3:
            raise error
        return rate_of(request, 100.0)

    FakeServer.answer = staticmethod(answer)
    finished = run(tmp_path, *jobs("fp32", "fp16", "bf16", "o1"))
    saved, outcomes = store.load_sweep(finished.folder)
    assert (saved.status, finished.exit_status) == ("interrupted", 128 + number)
    assert sorted(o.status for o in outcomes) == ["ok", "ok", "skipped", "skipped"]
    assert {o.reason for o in outcomes if isinstance(o, Skipped)} == {"interrupted before its turn"}
    assert {o.stopped for o in outcomes if isinstance(o, Result)} == {"interrupted"}


def test_the_next_worker_waits_for_the_memory_of_one_that_failed_or_holds_much(tmp_path: Path) -> None:
    def answer(request: RoundRequest) -> Round | Broken:
        if request.job.precision == "fp16":
            return Broken("input", "gpu-memory", "out of GPU memory")
        held = 9000.0 if request.job.precision == "bf16" else None
        return dataclasses.replace(rate_of(request, 100.0), reserved_memory_mib=held)

    FakeServer.answer = staticmethod(answer)
    run(tmp_path, *jobs("fp32", "fp16", "bf16"))
    assert FakeServer.joined == 1 + 1 + 3 + 1  # the reference, the failure, three rounds of bf16, the end


def test_every_round_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    seen = []

    def answer(request: RoundRequest) -> Round:
        folder = tmp_path / "sweep"
        seen.append(sum(len(o.rounds) for o in store.load_sweep(folder)[1] if isinstance(o, Result)))
        return rate_of(request, 100.0)

    FakeServer.answer = staticmethod(answer)
    run(tmp_path, *jobs("fp32", "fp16"))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_a_taken_folder_is_never_shared(tmp_path: Path) -> None:
    claimed = [sweep.claim(tmp_path / "12-00-00") for _ in range(3)]
    assert [c.name for c in claimed] == ["12-00-00", "12-00-00-2", "12-00-00-3"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match=r"cannot write in .*file/x \(Not a directory\): set hydra.sweep.dir"):
        sweep.claim(tmp_path / "file" / "x")


def test_a_signal_in_the_middle_of_an_import_is_taken_after_it(tmp_path: Path) -> None:
    """Raised inside, it may be swallowed, and the import lock may stay taken."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ndone = 1\n"
    )
    code = (
        "import sys, time\nfrom tcsweep import sweep\nfrom tcsweep.mistakes import Interrupted\n"
        "try:\n    with sweep.signals_raise():\n        import slow_module\n        time.sleep(5)\n"
        "except Interrupted:\n    print('interrupted after', sys.modules['slow_module'].done)\n"
    )
    path = os.pathsep.join([str(Path(sweep.__file__).parents[1]), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "interrupted after 1\n"


class HungReader:
    """A board's sensors whose first read never returns."""

    source, period_s = "hung", 0.1

    def __init__(self) -> None:
        self.release, self.asked = threading.Event(), 0

    def sample(self) -> dict[str, Any]:
        self.asked += 1
        self.release.wait(30)
        return {}

    def limits(self) -> Limits:
        return Limits()

    def processes(self) -> Users:
        return Users()

    def used_memory_mib(self) -> float | None:
        return None


def test_sensors_that_hang_cost_a_second_of_the_whole_sweep_and_are_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = HungReader()
    monkeypatch.setattr(sweep, "open_reader", lambda *about: reader)
    monkeypatch.setattr(
        FakeServer,
        "answer",
        staticmethod(lambda r: dataclasses.replace(rate_of(r, 100.0), timed_from=1.0, timed_until=1.5)),
    )
    began = time.monotonic()
    (outcome,) = run(tmp_path, *jobs("fp32")).outcomes
    reader.release.set()
    assert time.monotonic() - began < 3
    assert reader.asked == 2  # who is there before the sweep, and the first round
    states = [one.device_state for one in outcome.rounds]
    assert [state and state.missing for state in states] == [
        "the GPU stopped telling anything about itself",
        "its sensors stopped answering",
        "its sensors stopped answering",
    ]
