"""Going on with a sweep: after any kill, on the same machine only, every round once."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcsweep import job, resume, store, sweep
from tcsweep.job import Environment, Failure, Origin, Result
from tcsweep.lock import folder_lock
from tcsweep.mistakes import Mistake
from tcsweep.report.progress import PlainProgress
from tcsweep.worker import Broken

from .test_main import FAST, SMALL, environment, results, sweep_folder
from .test_sweep import FakeServer, jobs, rate_of, server

__all__ = ["server"]  # the fixture: sweeps here measure nothing unless they are started as a process

KILLS = int(os.environ.get("TCSWEEP_TEST_KILLS", "2"))


def begin(folder: Path, *words: str) -> Path:
    return sweep.claim(folder, Origin(words))


def run(folder: Path, *precisions: str) -> sweep.Finished:
    return sweep.run(jobs(*precisions), folder, PlainProgress())


def interrupt_after(rounds: int) -> None:
    def answer(request: object) -> object:
        if len(FakeServer.requests) > rounds:
            raise KeyboardInterrupt
        return rate_of(request, 100.0)  # type: ignore[arg-type]

    FakeServer.answer = staticmethod(answer)  # type: ignore[assignment]


def go_on() -> None:
    FakeServer.requests.clear()
    FakeServer.answer = staticmethod(lambda request: rate_of(request, 100.0))


@pytest.mark.parametrize("cut", range(1, 9))
def test_after_an_interruption_anywhere_only_the_missing_rounds_are_measured(tmp_path: Path, cut: int) -> None:
    folder = begin(tmp_path / "sweep")
    interrupt_after(cut)
    first = run(folder, "fp32", "fp16", "bf16")
    assert first.interrupted
    began = store.load_sweep(folder)[0]
    go_on()
    finished = run(folder, "fp32", "fp16", "bf16")
    assert len(FakeServer.requests) == 9 - cut
    assert [[r.number for r in o.rounds] for o in finished.outcomes] == [[1, 2, 3]] * 3
    ended = store.load_sweep(folder)[0]
    assert (ended.id, ended.order_seed, ended.started_at) == (began.id, began.order_seed, began.started_at)
    assert (ended.status, len(ended.resumed_at)) == ("finished", 1)


def test_the_rounds_come_in_the_order_they_would_have_had(tmp_path: Path) -> None:
    asked = ("fp32", "fp16", "bf16", "tf32")[:3]
    sweep.run(jobs(*asked), begin(tmp_path / "whole"), PlainProgress(), order_seed=7)
    whole = [(r.job.precision, r.number) for r in FakeServer.requests]
    FakeServer.requests.clear()
    interrupt_after(4)
    folder = begin(tmp_path / "cut")
    sweep.run(jobs(*asked), folder, PlainProgress(), order_seed=7)
    go_on()
    sweep.run(jobs(*asked), folder, PlainProgress())
    assert [(r.job.precision, r.number) for r in FakeServer.requests] == whole[4:]


def test_a_finished_sweep_has_nothing_left_to_measure_and_keeps_its_times(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep")
    before = run(folder, "fp32", "bf16")
    go_on()
    after = run(folder, "fp32", "bf16")
    assert FakeServer.requests == []
    assert [(o.started_at, o.ended_at) for o in after.outcomes] == [(o.started_at, o.ended_at) for o in before.outcomes]


def test_a_failed_job_is_tried_again_and_keeps_its_earlier_rounds(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep")
    FakeServer.answer = staticmethod(
        lambda r: Broken("build", "error", "torn") if (r.job.precision, r.number) == ("bf16", 2) else rate_of(r, 100.0)
    )
    failed = run(folder, "fp32", "bf16").outcomes[1]
    assert isinstance(failed, Failure)
    go_on()
    (_, mended) = run(folder, "fp32", "bf16").outcomes
    assert isinstance(mended, Result)
    assert [r.number for r in mended.rounds] == [1, 2, 3]
    assert [(r.job.precision, r.number) for r in FakeServer.requests] == [("bf16", 2), ("bf16", 3)]


def changed(name: str, value: object) -> type[Environment]:
    @dataclasses.dataclass(frozen=True)
    class Other(Environment):
        def __post_init__(self) -> None:
            object.__setattr__(self, name, value)

    return Other


@pytest.mark.parametrize("name", ["gpu_uuid", "driver", "cuda", "cudnn", "torch", "torchvision", "power_mode"])
def test_another_machine_or_software_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = begin(tmp_path / "sweep")
    import tests.test_sweep as fakes

    monkeypatch.setattr(fakes, "Environment", changed(name, "old"))
    interrupt_after(3)
    run(folder, "fp32", "bf16")
    go_on()
    monkeypatch.setattr(fakes, "Environment", changed(name, "new"))
    with pytest.raises(Mistake, match=f"{name} was old, is new"):
        run(folder, "fp32", "bf16")
    assert FakeServer.requests == []
    assert store.load_sweep(folder)[0].status == "interrupted"  # as it was


def test_another_way_of_measuring_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begin(tmp_path / "sweep")
    interrupt_after(3)
    run(folder, "fp32")
    monkeypatch.setattr(resume, "MEASUREMENT_VERSION", job.MEASUREMENT_VERSION + 1)
    go_on()
    with pytest.raises(Mistake, match="way of measuring was version"):
        run(folder, "fp32")


def test_other_jobs_are_refused(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep")
    interrupt_after(3)
    run(folder, "fp32", "bf16")
    go_on()
    with pytest.raises(Mistake, match="the same words now mean other jobs"):
        sweep.run(jobs("fp32", "bf16", batch=4), folder, PlainProgress())


def test_where_nothing_was_measured_any_machine_will_do_and_its_facts_are_saved(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep")
    interrupt_after(0)
    run(folder, "fp32")
    began = store.load_sweep(folder)[0]
    elsewhere = dataclasses.replace(began.environment, torch="1.0")
    store.save_sweep(folder, dataclasses.replace(began, environment=elsewhere, measurement_version=0))
    go_on()
    assert run(folder, "fp32").exit_status == 0
    ended = store.load_sweep(folder)[0]
    assert (ended.id, ended.environment, ended.measurement_version) == (
        began.id, began.environment, job.MEASUREMENT_VERSION,
    )  # fmt: skip


def test_resume_alone_takes_the_words_of_the_sweep(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep", "-m", "precision=o1,fp32", "batch=1")
    found, others = resume.split([f"resume={folder}"])
    assert found == folder
    assert resume.words(folder, others) == ["-m", "precision=o1,fp32", "batch=1"]
    assert resume.words(folder, ["batch=1", "-m", "precision=o1,fp32"]) == ["-m", "precision=o1,fp32", "batch=1"]
    with pytest.raises(Mistake, match="was started with -m precision=o1,fp32 batch=1"):
        resume.words(folder, ["-m", "precision=o1,fp32", "batch=2"])


SECRET, SHOWN = "tracking.uri=http://bob:S3cret@127.0.0.1:9", "tracking.uri=http://bob@127.0.0.1:9"


def test_a_password_is_not_saved_and_its_word_may_be_typed_again_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    typed = ["batch=1", SECRET]
    folder = sweep.claim(tmp_path / "sweep", resume.origin_of(typed))
    sweep.run(jobs("fp32"), folder, PlainProgress(), origin=resume.origin_of(typed))
    assert "S3cret" not in (folder / store.SWEEP).read_text()
    saved = resume.origin(folder)
    assert saved == Origin(("batch=1",), (SHOWN,), os.getcwd())
    for others in (typed, [SECRET], ["tracking.uri=http://bob:changed@127.0.0.1:9", "batch=1"]):
        words = resume.words(folder, others)
        assert words == ["batch=1", *[w for w in others if w.startswith("tracking")]]
        assert resume.forgotten(saved, words) is None
    assert resume.words(folder, []) == ["batch=1"]
    assert str(resume.forgotten(saved, ["batch=1"])).startswith(f"going on without {SHOWN}: its password is not saved")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert resume.forgotten(saved, ["batch=1"]) is None
    with pytest.raises(Mistake, match=f"was started with batch=1 {re.escape(SHOWN)}: leave") as caught:
        resume.words(folder, ["tracking.uri=http://bob:S3cret@another:9"])
    assert "S3cret" not in str(caught.value)


def test_who_goes_on_does_so_where_the_sweep_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume.go_back(Origin(cwd="/")) is None
    assert Path.cwd() == Path("/")
    assert resume.go_back(Origin()) is None
    gone = resume.go_back(Origin(cwd=str(tmp_path / "gone")))
    assert gone == (
        f"the sweep was started in {tmp_path}/gone (No such file or directory): relative paths are taken from here"
    )
    assert Path.cwd() == Path("/")


def test_a_folder_with_too_long_a_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"cannot write in /x+ \(File name too long\): set hydra.sweep.dir"):
        resume.refuse_taken(Path("/" + 300 * "x"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resume=/" + 300 * "x"], "has no sweep.json"),
        (["resume="], "takes the folder of one sweep"),
        (["resume=a", "resume=b"], "takes the folder of one sweep"),
        (["resume=nowhere"], "has no sweep.json"),
    ],
)
def test_a_folder_that_holds_no_sweep_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        resume.split(words)


def test_one_cut_off_before_its_words_were_written_needs_them_typed(tmp_path: Path) -> None:
    (tmp_path / store.SWEEP).touch()
    with pytest.raises(Mistake, match="type it beside"):
        resume.words(tmp_path, [])
    assert resume.words(tmp_path, ["batch=1"]) == ["batch=1"]


def test_what_a_kill_left_beside_the_results_is_removed(tmp_path: Path) -> None:
    folder = begin(tmp_path / "sweep")
    interrupt_after(2)
    run(folder, "fp32")
    left = [folder / ".sweep.json.abc", next(p for p in folder.iterdir() if p.is_dir()) / ".result.json.def"]
    for path in left:
        path.write_text("{")
    go_on()
    run(folder, "fp32")
    assert not any(p.exists() for p in left)


def test_two_cannot_measure_into_one_folder(tmp_path: Path) -> None:
    refused = pytest.raises(Mistake, match=rf"process {os.getpid()} .* is measuring into it")
    with folder_lock(tmp_path), refused, folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


# --- the whole program ---


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tcsweep", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def descendants(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if Path(os.readlink(process / "cwd")) == folder:
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


@pytest.mark.timeout(900)
def test_a_sweep_killed_at_random_moments_and_resumed_each_time_has_every_round_once(tmp_path: Path) -> None:
    """Full size: TCSWEEP_TEST_KILLS=20."""
    full = KILLS >= 10
    words = [
        "-m",
        "precision=o0,o1,o2,o3,fp32" if full else "precision=o1,fp32",
        "batch=1,2,3" if full else "batch=1,2",
    ]
    rounds = 6 if full else 3
    words += [*SMALL, *FAST, "measure.budget_s=300", f"measure.rounds={rounds}", f"measure.rounds_max={rounds}"]
    moments = random.Random(5)
    running, killed = start(tmp_path, *words), 0
    for _ in range(KILLS):
        until = time.monotonic() + moments.uniform(0, 8)
        while time.monotonic() < until or not list(tmp_path.glob("outputs/*/*/sweep.json")):
            time.sleep(0.02)
        killed += running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=30)
        running = start(tmp_path, f"resume={sweep_folder(tmp_path)}")
    said, _ = running.communicate(timeout=280)
    assert running.returncode == 0, said
    saved = results(tmp_path)
    expected = 15 if full else 4
    assert killed >= 0.9 * KILLS - 1, f"only {killed} kills met a sweep that ran"
    numbers = [[r["number"] for r in one["rounds"]] for one in saved]  # type: ignore[attr-defined]
    assert numbers == [list(range(1, rounds + 1))] * expected
    assert len({one["id"] for one in saved}) == expected
    assert not list(tmp_path.glob("outputs/**/.result.json.*"))

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["tcsweep"])
    assert sorted(runs["tags.tcsweep.kind"]) == ["result"] * expected + ["sweep"]
    assert runs["tags.tcsweep.result_id"].is_unique
    deadline = time.monotonic() + 10
    while descendants(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert descendants(tmp_path) == []
    with folder_lock(sweep_folder(tmp_path)):  # nobody holds it
        pass


def test_a_folder_that_holds_a_sweep_is_refused_with_the_line_that_goes_on(tmp_path: Path) -> None:
    words = ["batch=1", *SMALL, *FAST, "tracking=none", "hydra.run.dir=mine"]
    first = start(tmp_path, *words)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 0, said
    again = start(tmp_path, *words)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 2
    assert said == (
        f"tcsweep: {tmp_path}/mine holds a sweep already: choose another folder, or go on with it: "
        f"python -m tcsweep resume={tmp_path}/mine\n"
    )
