"""What MLflow is to hold of a sweep, without MLflow."""

from __future__ import annotations

import dataclasses

from tcsweep import tracking_runs
from tcsweep.speedup import rows
from tcsweep.store import load_sweep
from tcsweep.tracking_runs import parent_run, write_samples
from tests import sweeps


def test_samples_are_the_raw_times_of_every_round(tmp_path):
    one = dataclasses.replace(sweeps.a_round(2), block_wall_ms=(80.5, 80.25), latency_ms=(8.1,))
    (tmp_path / "result.json").write_text("{}")
    write_samples(tmp_path, (one,))
    assert (tmp_path / "samples.csv").read_text() == (
        "round,phase,index,value_ms\n2,throughput,0,80.5\n2,throughput,1,80.25\n2,latency,0,8.1\n"
    )


def test_names_say_what_is_not_the_default(tmp_path):
    sweep, _ = load_sweep(sweeps.write_sweep(tmp_path))
    job = sweeps.a_job("o1", image_size=96, weights="/w/my net.pt", amp_backend="torch", device="cuda:1", repeat=1)
    reference = sweeps.a_result(sweeps.a_job(), role="reference")
    assert tracking_runs._name(sweep, sweeps.a_result(job)) == "resnet50 o1 b8 96px my net.pt torch cuda:1 #2"
    assert tracking_runs._name(sweep, reference) == "resnet50 fp32 b8 (reference)"


def test_a_password_in_the_typed_command_is_not_sent(tmp_path):
    sweep_dir = sweeps.write_sweep(tmp_path)
    sweep, outcomes = load_sweep(sweep_dir)
    leaky = dataclasses.replace(sweep, command="tcsweep tracking.uri=http://bob:S3cr%40t%2F@host:5000")
    run = parent_run(leaky, rows(outcomes), sweep_dir, "1")
    assert run.tags["tcsweep.command"] == "tcsweep tracking.uri=http://bob@host:5000"
