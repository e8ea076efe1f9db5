"""What MLflow is to hold of a sweep, without MLflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tcsweep import tracking_runs
from tcsweep.evidence.facts import DeviceSample, DeviceState
from tcsweep.owner import this_process
from tcsweep.report.words import COLOURS
from tcsweep.speedup import rows
from tcsweep.store import load_sweep
from tcsweep.tracking_runs import Whole, child_run, parent_run, thinned, write_samples
from tests import sweeps
from tests.evident import clean, operators
from tests.test_why import SWEEPS


def test_samples_are_the_raw_times_of_every_round(tmp_path):
    one = dataclasses.replace(sweeps.a_round(2), block_wall_ms=(80.5, 80.25), latency_ms=(8.1,))
    (tmp_path / "result.json").write_text("{}")
    write_samples(tmp_path, (one,))
    assert (tmp_path / "samples.csv").read_text() == (
        "round,phase,index,value_ms\n2,throughput,0,80.5\n2,throughput,1,80.25\n2,latency,0,8.1\n"
    )


def test_names_say_what_is_not_the_default(tmp_path):
    sweep, outcomes = load_sweep(sweeps.write_sweep(tmp_path))
    whole = dataclasses.replace(Whole.of(sweep, rows(outcomes)), backends=True)
    job = sweeps.a_job("o1", image_size=96, weights="/w/my net.pt", amp_backend="torch", device="cuda:1", repeat=1)
    reference = sweeps.a_result(sweeps.a_job(), role="reference")
    assert tracking_runs._name(whole, sweeps.a_result(job)) == "resnet50 o1 b8 96px my net.pt torch cuda:1 #2"
    assert tracking_runs._name(whole, reference) == "resnet50 fp32 b8 (reference)"


def test_a_password_in_the_typed_command_is_not_sent(tmp_path):
    sweep_dir = sweeps.write_sweep(tmp_path)
    sweep, outcomes = load_sweep(sweep_dir)
    leaky = dataclasses.replace(sweep, command="tcsweep tracking.uri=http://bob:S3cr%40t%2F@host:5000")
    run = parent_run(Whole.of(leaky, rows(outcomes)), sweep_dir)
    assert run.tags["tcsweep.command"] == "tcsweep tracking.uri=http://bob@host:5000"


def test_what_stands_out_in_a_list_of_runs_stands_in_its_name(tmp_path):
    slow, best = sweeps.a_result(sweeps.a_job("o1"), 2000.0), sweeps.a_result(sweeps.a_job("o3"), 3000.0, index=1)
    lies = dataclasses.replace(clean("fp32", 9000.0), job=sweeps.a_job(), index=2)
    operators_lie = dataclasses.replace(lies.rounds[0].evidence.dtypes, operators=operators("float16"))
    evidence = dataclasses.replace(lies.rounds[0].evidence, dtypes=operators_lie)
    lies = dataclasses.replace(lies, rounds=(dataclasses.replace(lies.rounds[0], evidence=evidence), *lies.rounds[1:]))
    made = [slow, best, lies, sweeps.a_failure(sweeps.a_job("o2"), 3), sweeps.a_skip(sweeps.a_job("fp8"), 4)]
    sweep_dir = sweeps.write_sweep(tmp_path, made)
    sweep, outcomes = load_sweep(sweep_dir)
    whole = Whole.of(sweep, rows(outcomes))
    runs = [child_run(whole, row, sweep_dir / row.job.folder) for row in whole.table]
    assert [run.name for run in runs] == [
        *("resnet50 o1 b8", "resnet50 o3 b8 (best)", "resnet50 fp32 b8 (suspect)"),
        *("resnet50 o2 b8 (failed)", "resnet50 fp8 b8 (skipped)"),
    ]
    assert [run.tags.get("tcsweep.best") for run in runs] == [None, "true", None, None, None]
    assert [run.tags["mlflow.runColor"] for run in runs] == [COLOURS[p] for p in ("o1", "o3", "fp32", "o2", "fp8")]
    note = parent_run(whole, sweep_dir, "[Table](#/x)", "r").tags["mlflow.note.content"]
    assert note.split("\n\n")[:2] == [
        "3 measured, 1 failed, 1 skipped, 1 suspect, best 3000 img/s: resnet50 o3 b8; finished",
        "[Table](#/x)",
    ]
    assert "| resnet50 fp32 b8 | 9000 | — |" in note
    assert "get-artifact" not in note
    (sweep_dir / "throughput.png").write_bytes(b"")
    with_plot = parent_run(whole, sweep_dir, "", "r").tags["mlflow.note.content"]
    assert with_plot.endswith("![throughput](get-artifact?path=throughput.png&run_uuid=r)")


def test_a_parameter_that_follows_from_another_one_is_none(tmp_path):
    made = [sweeps.a_result(sweeps.a_job("o1", amp_backend="torch")), sweeps.a_result(sweeps.a_job(), index=1)]
    sweep, outcomes = load_sweep(sweeps.write_sweep(tmp_path, made))
    one = Whole.of(sweep, rows(outcomes))
    assert [set(child_run(one, row, tmp_path).params) for row in one.table] == [
        {"model", "precision", "batch", "layout", "engine", "device"}
    ] * 2
    made.append(sweeps.a_result(sweeps.a_job("o1", amp_backend="apex", seed=3, weights="/w/a.pt"), index=2))
    sweep, outcomes = load_sweep(sweeps.write_sweep(tmp_path, made, name="two"))
    two = Whole.of(sweep, rows(outcomes))
    more = [{k: v for k, v in child_run(two, row, tmp_path).params.items() if k in ("amp_backend", "seed", "weights")}
            for row in two.table]  # fmt: skip
    assert more == [{"amp_backend": "torch"}, {}, {"amp_backend": "apex", "seed": "3", "weights": "a.pt"}]


def test_series_are_thinned_and_lie_in_time_where_they_were_taken(tmp_path):
    samples = tuple(DeviceSample(at_s, sm_mhz=1980.0 - at_s, power_w=None) for at_s in (-1.0, 0.0, 0.5, 9.0))
    state = DeviceState("NVML", samples, timed_s=0.6)
    result = sweeps.a_result(sweeps.a_job(), rounds=1)
    one = dataclasses.replace(result.rounds[0], device_state=state, latency_ms=tuple(range(1, 1001)))
    sweep, outcomes = load_sweep(sweeps.write_sweep(tmp_path, [dataclasses.replace(result, rounds=(one,))]))
    whole = Whole.of(sweep, rows(outcomes))
    series = child_run(whole, whole.table[0], tmp_path).series
    assert set(series) == {"series/latency_ms", "system/gpu_clock_sm_mhz"}
    latency, clock = series["series/latency_ms"], series["system/gpu_clock_sm_mhz"]
    assert (len(latency), latency[0].value, latency[-1].value) == (100, 1, 1000)
    assert [p.step for p in latency] == list(range(100))
    assert [p.value for p in clock] == [1980, 1979.5]
    timed_at = round((one.started_at + 1.5) * 1e3)  # 1.5 s of stages before the timed blocks
    assert [p.at_ms for p in clock] == [timed_at, timed_at + 500]
    assert latency[0].at_ms == pytest.approx(timed_at + sum(one.block_wall_ms), abs=1)


def test_thinning_keeps_the_ends():
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned(range(11), 3) == [0, 5, 10]


def test_a_sweep_whose_process_is_gone_was_killed(tmp_path):
    sweep, outcomes = load_sweep(sweeps.write_sweep(tmp_path, status="running"))
    here = this_process()
    for owner, status in ((None, "RUNNING"), (here, "RUNNING"), (dataclasses.replace(here, started="1"), "KILLED")):
        run = parent_run(Whole.of(dataclasses.replace(sweep, owner=owner), rows(outcomes)), tmp_path)
        assert run.status == status
        assert run.tags.get("tcsweep.owner_host") == (owner and owner.host)


def test_what_holds_a_job_back_is_in_its_note_and_a_tag_and_the_sweeps_lines_in_its_own(tmp_path: Path) -> None:
    outcomes = [row.outcome for row in SWEEPS["r50"]]
    sweep_dir = sweeps.write_sweep(tmp_path, outcomes)
    sweep, saved = load_sweep(sweep_dir)
    whole = Whole.of(sweep, rows(saved))
    row = next(row for row in whole.table if row.job.label == "resnet50-fp16-b1-nhwc-eager-cuda0")
    tags = child_run(whole, row, sweep_dir / row.job.folder).tags
    assert tags["tcsweep.cause"] == "launch-bound"
    assert tags["mlflow.note.content"].endswith(
        "why not faster: launch-bound: the GPU is busy 21% of the time; 282 kernels take 0.831 of 4.01 ms "
        "[up to 4.4x]; try engine=cudagraph, or a larger batch"
    )
    note = parent_run(whole, sweep_dir).tags["mlflow.note.content"]
    assert "\n- fp16 batch 1 nhwc eager: launch-bound, the GPU is busy 21% of the time; try engine=cudagraph" in note
