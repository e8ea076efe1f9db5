"""Saved results that were changed afterwards, and folders that are not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcsweep import store
from tcsweep.audit import Finding, audit, main
from tcsweep.evidence.facts import Dtypes, Kernels
from tcsweep.job import MEASUREMENT_VERSION, SCHEMA_VERSION, Result, outcome_from_json, to_json
from tcsweep.mistakes import Mistake
from tcsweep.stats import figures

from .evident import clean, in_round, on_cpu, operators
from .sweeps import a_failure, a_job, a_skip, write_sweep

CHANGED = "the file was changed after it was written"
Edit = Callable[[dict[str, Any]], None]


def saved(tmp_path: Path, *made: Any) -> Path:
    """A sweep of these outcomes, by default one clean job on a GPU."""
    return write_sweep(tmp_path, made or [clean()])


def edit(folder: Path, change: Edit, *, index: int = 0, figures_too: bool = False, signed: bool = False) -> None:
    """Change a job's result file, and then what is derived from it, as far as asked."""
    path = folder / json.loads((folder / store.SWEEP).read_text())["folders"][index] / store.RESULT
    data = json.loads(path.read_text())
    change(data)
    if figures_too:
        outcome = outcome_from_json(data)
        data["figures"] = to_json(figures(outcome.job, outcome.rounds))
    if signed:
        data["digest"] = store.digest(data)
    path.write_text(json.dumps(data))


def said(folder: Path) -> list[str]:
    """What is found, without where."""
    return [one.what for one in audit(folder)]


def rounds(change: Edit) -> Edit:
    """The same change to every round."""

    def change_all(data: dict[str, Any]) -> None:
        for one in data["rounds"]:
            change(one)

    return change_all


def halve_walls(one: dict[str, Any]) -> None:
    one["block_wall_ms"] = [ms / 2 for ms in one["block_wall_ms"]]


def halve_blocks(one: dict[str, Any]) -> None:
    halve_walls(one)
    one["block_device_ms"] = one["block_device_ms"] and [ms / 2 for ms in one["block_device_ms"]]


def halve_phase(one: dict[str, Any]) -> None:
    """Blocks and the moments between which they ran."""
    halve_blocks(one)
    one["timed_until"] = (one["timed_from"] + one["timed_until"]) / 2


def halve_all(one: dict[str, Any]) -> None:
    """Everything that says how long the timed phase was."""
    halve_phase(one)
    one["stage_s"]["throughput"] /= 2


def double_iterations(one: dict[str, Any]) -> None:
    one["block_iterations"] *= 2


def test_a_clean_sweep_is_one_line_and_exit_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, clean(), clean("o1"), on_cpu("bf16"), a_failure(a_job("o3")), a_skip(a_job("fp8")))
    assert main([str(folder)]) == 0
    assert capsys.readouterr() == (f"{folder}: 5 results, nothing found\n", "")


@pytest.mark.parametrize("make", [clean, on_cpu], ids=["GPU", "CPU"])
@pytest.mark.parametrize(
    "change", [halve_walls, halve_blocks, halve_all, double_iterations], ids=lambda change: change.__name__
)
def test_a_changed_file_is_found_by_its_digest_and_by_its_figures(
    make: Callable[[], Result], change: Edit, tmp_path: Path
) -> None:
    folder = saved(tmp_path, make())
    edit(folder, rounds(change))
    assert said(folder)[0] == CHANGED


