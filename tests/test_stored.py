from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tcsweep import store, stored
from tcsweep.job import Job, Measure, Result
from tcsweep.mistakes import Mistake
from tcsweep.plan import Planned
from tcsweep.speedup import rows

from . import sweeps
from .evident import clean
from .test_main import FAST, SMALL, Here, disturbed, here  # noqa: F401 - a fixture
from .test_speedup import UNSEEN, WHY, suspicious

BASE = clean()
LABEL = "resnet50-fp32-b8-nchw-eager-cuda0"
FIRST = (
    "measure it first: python -m tcsweep model=resnet50 precision=fp32 batch=8 layout=nchw engine=eager device=cuda:0"
)


def plan(job: Job = BASE.job, role: str = "baseline") -> list[Planned]:
    asked = Planned(dataclasses.replace(job, precision="fp16"), "asked", 0, sweeps.ENVIRONMENT)
    return [asked, Planned(job, role, 1, sweeps.ENVIRONMENT)]  # type: ignore[arg-type]


def save(outputs: Path, result: Result, name: str = "2025-11-24/16-00-00") -> Path:
    return sweeps.write_sweep(outputs, [result], name=name)


def refusal(outputs: Path, planned: list[Planned]) -> str:
    with pytest.raises(Mistake) as raised:
        stored.taken(planned, outputs)
    return str(raised.value)


def test_a_saved_baseline_of_the_cell_stands_in_for_measuring_it(tmp_path: Path) -> None:
    sweep_dir = save(tmp_path, BASE)
    asked, base = stored.taken(plan(), tmp_path)
    assert asked == plan()[0]
    assert (base.role, base.index) == ("stored", 1)
    assert base.stored == dataclasses.replace(BASE, role="stored", index=1, measured_in=str(sweep_dir))


def test_the_newest_that_fits_is_taken_and_keeps_the_name_of_the_sweep_that_measured_it(tmp_path: Path) -> None:
    save(tmp_path, BASE, "a")
    later = dataclasses.replace(BASE, started_at=BASE.started_at + 60)
    save(tmp_path, later, "b/3")  # a trial of a search lies deeper
    other_driver = dataclasses.replace(sweeps.ENVIRONMENT, driver="580.1")
    save(tmp_path, dataclasses.replace(BASE, started_at=BASE.started_at + 120, environment=other_driver), "c")
    (_, base) = stored.taken(plan(), tmp_path)
    assert base.stored is not None
    assert (base.stored.started_at, base.stored.measured_in) == (later.started_at, str(tmp_path / "b/3"))
    copy = save(tmp_path / "again", dataclasses.replace(base.stored, started_at=later.started_at + 1), "d")
    (_, base) = stored.taken(plan(), copy.parent)
    assert base.stored is not None
    assert base.stored.measured_in == str(tmp_path / "b/3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": dataclasses.replace(sweeps.ENVIRONMENT, driver="580.1")}, "driver was 580.1, is 570.86.15"),
        (
            {"environment": dataclasses.replace(sweeps.ENVIRONMENT, gpu_uuid="GPU-77", torch="2.1.0")},
            "gpu_uuid was GPU-77, is GPU-3f5e; torch was 2.1.0, is 2.9.1",
        ),
        ({"job": dataclasses.replace(BASE.job, measure=Measure(name="quick"))}, "measure was quick, is default"),
        (
            {"job": dataclasses.replace(BASE.job, measure=Measure(rounds=3, timed_s_max=9.0))},
            "measure.timed_s_max was 9.0, is 1.5",
        ),
        ({"job": dataclasses.replace(BASE.job, image_size=64, seed=1)}, "image_size was 64, is 224; seed was 1, is 0"),
    ],
)
def test_a_baseline_of_another_environment_or_job_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    sweep_dir = save(tmp_path, dataclasses.replace(BASE, **change))  # type: ignore[arg-type]
    assert refusal(tmp_path, plan()) == f"baseline=store: {LABEL}: in {sweep_dir} {said}: not compared; {FIRST}"


def test_a_suspect_baseline_and_one_of_another_way_of_measuring_are_refused(tmp_path: Path) -> None:
    sweep_dir = save(tmp_path, suspicious())
    found = json.loads((sweep_dir / store.SWEEP).read_text())
    store.write_json(sweep_dir / store.SWEEP, {**found, "measurement_version": 1})
    said = refusal(tmp_path, plan())
    assert f"the way of measuring was version 1, is 2; it is suspect: {WHY}" in said


def test_without_a_saved_one_the_command_that_measures_it_is_said(tmp_path: Path) -> None:
    save(tmp_path, clean("fp16"))
    (broken := tmp_path / "x" / f"{LABEL}-0123456789ab" / store.RESULT).parent.mkdir(parents=True)
    broken.write_text("{")
    assert refusal(tmp_path, plan()) == f"baseline=store: {LABEL}: no saved result in {tmp_path}: {FIRST}"


def test_a_reference_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert stored.taken(plan(role="reference"), tmp_path) == plan()[:1]


def test_rounds_of_two_sweeps_are_no_pairs() -> None:
    faster = clean("fp16", 3000.0, kernels=UNSEEN)
    base = dataclasses.replace(BASE, role="stored")
    (_, paired), (_, unpaired) = rows([BASE, faster]), rows([base, faster])
    assert paired.speedup.value == pytest.approx(unpaired.speedup.value) == pytest.approx(3.0)
    assert paired.speedup.ci95 is not None
    assert unpaired.speedup.ci95 is not None
    assert unpaired.speedup.ci95.half_width > 2 * paired.speedup.ci95.half_width  # both drift alike, round by round


def test_a_sweep_takes_its_baseline_from_an_earlier_one(tmp_path: Path, here: Here) -> None:  # noqa: F811
    first = here("precision=fp32", "batch=1", *SMALL, *FAST)
    assert first.returncode == 0, first.stderr
    (path,) = tmp_path.glob("outputs/*/*/*-fp32-*/result.json")
    calm = store.load_outcome(path)
    assert isinstance(calm, Result)
    rounds = tuple(dataclasses.replace(r, host_state=None) for r in calm.rounds)  # whoever else was on this machine
    store.save_outcome(path.parents[1], dataclasses.replace(calm, rounds=rounds))
    here("precision=bf16", "batch=1", "hydra.run.dir=second", "baseline=store", *SMALL, *FAST)
    import csv

    with open(tmp_path / "second" / "summary.csv", newline="") as file:
        asked, base = csv.DictReader(file)
    assert (asked["role"], base["role"], base["status"]) == ("asked", "stored", "ok")
    assert disturbed([asked]) or float(asked["speedup"]) > 0
    assert base["throughput_img_s"]
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["tcsweep"])
    assert sorted(runs["tags.tcsweep.kind"]) == [
        "result",
        "result",
        "sweep",
        "sweep",
    ]  # the stored one is not sent again
    again = here("resume=second")
    assert again.returncode == 0, again.stderr
    refused = here("precision=bf16", "batch=2", "baseline=store", *SMALL, *FAST)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "resnet18-fp32-b2-nchw-eager-cpu: no saved result in outputs" in refused.stderr
