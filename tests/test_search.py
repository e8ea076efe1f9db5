"""Optuna's sweeper over our launcher, for real on the CPU."""

from __future__ import annotations

import csv
import importlib.util
import re
import signal
import time
from pathlib import Path

import pytest

from tcsweep import app, search, session
from tcsweep.config import Loaded, Tracking
from tcsweep.job import Job
from tcsweep.mistakes import Interrupted
from tcsweep.objective import named

from .test_main import FAST, SMALL, Here, here, start, tcsweep

__all__ = ["here"]

OPTUNA = importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
needs_optuna = pytest.mark.skipif(not OPTUNA, reason="hydra-optuna-sweeper is not installed")
SIX = "batch=1,4,16,32,64,128"
FACTS = ["tracking=none", *SMALL, *FAST]


def rates(folder: Path) -> dict[int, float]:
    found = {}
    for path in folder.rglob("summary.csv"):
        with open(path, newline="") as file:
            found |= {int(r["batch"]): float(r["throughput_img_s"]) for r in csv.DictReader(file)}
    return found


@needs_optuna
def test_a_search_ends_within_5_percent_of_the_best_of_a_grid(tmp_path: Path) -> None:
    """Others on the machine can only slow a batch down: of each, the best of all sweeps so far counts."""
    best: dict[int, float] = {}
    shares = []
    for number in range(4):
        searched, grid = tmp_path / f"search{number}", tmp_path / f"grid{number}"
        words = [SIX, *SMALL, "tracking=none", "measure.timed_s_min=0.2", "measure.timed_s_max=0.4"]
        for folder, more in ((searched, ["+experiment=fastest_batch", "latency_ms_p50_max=1000"]), (grid, ["-m"])):
            folder.mkdir()
            done = tcsweep(folder, *more, *words)
            assert done.returncode == 0, done.stderr
            measured = rates(folder)
            best = {batch: max(rate, best.get(batch, 0.0)) for batch, rate in measured.items()}
            if folder == searched:
                found = re.search(r"^Best: batch.size=(\d+): throughput_img_s ", done.stdout, re.MULTILINE)
                assert found, done.stdout
                assert measured[int(found[1])] == max(measured.values())
                assert len(measured) == len(list(searched.rglob("result.json"))) == 6  # none of them twice
        shares.append(best[int(found[1])] / max(best.values()))
        if shares[-1] >= 0.95:
            return
    raise AssertionError(f"the batch of the search has {shares} of the best of the grid")


@needs_optuna
def test_no_point_within_the_bound_is_said(tmp_path: Path, here: Here) -> None:
    done = here("+experiment=fastest_batch", "batch=2", *FACTS, "latency_ms_p50_max=0.001")
    assert (done.returncode, done.stdout.splitlines()[-2]) == (
        0, "Best: none; no point has a throughput_img_s within the bound",
    )  # fmt: skip


@needs_optuna
def test_each_trial_is_a_sweep_that_can_be_repeated_alone_and_what_cannot_be_done_counts_as_the_worst(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's own n_jobs is 2: two trials a launch."""
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("name: resnet18\nimage_size: 32\n")
    rest = ["--config-dir", "own", "model=mine", *[w for w in FACTS if not w.startswith("model")]]
    optuna = ["-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.direction=maximize"]
    done = here(*optuna, "precision=bf16,fp32,tf32", "batch=3", *rest)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resnet18-tf32-b3-nchw-eager-cpu: nothing can be measured here: tf32 on cpu: ") == 1
    assert re.search(r"^Best: precision=(fp32|bf16): throughput_img_s ", done.stdout, re.MULTILINE)
    trials = [p.parent for p in sorted(tmp_path.glob("outputs/*/*/*/sweep.json"))]
    assert len({t.parent for t in trials}) == 1
    assert {t.name for t in trials} < {"0", "1", "2"}
    (result,) = trials[1].glob("*/result.json")
    assert result.parent.name.split("-")[1] in ("bf16", "fp32")
    result.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(here, "_cwd", tmp_path / "elsewhere")
    again = here(f"resume={trials[1]}")
    assert again.returncode == 0, again.stderr
    assert [p.name for p in trials[1].glob("*/result.json")] == ["result.json"]  # no baseline came to it
    assert result.exists()
    assert not list((tmp_path / "elsewhere").iterdir())


@needs_optuna
def test_a_search_in_which_nothing_can_be_measured_is_one_line(tmp_path: Path, here: Here) -> None:
    words = ["-m", "hydra/sweeper=optuna", "objective=latency_ms_p50", "hydra.sweeper.n_trials=3", *FACTS]
    done = here(*words, "precision=tf32", "batch=1,2")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tcsweep: nothing can be measured here: tf32 on cpu: tf32 needs an NVIDIA GPU: a CPU has no TF32"
    ]
    assert not list(tmp_path.glob("outputs/*/*/*/"))


@needs_optuna
def test_a_typed_value_ends_a_recipes_search_and_sigterm_ends_any_with_143(tmp_path: Path) -> None:
    words = ["batch=3", "measure.timed_s_min=60", "measure.timed_s_max=60", "measure.budget_s=90"]
    running = start(tmp_path, "+experiment=fastest_batch", "tracking=none", *words)
    for _ in range(600):
        if list(tmp_path.glob("outputs/*/*/0/*/worker.log")):
            break
        time.sleep(0.1)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 143, said
    assert said.splitlines()[-1] == "tcsweep: terminated"
    (trial,) = (p.parent for p in tmp_path.glob("outputs/*/*/*/sweep.json"))
    assert f"Go on:   python -m tcsweep resume={trial}\n" in said
    (measured,) = (p.parent.name for p in trial.glob("*/config.yaml"))
    assert "-b3-" in measured


