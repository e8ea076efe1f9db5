from __future__ import annotations

import dataclasses
import json
import math

import pytest

from tcsweep.job import Environment, Failure, Job, Measure, Result, Skipped, from_json, outcome_from_json, to_json

from .test_stats import one_round


def test_every_field_of_a_job_changes_its_id() -> None:
    job = Job()
    other = {str: "x", int: 99, float: 9.5}
    ids = {job.id}
    for f in dataclasses.fields(Job):
        value = getattr(job, f.name)
        changed = Measure(budget_s=1) if f.name == "measure" else other.get(type(value), "y")
        ids.add(dataclasses.replace(job, **{f.name: changed}).id)
    assert len(ids) == len(dataclasses.fields(Job)) + 1


def test_an_id_is_the_same_in_every_process() -> None:
    assert Job().id == Job().id
    assert len(Job().id) == 12
    assert int(Job().id, 16) >= 0


def test_a_jobs_folder_is_readable_and_has_no_separator() -> None:
    job = Job(model="vit_b_16", precision="o1", batch=8, layout="nhwc", device="cuda:1", repeat=1)
    assert job.folder == f"vit_b_16-o1-b8-nhwc-eager-cuda1-r2-{job.id}"


def test_jobs_that_differ_in_precision_only_share_a_cell() -> None:
    assert Job(precision="o1", amp_backend="torch", repeat=2).cell == Job(precision="fp32").cell == Job()
    assert Job(batch=8).cell != Job(batch=1).cell


def test_the_reference_is_fp32_nchw_eager() -> None:
    assert Job(precision="fp16", layout="nhwc", engine="cudagraph").reference == Job()


@pytest.mark.parametrize(
    "outcome",
    [
        Result(Job(), "asked", 0, Environment(cpu_features=("avx2",)), (one_round(), one_round(2)), 1.0, 2.0, "budget"),
        Failure(
            Job(weights="a"), "baseline", 1, Environment(), "build", "error", "boom", 1.0, 2.0, (one_round(),), "w.log"
        ),
        Skipped(Job(measure=Measure(iterations=30)), "reference", 2, Environment(notes=("a", "b")), "no", 1.0, 2.0),
    ],
)
def test_an_outcome_survives_its_json_form(outcome: Result | Failure | Skipped) -> None:
    assert outcome_from_json(json.loads(json.dumps(to_json(outcome)))) == outcome


def test_numbers_that_are_not_finite_become_null() -> None:
    assert to_json({"a": (math.nan, math.inf, 1.0)}) == {"a": [None, None, 1.0]}


def test_unknown_keys_of_newer_files_are_ignored() -> None:
    assert from_json(Job, {**to_json(Job()), "colour": "red"}) == Job()


def test_a_status_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="status 'fine' is not one of ok, failed, skipped"):
        outcome_from_json({"status": "fine"})
