"""What people who live in Hydra expect of a Hydra program, by the command line itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_main import FAST, SMALL, Here, environment, here, results, summary, sweep_folder, tcsweep

__all__ = ["here"]

QUICK = [*SMALL, *FAST, "tracking=none"]


def completed(typed: str) -> list[str]:
    """What the shell would offer after Tab."""
    code = "import sys; sys.argv[0] = 'tcsweep'\nfrom tcsweep.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-sc", "query=bash"],
        env=environment(COMP_LINE=typed, COMP_POINT=str(len(typed)), COMP_CWORD="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tcsweep precision=o", ["precision=o0", "precision=o1", "precision=o2", "precision=o3"]),
        ("tcsweep layout=", ["layout=nchw", "layout=nhwc"]),
        ("tcsweep +experiment=pub", ["+experiment=published"]),
    ],
)
def test_the_console_script_completes_options(typed: str, offered: list[str]) -> None:
    assert completed(typed) == offered


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own config folder."""
    for group in ("model", "experiment"):
        (tmp_path / "own" / group).mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").write_text("name: squeezenet1_1\nimage_size: 64\n")
    (tmp_path / "own" / "experiment" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      batch.size: 1,2\n"
    )
    return tmp_path / "own"


def test_a_users_own_model_and_experiment_are_options(tmp_path: Path, here: Here, own: Path) -> None:
    rest = [w for w in QUICK if not w.startswith("model")]
    done = here("--config-dir", str(own), "+experiment=ours", *rest)
    assert done.returncode == 0, done.stderr
    assert [(r["model"], r["image_size"], r["batch"]) for r in summary(tmp_path)] == [
        ("squeezenet1_1", "64", "1"), ("squeezenet1_1", "64", "2"),
    ]  # fmt: skip


def test_a_typed_value_wins_over_a_recipes_list(tmp_path: Path, here: Here, own: Path) -> None:
    done = here("--config-dir", str(own), "+experiment=ours", "batch=3", *[w for w in QUICK if w[:5] != "model"])
    assert done.returncode == 0, done.stderr
    assert [(r["model"], r["batch"]) for r in summary(tmp_path)] == [("squeezenet1_1", "3")]


def test_pairs_are_recipes_of_ones_own_swept_together(tmp_path: Path, here: Here, own: Path) -> None:
    for name, precision, batch in (("a", "bf16", 2), ("b", "fp32", 4)):
        (own / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\ndefaults:\n  - override /precision: {precision}\n  - override /batch: '{batch}'\n"
        )
    done = here("-m", "--config-dir", str(own), "+experiment=a,b", *QUICK)
    assert done.returncode == 0, done.stderr
    assert [(r["role"], r["precision"], r["batch"]) for r in summary(tmp_path)] == [
        ("asked", "bf16", "2"), ("asked", "fp32", "4"), ("baseline", "fp32", "2"),
    ]  # fmt: skip


def test_a_misspelt_own_model_finds_its_nearest_match(here: Here, own: Path) -> None:
    done = here(f"--config-dir={own}", "model=mime")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean mine?" in done.stderr


def test_a_config_folder_that_is_not_there_is_one_line(here: Here) -> None:
    done = here("--config-dir", "nowhere", "model=mine")
    assert (done.returncode, done.stderr) == (2, "tcsweep: --config-dir nowhere: no such folder\n")


def at_once(cwd: Path, *words: str) -> list[tuple[int, str]]:
    """Exit status and output of two sweeps started together, of fp32 and of o1."""
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tcsweep", "-m", f"precision={precision}", "batch=1,2", *SMALL, *FAST, *words],
            cwd=cwd,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for precision in ("fp32", "o1")
    ]
    said = [one.communicate(timeout=200)[0] for one in both]
    return [(one.returncode, text) for one, text in zip(both, said)]


def test_two_sweeps_started_in_one_second_get_a_folder_each(tmp_path: Path) -> None:
    """The default folder is named by the second."""
    assert [status for status, _ in at_once(tmp_path)] == [0, 0]
    folders = [p.parent for p in tmp_path.glob("outputs/*/*/sweep.json")]
    assert len(folders) == 2
    measured = []
    for folder in folders:
        planned = set(json.loads((folder / "sweep.json").read_text())["folders"])
        assert {p.parent.name for p in folder.glob("*/result.json")} == planned
        measured.append({name.split("-")[1] for name in planned})
    assert sorted(measured, key=len) == [{"fp32"}, {"o1", "fp32"}]

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["tcsweep"])
    assert sorted(runs["tags.tcsweep.kind"]) == ["result"] * 6 + ["sweep"] * 2


def test_of_two_sweeps_with_one_folder_typed_one_is_refused(tmp_path: Path) -> None:
    ended = at_once(tmp_path, "tracking=none", "hydra.sweep.dir=same")
    assert sorted(status for status, _ in ended) == [0, 2], ended
    assert any("holds a sweep already" in said or "is measuring into it" in said for _, said in ended)
    planned = json.loads((tmp_path / "same" / "sweep.json").read_text())["folders"]
    assert {p.parent.name for p in (tmp_path / "same").glob("*/result.json")} == set(planned)


def test_mode_and_flags_are_taken_wherever_they_stand(tmp_path: Path, here: Here) -> None:
    assert here("batch=1,2", "hydra.mode=MULTIRUN", *QUICK).returncode == 0
    assert [r["batch"] for r in summary(tmp_path)] == ["1", "2"]


def test_a_flag_between_overrides_is_a_flag(tmp_path: Path, here: Here) -> None:
    assert here("precision=fp32,bf16", "-m", "batch=1", *QUICK).returncode == 0
    assert [r["precision"] for r in summary(tmp_path)] == ["fp32", "bf16"]


@pytest.mark.parametrize("words", [["-m", "hydra.sweep.dir=out/${model.name}"], ["hydra.run.dir=out/${model.name}"]])
def test_results_go_to_the_folder_that_is_named(tmp_path: Path, here: Here, words: list[str]) -> None:
    done = here(*words, "batch=1", *QUICK)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "resnet18" / "summary.csv").is_file()
    assert f"Results: {tmp_path}/out/resnet18\n" in done.stdout


def test_a_change_of_folder_moves_neither_results_nor_store(tmp_path: Path, here: Here) -> None:
    rest = [w for w in QUICK if w != "tracking=none"]
    assert here("hydra.job.chdir=true", "batch=1", *rest).returncode == 0
    os.chdir(tmp_path)
    assert sweep_folder(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("mlflow.db")] == ["outputs/mlflow.db"]


def test_a_leaf_beside_a_swept_group_goes_to_every_member(tmp_path: Path, here: Here) -> None:
    assert here("-m", "precision=fp32,o1", "batch=1", *QUICK, "measure.rounds=1").returncode == 0
    assert [r["job"]["image_size"] for r in results(tmp_path)] == [32, 32]  # type: ignore[index]


def test_info_shows_the_defaults(tmp_path: Path) -> None:
    done = tcsweep(tmp_path, "--info", "defaults")  # a process of its own: it turns debug logging on
    assert done.returncode == 0
    assert "precision/fp32" in done.stdout
