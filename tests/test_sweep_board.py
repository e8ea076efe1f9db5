"""A real sweep on the CPU with a Jetson's files: what its sensors say is in the results."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from tcsweep import store, sweep
from tcsweep.evidence.facts import DeviceState
from tcsweep.explain import verdicts
from tcsweep.job import Job, Measure, Result, from_json, outcome_from_json, to_json
from tcsweep.report.progress import PlainProgress
from tcsweep.stats import figures

from .sensor_trees import board

BRIEF = Measure(
    iterations=30, warmup_s_min=0.0, warmup_s_max=0.2, latency_s_max=0.05, rounds=1, rounds_max=1, energy_s=0.5
)
ALONE = dataclasses.replace(sweep.NOT_SAVED, compare=False)
JOB = Job(model="mobilenet_v3_small", image_size=32, batch=2, device="cpu", measure=BRIEF)


@pytest.fixture
def server_of_its_own() -> Iterator[None]:
    """A server's environment is that of its start: that of other tests has another root."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_of_its_own: None) -> Result:
    """One job, measured on this board."""
    root = board(tmp_path / "board", "orin_nano_r36")
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(root))
    with over_current_every(0.01, root):
        finished = sweep.run([JOB], sweep.claim(tmp_path / "sweep"), PlainProgress(), origin=ALONE)
    _, (outcome,) = store.load_sweep(finished.folder)
    assert isinstance(outcome, Result)
    return outcome


@contextlib.contextmanager
def over_current_every(seconds: float, root: Path) -> Iterator[None]:
    """Events that a board's third counter counts meanwhile."""
    ended, file = threading.Event(), root / "sys/class/hwmon/hwmon3/oc3_event_cnt"
    new = file.with_suffix(".new")

    def count() -> None:
        for events in itertools.count(1):
            new.write_text(f"{events}\n")
            new.replace(file)  # never empty
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=count)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_cpus_job_on_a_jetson_has_the_boards_power_temperatures_and_energy(measured: Result) -> None:
    (one,) = measured.rounds
    state = one.device_state
    assert state is not None
    assert (state.source, state.power_of, state.missing) == (
        "INA3221 and thermal nodes in sysfs",
        "INA3221 VDD_IN",
        None,
    )
    seen: dict[str, Any] = dataclasses.asdict(state.samples[0])
    assert seen.pop("at_s") < 1
    assert seen.pop("over_current").keys() == {"oc1", "oc2", "oc3"}
    assert seen == {
        "sm_mhz": None,
        "memory_mhz": None,
        "temperature_c": 53.968,
        "power_w": pytest.approx(12.48),
        "utilisation": None,
        "throttle": 0,
        "rails_w": {
            "VDD_IN": pytest.approx(12.48),
            "VDD_CPU_GPU_CV": pytest.approx(4.67),
            "VDD_SOC": pytest.approx(2.815),
        },
        "temperatures_c": {"cpu": 53.968, "gpu": 53.343, "tj": 53.968},
    }
    assert state.over_current is not None
    events = state.over_current["oc3"]
    assert state.over_current == {"oc1": 0, "oc2": 0, "oc3": events}
    assert events > 0
    gravest = verdicts(measured, figures(measured.job, measured.rounds))[0]
    assert gravest.name == "suspect"
    assert f"throttled: instantaneous over-current ({events} event{'s' * (events > 1)})" in gravest.reasons
    assert one.energy is not None
    assert (one.energy.source, one.energy.missing) == ("sampled board power, INA3221 VDD_IN", None)
    assert one.energy.joules == pytest.approx(12.48 * (one.energy.seconds or 0.0))
    assert outcome_from_json(to_json(measured)) == measured


def test_a_state_that_was_saved_before_boards_were_read_is_read_as_it_was() -> None:
    old = {
        "source": "NVML",
        "samples": [{"at_s": 0.1, "sm_mhz": 1980.0, "throttle": 4}],
        "timed_s": 0.5,
        "sm_mhz_max": 1980.0,
        "missing": None,
    }
    state = from_json(DeviceState, old)
    assert (state.over_current, state.power_of) == (None, None)
    assert (state.samples[0].rails_w, state.samples[0].temperatures_c) == (None, None)