SHORT = "the blocks add up to 320.3 ms, and were timed in 643.8 ms"
ALONE = "an iteration took 4 ms in a block, and 9.09 ms alone"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (halve_walls, [f"round 1: {SHORT}"]),
        (halve_blocks, [f"round 1: {SHORT}"]),
        (halve_phase, [f"round 1: {SHORT}"]),
        (halve_all, ["suspect: the evidence does not match the timing: 7.7 ms of kernels, 3.92 ms timed"]),
        (double_iterations, ["suspect: the evidence does not match the timing: 7.7 ms of kernels, 3.92 ms timed"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_gpus_doubled_throughput_is_found_although_figures_and_digest_were_made_anew(
    change: Edit, found: list[str], tmp_path: Path
) -> None:
    folder = saved(tmp_path)
    edit(folder, rounds(change), figures_too=True, signed=True)
    assert [what for what in said(folder) if not what.startswith(("round 2", "round 3"))] == found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (halve_walls, {SHORT, ALONE}),
        (halve_phase, {SHORT, ALONE}),
        (halve_all, {ALONE}),
        (double_iterations, {ALONE}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_so_is_a_cpus_which_has_no_device_times(change: Edit, found: set[str], tmp_path: Path) -> None:
    folder = saved(tmp_path, on_cpu())
    edit(folder, rounds(change), figures_too=True, signed=True)
    assert {what.removeprefix("round 1: ") for what in said(folder) if what.startswith("round 1: ")} == found
    assert len(said(folder)) == 3 * len(found)


def test_walls_alone_are_found_by_the_devices_times_where_nothing_says_how_long_the_phase_was(tmp_path: Path) -> None:
    def forget(one: dict[str, Any]) -> None:
        halve_walls(one)
        one["timed_from"] = one["timed_until"] = None
        del one["stage_s"]["throughput"]

    folder = saved(tmp_path)
    edit(folder, rounds(forget), figures_too=True, signed=True)
    (found,) = said(folder)
    assert found.startswith("suspect: 24 timed blocks were shorter than the device's work: ")


def test_edited_figures_are_found_with_and_without_a_new_digest(tmp_path: Path) -> None:
    def double(data: dict[str, Any]) -> None:
        data["figures"]["throughput_img_s"] *= 2
        data["figures"]["throughput_ci95"]["low"] *= 1.0001
        data["figures"]["latency_ms_p50"] = None

    wrong = [
        f"figures: {name} is not what its times give"
        for name in ("throughput_img_s", "throughput_ci95", "latency_ms_p50")
    ]
    folder = saved(tmp_path)
    edit(folder, double)
    assert said(folder) == [CHANGED, *wrong]
    edit(folder, lambda data: None, signed=True)
    assert said(folder) == wrong
    edit(folder, lambda data: data.pop("figures"), signed=True)
    assert said(folder) == ["figures: all is not what its times give"]


def test_a_figure_of_other_parts_than_it_has_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data["figures"]["throughput_ci95"].pop("low"), signed=True)
    assert said(folder) == ["figures: throughput_ci95 is not what its times give"]


def test_an_edited_id_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data.update(id="0123456789ab"), signed=True)
    assert said(folder) == [f"holds job {clean().job.folder}"]


def test_the_moments_of_the_timing_count_by_themselves(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data["rounds"][0].update(timed_until=101.4), signed=True)
    assert said(folder) == ["round 1: the blocks add up to 640.6 ms, and were timed in 1400 ms"]


def test_blocks_longer_than_their_phase_are_found_and_short_pauses_between_blocks_are_not(tmp_path: Path) -> None:
    phase_s = sum(on_cpu().rounds[1].block_wall_ms) / 1e3

    def last(seconds: float) -> list[str]:
        one = on_cpu().rounds[1]
        lasting = {"timed_until": 100.0 + seconds, "stage_s": {**one.stage_s, "throughput": seconds}}
        return said(saved(tmp_path / str(seconds), in_round(on_cpu(), 2, **lasting)))

    assert last(phase_s * 1.3) == []
    assert last(phase_s * 1.4) == ["round 2: the blocks add up to 640 ms, and were timed in 896 ms"]
    assert last(phase_s * 0.9) == ["round 2: the blocks add up to 640 ms, and were timed in 576 ms"]


def test_the_shortest_blocks_may_lie_a_millisecond_apart(tmp_path: Path) -> None:
    one = on_cpu().rounds[0]
    tiny = {
        "block_wall_ms": (0.2,) * 5,
        "block_iterations": 1,
        "latency_ms": (0.2,) * 70,
        "timed_until": 100.004,
        "stage_s": {**one.stage_s, "throughput": 0.004},
    }
    assert not [what for what in said(saved(tmp_path, in_round(on_cpu(), 1, **tiny))) if "add up" in what]


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("block_wall_ms", [80.0, -80.0], "round 2: a time is not over 0"),
        ("block_wall_ms", [80.0, 0], "round 2: a time is not over 0"),
        ("block_wall_ms", [80.0, None], "round 2: a time is not over 0"),
        ("block_device_ms", [80.0, -1.0], "round 2: a time is not over 0"),
        ("latency_ms", [8.0, 0.0], "round 2: a time is not over 0"),
        ("block_wall_ms", [], "round 2: holds no timed block"),
        ("block_iterations", 0, "round 2: holds no timed block"),
        ("block_device_ms", [78.0] * 7, "round 2: 8 blocks, 7 device times"),
    ],
)
def test_values_that_no_measurement_gives_are_found(field: str, value: object, found: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data["rounds"][1].update({field: value}), signed=True)
    assert said(folder)[0] == found


