"""What sending costs a sweep on the embedded store."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

from tcsweep.job import Result
from tcsweep.tracking import prepare, upload
from tcsweep.tracking_uri import Target

from . import evident, sweeps

MS_A_JOB = 100.0  # promised; of a processor's time, as a test's clock is shared with others


def measured(batch: int) -> Result:
    """As rich as a GPU's: evidence, three rounds of 300 latencies and 20 samples of the device each."""
    latencies = tuple(8.0 + 0.001 * n for n in range(300))
    state = dataclasses.replace(
        evident.STATE, samples=evident.samples(*[1965.0] * 20, power_w=400.0, temperature_c=50.0)
    )
    found = evident.clean(
        "o1", 1000.0 * batch, batch=batch, round_changes={"latency_ms": latencies, "device_state": state}
    )
    return dataclasses.replace(found, index=batch)


def cost_ms(folder: Path, jobs: int) -> float:
    """Milliseconds of a processor a job."""
    sweep_dir = sweeps.write_sweep(folder, [measured(n) for n in range(1, jobs + 1)])
    target = Target(None, store=folder)
    prepare(target)
    before = resource.getrusage(resource.RUSAGE_SELF)
    done = upload(sweep_dir, target)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert (done.error, done.runs) == (None, jobs)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / jobs


def test_sending_costs_less_than_promised_and_ten_times_the_jobs_not_more_each(tmp_path: Path) -> None:
    cost_ms(tmp_path / "first", 1)  # imports, and what MLflow makes once a process
    few, many = min(cost_ms(tmp_path / str(n), 6) for n in range(2)), cost_ms(tmp_path / "many", 60)
    assert few < MS_A_JOB
    assert many < MS_A_JOB
    assert many < 1.5 * few