@needs_optuna
def test_a_failed_trial_does_not_end_the_search(tmp_path: Path, here: Here) -> None:
    words = [
        "+experiment=fastest_batch",
        "batch=1,1000000000",
        "fit=try",
        *FACTS,
        "hydra.sweeper.n_trials=4",
        "latency_ms_p50_max=1000",
    ]
    done = here(*words)
    assert done.returncode == 1  # something failed, and it is said
    assert "Best: batch.size=1: throughput_img_s" in done.stdout
    assert "out of host memory" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([], "set hydra.sweeper.direction=maximize", marks=needs_optuna),
        pytest.param(["direction=[maximize,minimize]"], "maximize,minimize: a search has one", marks=needs_optuna),
        pytest.param(["direction=maximise"], "maximise: a search has one objective and one", marks=needs_optuna),
        pytest.param(["direction=maximize", "n_trials=0"], "n_trials=0: must be 1 or more", marks=needs_optuna),
        pytest.param(["direction=maximize", "n_jobs=0"], "n_jobs=0: must be 1 or more", marks=needs_optuna),
        pytest.param(
            ["direction=maximize", "sampler=grid", "seed=interval(1,9)"],
            "seed=interval(1,9): a grid takes a list or a range; for an interval set hydra/sweeper/sampler=tpe",
            marks=needs_optuna,
        ),
        (["max_batch_size=1"], "max_batch_size splits a sweep, whose rounds go through all jobs: leave it out"),
    ],
)
def test_a_sweeper_that_would_mislead_is_one_line_and_measures_nothing(
    tmp_path: Path, here: Here, words: list[str], said: str
) -> None:
    sweeper = [] if "max_batch_size=1" in words else ["hydra/sweeper=optuna"]
    prefixes = {"sampler": "hydra/sweeper/", "seed": ""}
    settings = [prefixes.get(word.partition("=")[0], "hydra.sweeper.") + word for word in words]
    done = here("-m", *sweeper, *settings, "batch=1,2", *FACTS)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("chosen", "value", "bounded", "said"),
    [
        ({"batch.size": 8, "precision": "o1"}, 1000.0, True, "Best: batch.size=8 precision=o1: throughput_img_s 1000"),
        ({}, 1000.0, False, "Best: the only point: throughput_img_s 1000"),
        ({"batch.size": 8}, 0.0, True, "Best: none; no point has a throughput_img_s within the bound"),
        ({"batch.size": 8}, 0.0, False, "Best: none; no point has a throughput_img_s"),
    ],
)
def test_the_last_line_is_true(chosen: dict[str, object], value: float, bounded: bool, said: str) -> None:
    assert search.best_line(chosen, value, named("throughput_img_s"), bounded) == said


def test_a_trials_words_are_its_own_and_hydras_settings_but_no_word_of_the_search() -> None:
    typed = ["-m", "--config-dir", "own", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=x"]
    typed += ["hydra.job.chdir=true", "batch=1,2", "seed=1", "hydra.mode=MULTIRUN", "tracking.uri=http://a:b@c"]
    assert search.trial_words(typed, ["batch.size=2", "seed=1"]) == [
        "--config-dir", "own", "hydra.job.chdir=true", "tracking.uri=http://a:b@c",
        "batch.size=2", "seed=1", "hydra.mode=RUN",
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "raised"), [(130, KeyboardInterrupt), (143, Interrupted)])
def test_a_signal_that_ended_a_trial_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, raised: type[BaseException]
) -> None:
    def measure(*_: object) -> list[float]:
        session.EXIT_STATUS.append(status)
        return [0.0]

    session.begin([])
    monkeypatch.setattr(app, "measure", measure)
    one = Loaded(Job(), Tracking("none", None, ""), None, "")
    with pytest.raises(raised):
        search.Search(tmp_path, one, {"direction": "maximize"}).value(one, [], 0)


@needs_optuna
def test_precision_and_engine_are_searched_as_they_are_swept(tmp_path: Path, here: Here) -> None:
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=6"]
    done = here(*words, "objective=speedup", "precision=fp32,bf16", "batch=2", *FACTS)
    assert done.returncode == 0, done.stderr
    best = re.search(r"^Best: precision=(fp32|bf16): speedup ", done.stdout, re.MULTILINE)
    assert best or re.search("others used|times changed", done.stdout)  # a disturbed pair has no speed-up


def test_without_the_sweeper_it_is_said_how_to_get_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = here("-m", "hydra/sweeper=optuna", "batch=1,2", *FACTS)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install hydra-optuna-sweeper" in done.stderr


def test_repeats_are_rows_of_their_own(tmp_path: Path, here: Here) -> None:
    done = here("repeat=3", "batch=2", *FACTS)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("outputs/*/*/summary.csv")
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["precision"], r["batch"], r["status"]) for r in read] == [("fp32", "2", "ok")] * 3
    assert len({r["folder"] for r in read}) == 3


@pytest.mark.parametrize("words", [["repeat=0"], ["objective=energy_j_per_img"], ["latency_ms_p50_max=0"]])
def test_a_wrong_value_is_one_line(here: Here, words: list[str]) -> None:
    done = here(*words, *FACTS)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