def test_a_result_without_rounds_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data.update(rounds=[]), signed=True)
    assert said(folder) == ["holds no round"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "cannot be read: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ("[]", "cannot be read: AttributeError: 'list' object has no attribute 'get'"),
        ('{"status": "fine"}', "cannot be read: ValueError: status 'fine' is not one of ok, failed, skipped"),
        ('{"status": "ok", "index": NaN}', "cannot be read: ValueError: NaN is no number"),
    ],
)
def test_a_file_that_holds_no_result_is_found(text: str, found: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / clean().job.folder / store.RESULT).write_text(text)
    assert list(audit(folder)) == [Finding(clean().job.folder, found)]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["rounds"][0].update(block_iterations="10"),
        lambda data: data["rounds"][0].update(timed_from=float("inf")),
        lambda data: data["job"].update(precision="fp99"),
        lambda data: data["rounds"][0]["evidence"].update(dtypes=None),
    ],
    ids=["text for a number", "infinity", "no such precision", "no dtypes"],
)
def test_values_of_another_kind_are_found_and_end_nothing(change: Edit, tmp_path: Path) -> None:
    folder = saved(tmp_path, clean(), clean("fp16"))
    edit(folder, change)
    edit(folder, rounds(double_iterations), index=1)
    assert any("cannot be read: " in what for what in said(folder))
    assert {one.where for one in audit(folder)} == {clean().job.folder, clean("fp16").job.folder}


def relabel(data: dict[str, Any], precision: str) -> None:
    amp = "auto" if precision.startswith("o") else None
    data["job"] |= {"precision": precision, "amp_backend": amp}


@pytest.mark.parametrize(
    ("measured", "label", "found"),
    [
        ("fp16", "fp32", "suspect: observed float16 in 54 of 54 operators, labelled float32"),
        ("fp16", "bf16", "suspect: observed float16 in 54 of 54 operators, labelled bf16 (bfloat16)"),
        ("fp32", "o2", "suspect: observed float32 in 54 of 54 operators, labelled o2 (float16)"),
        ("tf32", "fp32", "suspect: TF32 was on, labelled fp32"),
        ("fp32", "tf32", "suspect: TF32 was off, labelled tf32"),
        ("o1", "fp16", "suspect: torch's functions were patched (216 functions, 3937b47d)"),
    ],
)
def test_a_precision_that_was_edited_is_contradicted(measured: str, label: str, found: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, clean(measured))
    edit(folder, lambda data: relabel(data, label))
    what = said(folder)
    assert what[:2] == [CHANGED, f"holds job {a_job(label).folder}"]
    assert found in what


def test_it_is_contradicted_although_id_folder_plan_and_digest_were_made_anew(tmp_path: Path) -> None:
    folder, label = saved(tmp_path, clean("fp16")), a_job("fp32")

    def relabel_all(data: dict[str, Any]) -> None:
        relabel(data, "fp32")
        data["id"] = label.id

    edit(folder, relabel_all, figures_too=True, signed=True)
    (folder / clean("fp16").job.folder).rename(folder / label.folder)
    plan = json.loads((folder / store.SWEEP).read_text())
    (folder / store.SWEEP).write_text(json.dumps(plan | {"folders": [label.folder]}))
    assert said(folder) == [
        "suspect: observed float16 in 54 of 54 operators, labelled float32",
        "suspect: kernels multiply in float16 for 3.85 ms an iteration, labelled fp32",
    ]


