"""Sweeps over a Jetson's power modes: the order, what the rows carry, and the mode that was found, restored."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tcsweep import store
from tcsweep.devices import Resolved, nvpmodel
from tcsweep.devices.nvpmodel import Mode, current
from tcsweep.explain import other_power_mode
from tcsweep.job import Environment, Job, Outcome, Result, Skipped
from tcsweep.stats import figures

from . import boards
from .test_main import FAST, SMALL, environment, tcsweep
from .test_sweep import FakeServer, jobs, rate_of, run, server  # noqa: F401  (a fixture)

# Long enough for the board's sensors, which are read five times a second.
SECONDS = ["measure.timed_s_min=0.7", "measure.timed_s_max=0.7", "measure.warmup_s_max=0.2", "measure.latency_s_max=0"]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AGX Orin in MAXN with two more modes that can be had at once."""
    root = boards.board(tmp_path / "board", "agx_orin_r35")
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(root))
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(nvpmodel, "SETTLE_S", (0.001, 1.0))
    monkeypatch.setattr(nvpmodel, "TAKES_S", 0.3)
    return root


@pytest.fixture
def measured_in(board: Path, server: type[FakeServer], monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    """The mode that the board was in for each round, in order."""
    seen = []
    probed = FakeServer.run

    def probe(self: FakeServer, task: str, request: Any, **options: Any) -> Any:
        if not task.endswith(":probe"):
            return probed(self, task, request, **options)
        environment = Environment(device="cpu", device_name="Fake", power_mode=str(current(board)))
        return {name: Resolved(name, environment) for name in request}

    def answer(request: Any) -> Any:
        seen.append(f"{request.job.power} in {current(board)}")
        return rate_of(request, 100.0)

    monkeypatch.setattr(FakeServer, "run", probe)
    FakeServer.answer = staticmethod(answer)
    return seen


def saved(folder: Path) -> list[Outcome]:
    return store.load_sweep(folder)[1]


def test_all_rounds_in_one_mode_then_in_the_next_and_back_to_the_one_found(
    tmp_path: Path, board: Path, measured_in: list[str]
) -> None:
    asked = [job for power in ("15w", None, "30W") for job in jobs("fp32", "fp16", power=power)]
    finished = run(tmp_path, *asked)
    expected = [name for name in ("None in MAXN (0)", "15w in MODE_15W (1)", "30w in MODE_30W (2)") for _ in range(6)]
    assert measured_in == expected
    assert (boards.switches(board), current(board)) == (["1", "2", "0"], Mode(0, "MAXN"))
    told = [(o.job.power, o.environment.power_mode, o.environment.gpu_mhz_max) for o in saved(finished.folder)[::2]]
    assert told == [("15w", "MODE_15W (1)", 421.0), (None, "MAXN (0)", None), ("30w", "MODE_30W (2)", 625.0)]
    assert {r.power_mode for o in saved(finished.folder)[:2] if isinstance(o, Result) for r in o.rounds} == {
        "MODE_15W (1)"
    }


def test_each_mode_has_the_baseline_of_its_own(tmp_path: Path, board: Path, measured_in: list[str]) -> None:
    finished = run(tmp_path, *jobs("fp16", power="maxn"), *jobs("fp16", power="15w"))
    assert [(o.role, o.job.precision, o.job.power) for o in finished.outcomes] == [
        ("asked", "fp16", "maxn"), ("asked", "fp16", "15w"), ("baseline", "fp32", "maxn"), ("baseline", "fp32", "15w"),
    ]  # fmt: skip


def test_a_mode_that_the_board_does_not_take_is_skipped_with_the_command_and_the_rest_is_measured(
    tmp_path: Path, board: Path, measured_in: list[str]
) -> None:
    boards.nvpmodel(board, "agx_orin_r35", "[ $2 = 1 ] && { echo 'NVPM ERROR: 13'; exit 255; }")
    (board / "bin/sudo").write_text("#!/bin/sh\nexit 1\n")
    (board / "bin/sudo").chmod(0o755)
    finished = run(tmp_path, *(j for power in ("15w", "30w") for j in jobs("fp32", power=power)))
    refused, ok = saved(finished.folder)
    assert isinstance(refused, Skipped)
    assert (refused.reason or "").startswith("the board stays in MAXN (0): switch by hand, sudo nvpmodel -m 1")
    assert (ok.status, set(measured_in), current(board)) == ("ok", {"30w in MODE_30W (2)"}, Mode(0, "MAXN"))


def test_a_mode_that_somebody_changes_meanwhile_makes_the_job_suspect(
    tmp_path: Path, board: Path, measured_in: list[str]
) -> None:
    def answer(request: Any) -> Any:
        boards.switch_files(board, "agx_orin_r35", 3 if request.number == 2 else 0)
        return rate_of(request, 100.0)

    FakeServer.answer = staticmethod(answer)
    (one,) = saved(run(tmp_path, *jobs("fp32")).folder)
    assert isinstance(one, Result)
    assert [r.power_mode for r in one.rounds] == ["MAXN (0)", "MODE_50W (3)", "MAXN (0)"]
    (reason,) = other_power_mode(one, figures(one.job, one.rounds))
    assert reason == "the power mode was MODE_50W (3), not MAXN (0)"


def test_an_unknown_mode_is_refused_with_the_nearest_before_anything_is_measured(tmp_path: Path, board: Path) -> None:
    done = tcsweep(tmp_path, "-m", "power=maxn,15v", "batch=1", *SMALL, *FAST, "tracking=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tcsweep: power=15v is unknown; did you mean 15w? Allowed: maxn, 15w, 30w, 50w\n"
    assert not list(tmp_path.glob("outputs/*/*/sweep.json"))


def test_a_machine_without_power_modes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(tmp_path / "nothing"))
    done = tcsweep(tmp_path, "power=15w", "batch=1", *SMALL, *FAST, "tracking=none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "power=15w needs a Jetson with its nvpmodel: there is no" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_real_sweep_of_two_modes_has_both_in_its_rows_with_throughput_per_watt(tmp_path: Path, board: Path) -> None:
    done = tcsweep(
        tmp_path, "-m", "power=maxn,30w", "precision=fp32", "batch=1", *SMALL, *SECONDS, "tracking=none", COLUMNS="120"
    )
    assert done.returncode == 0, done.stderr
    assert "power mode MODE_30W (2)" in done.stderr
    assert "power mode maxn" in done.stdout
    assert "power mode 30w" in done.stdout
    assert "a W" in done.stdout
    (folder,) = (p.parent for p in tmp_path.glob("outputs/*/*/sweep.json"))
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert [(r["power"], r["power_mode"]) for r in rows] == [("maxn", "MAXN (0)"), ("30w", "MODE_30W (2)")]
    for row in rows:
        per_watt = float(row["throughput_img_s"]) / float(row["power_w"])
        assert float(row["throughput_img_s_w"]) == pytest.approx(per_watt, rel=0.01)
    facts = [o.environment for o in saved(folder)]
    assert {(f.module, f.soc, f.l4t, f.shared_memory) for f in facts} == {
        ("NVIDIA Jetson AGX Orin", "tegra234", "35.3.1", True)
    }
    assert [f.gpu_mhz_max for f in facts] == [1300.0, 625.0]
    assert (boards.switches(board), current(board)) == (["2", "0"], Mode(0, "MAXN"))


def measuring_in_30w(tmp_path: Path, board: Path) -> subprocess.Popen[str]:
    """A sweep that has switched the board to another mode, and goes on there."""
    long = ["batch=1", "measure.timed_s_min=20", "measure.timed_s_max=20", "tracking=none"]
    running = subprocess.Popen(
        [sys.executable, "-m", "tcsweep", "power=30w", *SMALL, *long],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while current(board) != Mode(2, "MODE_30W") and time.monotonic() < until and running.poll() is None:
        time.sleep(0.05)
    assert current(board) == Mode(2, "MODE_30W")
    return running


def test_sigterm_during_a_sweep_in_another_mode_goes_back_to_the_one_found(tmp_path: Path, board: Path) -> None:
    running = measuring_in_30w(tmp_path, board)
    time.sleep(1)
    os.killpg(running.pid, signal.SIGTERM)
    said = running.communicate(timeout=60)[0]
    assert (running.returncode, current(board)) == (128 + signal.SIGTERM, Mode(0, "MAXN")), said
    assert boards.switches(board) == ["2", "0"]
    assert not list((tmp_path / "state").rglob("power.json"))


def test_after_a_sweep_that_was_killed_outright_the_next_one_goes_back(tmp_path: Path, board: Path) -> None:
    running = measuring_in_30w(tmp_path, board)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=60)
    assert current(board) == Mode(2, "MODE_30W")
    done = tcsweep(tmp_path, "batch=1", *SMALL, *FAST, "tracking=none")
    assert done.returncode == 0, done.stderr
    assert "a sweep that was killed left another power mode: back to MAXN (0)" in done.stderr
    assert current(board) == Mode(0, "MAXN")
    (row,) = (o for f in tmp_path.glob("outputs/*/*/summary.csv") for o in saved(f.parent) if o.status == "ok")
    assert row.environment.power_mode == "MAXN (0)"


def test_a_job_in_the_mode_as_found_keeps_the_id_it_had_before_there_were_modes() -> None:
    assert Job().id != Job(power="15w").id
    assert Job(power="15w").label.endswith("-15w")
