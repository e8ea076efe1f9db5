from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tcsweep.job import Outcome, Result, to_json
from tcsweep.stats import figures
from tcsweep.store import digest, load_outcome, load_sweep, save_outcome, save_sweep, write_json

from .sweeps import a_failure, a_job, a_result, a_round, a_skip, outcomes, write_sweep


def test_json_is_written_whole_in_utf_8_with_a_last_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "folder" / "a.json", {"é": [1, 2.5, None]})
    assert (tmp_path / "new/folder/a.json").read_bytes() == '{\n "é": [\n  1,\n  2.5,\n  null\n ]\n}\n'.encode()


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for value in (1, 2):
        write_json(tmp_path / "a.json", value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": "2\n"}


@pytest.mark.parametrize(
    ("data", "error"), [({"a": object()}, TypeError), ({"a": math.nan}, ValueError), ("\ud800", UnicodeEncodeError)]
)
def test_what_has_no_json_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, data: Any, error: type[Exception]
) -> None:
    write_json(tmp_path / "a.json", "old")
    with pytest.raises(error):
        write_json(tmp_path / "a.json", data)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": '"old"\n'}


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    write_json(tmp_path / "a.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            write_json(tmp_path / "a.json", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.json": '"old"\n'}


def test_the_new_file_is_complete_on_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle)))

    def watched(source: str, target: Path) -> None:
        steps.append(f"replace by {Path(source).read_text()!r}")
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_json(tmp_path / "a.json", 1)
    assert steps == ["fsync", "replace by '1\\n'"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_files_mode_follows_the_umask_which_stays(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", 1)
    finally:
        after = os.umask(before)
    assert (stat.S_IMODE((tmp_path / "a.json").stat().st_mode), after) == (mode, mask)


def test_a_sweep_comes_back_as_it_was_written_in_row_order(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    sweep, found = load_sweep(folder)
    assert found == outcomes()
    assert sweep.folders == tuple(o.job.folder for o in outcomes())
    save_sweep(tmp_path / "copy", sweep)
    assert (tmp_path / "copy/sweep.json").read_bytes() == (folder / "sweep.json").read_bytes()


def test_jobs_without_a_result_yet_are_left_out(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, status="running", planned=[a_job("bf16")])
    sweep, found = load_sweep(folder)
    assert (len(sweep.folders), found, sweep.status) == (6, outcomes(), "running")


def test_the_order_is_the_sweeps_and_not_that_of_the_writing(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path)
    sweep, found = load_sweep(folder)
    save_sweep(folder, dataclasses.replace(sweep, folders=sweep.folders[::-1]))
    assert load_sweep(folder)[1] == found[::-1]


@pytest.mark.parametrize(
    "outcome",
    [
        a_result(a_job("o1")),
        dataclasses.replace(a_failure(a_job("o3")), rounds=(a_round(),), log="worker.log"),
        a_skip(a_job("fp8")),
    ],
    ids=lambda o: o.status,
)
def test_an_outcome_comes_back_from_the_folder_of_its_job(tmp_path: Path, outcome: Outcome) -> None:
    path = save_outcome(tmp_path, outcome)
    assert path == tmp_path / outcome.job.folder / "result.json"
    assert load_outcome(path) == outcome


def test_result_json_has_the_facts_and_beside_them_schema_id_and_figures(tmp_path: Path) -> None:
    result = a_result(a_job("o1"))
    data = json.loads(save_outcome(tmp_path, result).read_text())
    assert data.pop("digest") == digest(data)
    assert data == {
        "schema": 1,
        **to_json(result),
        "id": result.job.id,
        "figures": to_json(figures(result.job, result.rounds)),
    }
    assert data["figures"]["throughput_img_s"] == pytest.approx(1000.0, rel=1e-3)


@pytest.mark.parametrize("outcome", [a_failure(a_job("o3")), a_skip(a_job("fp8"))], ids=lambda o: o.status)
def test_without_a_result_there_are_no_figures(tmp_path: Path, outcome: Outcome) -> None:
    data = json.loads(save_outcome(tmp_path, outcome).read_text())
    assert data.pop("digest") == digest(data)
    assert data == {"schema": 1, **to_json(outcome), "id": outcome.job.id}


def test_figures_are_derived_and_never_read_back(tmp_path: Path) -> None:
    result = a_result(a_job())
    path = save_outcome(tmp_path, result)
    data = json.loads(path.read_text())
    write_json(path, {**data, "figures": {"throughput_img_s": 1e9}, "from_a_newer_version": 1})
    assert load_outcome(path) == result


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"status": "ok", "job"', "Expecting"),
        ('{"status": "lost"}', "status 'lost' is not one of ok, failed, skipped"),
        ("{}", "status None is not one of ok, failed, skipped"),
    ],
    ids=["torn", "unknown", "empty"],
)
def test_a_file_that_is_no_outcome_is_a_value_error(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=error):
        load_outcome(tmp_path / "result.json")


@pytest.mark.parametrize("text", ["[]", '{"status": "ok"}', '{"status": "skipped", "job": 3}'])
def test_json_of_another_shape_is_a_value_error_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words
        load_outcome(tmp_path / "result.json")


def test_a_folder_without_a_sweep_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sweep\.json"):
        load_sweep(tmp_path)


def test_a_number_that_is_not_finite_is_null_on_disk(tmp_path: Path) -> None:
    result = a_result(a_job(), rounds=1)
    lost = dataclasses.replace(result.rounds[0], peak_memory_mib=math.inf)
    found = load_outcome(save_outcome(tmp_path, dataclasses.replace(result, rounds=(lost,))))
    assert isinstance(found, Result)
    assert found.rounds == (dataclasses.replace(lost, peak_memory_mib=None),)