def test_what_was_suspect_when_it_was_saved_is_said(tmp_path: Path) -> None:
    half = clean(dtypes=Dtypes("ATen operators of one call", operators("float16")), kernels=Kernels(missing="-"))
    assert list(audit(saved(tmp_path, half))) == [
        Finding(half.job.folder, "suspect: observed float16 in 54 of 54 operators, labelled float32")
    ]


def test_results_that_a_finished_sweep_lacks_are_found_and_those_of_a_running_one_are_not(tmp_path: Path) -> None:
    made, planned = [clean(), clean("fp16")], [a_job("bf16")]
    running = write_sweep(tmp_path, made, name="running", status="running", planned=planned)
    assert list(audit(running)) == []
    finished = write_sweep(tmp_path, made, name="finished", planned=planned)
    (finished / made[0].job.folder / store.RESULT).unlink()
    missing = "result.json is missing, and the sweep finished"
    assert list(audit(finished)) == [Finding(made[0].job.folder, missing), Finding(planned[0].folder, missing)]


def test_a_folder_that_is_not_in_the_plan_and_one_that_holds_another_job_are_found(tmp_path: Path) -> None:
    folder = saved(tmp_path, clean(), clean("fp16"))
    one, other = clean().job.folder, clean("fp16").job.folder
    shutil.copytree(folder / other, folder / "stray")
    shutil.copy(folder / one / store.RESULT, folder / other / store.RESULT)
    (folder / "no-result").mkdir()
    assert list(audit(folder)) == [
        Finding(other, f"holds job {one}"),
        Finding("stray", "no job of this sweep"),
    ]


def test_other_versions_are_said_of_the_sweep_and_of_each_result(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    edit(folder, lambda data: data.update(schema=SCHEMA_VERSION + 1), signed=True)
    plan = json.loads((folder / store.SWEEP).read_text())
    (folder / store.SWEEP).write_text(json.dumps(plan | {"schema": 0, "measurement_version": MEASUREMENT_VERSION - 1}))
    method = f"measured by method {MEASUREMENT_VERSION - 1}, this tcsweep by {MEASUREMENT_VERSION}: do not compare"
    assert list(audit(folder)) == [
        Finding(store.SWEEP, f"schema 0, this tcsweep writes {SCHEMA_VERSION}"),
        Finding(store.SWEEP, method),
        Finding(clean().job.folder, f"schema {SCHEMA_VERSION + 1}, this tcsweep writes {SCHEMA_VERSION}"),
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"argv": ["model=resnet18"]}'])
def test_a_plan_that_cannot_be_read_is_found(text: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / store.SWEEP).write_text(text)
    ((where, what),) = [(one.where, one.what) for one in audit(folder)]
    assert (where, what[:16]) == (store.SWEEP, "cannot be read: ")


def test_arguments_that_are_no_sweeps_are_mistakes_and_help_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--all"], [str(tmp_path)], [str(tmp_path / "absent")]):
        with pytest.raises(Mistake):
            main(arguments)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m tcsweep audit FOLDER")


def run(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "tcsweep", "audit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    return done.returncode, done.stdout, done.stderr


def test_the_command_prints_a_line_a_finding_and_ends_with_1(tmp_path: Path) -> None:
    good = write_sweep(tmp_path, [clean()], name="good")
    bad = write_sweep(tmp_path, [clean()], name="bad")
    edit(bad, rounds(double_iterations), figures_too=True, signed=True)
    finding = "suspect: the evidence does not match the timing: 7.7 ms of kernels, 3.92 ms timed"
    assert run(good, bad) == (
        1,
        f"{good}: 1 results, nothing found\n{clean().job.folder}: {finding}\n{bad}: 1 results, 1 findings\n",
        "",
    )


def test_the_command_ends_with_2_where_there_is_no_sweep(tmp_path: Path) -> None:
    status, out, error = run(tmp_path)
    assert (status, out) == (2, "")
    assert f"{tmp_path}: no sweep's folder, it has no sweep.json" in error
