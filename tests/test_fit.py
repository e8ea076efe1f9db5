"""What is refused as too large for a board's memory, and what is left to be tried."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import pytest

from tcsweep.evidence.facts import LayerWork, Work
from tcsweep.fit import least_mib, misfit, room_mib
from tcsweep.job import Environment, Job

from . import boards
from .test_main import FAST, SMALL, tcsweep

# 4 Mi weights; 3 Mi elements in and out of the larger layer.
WORK = Work(
    (
        LayerWork("a", "convolution", 1e9, 2**20, 2**21, 2**21),
        LayerWork("b", "linear", 1e9, 2**20, 2**20, 2**21),
    )
)
ORIN = Environment(device="cuda:0", shared_memory=True)
CACHED = "MemTotal: 8000000 kB\nMemFree: 204800 kB\nMemAvailable: 6144000 kB\n"


@pytest.mark.parametrize(
    ("precision", "batch", "mib"), [("fp32", 1, 28), ("fp32", 8, 112), ("fp16", 8, 56), ("o1", 8, 64), ("o0", 1, 28)]
)
def test_the_least_is_the_weights_and_the_largest_layer_of_the_batch(precision: str, batch: int, mib: float) -> None:
    assert least_mib(Job(precision=precision, batch=batch), WORK) == mib


def test_without_counted_layers_nothing_is_predicted() -> None:
    assert least_mib(Job(), Work(missing="not counted")) is None


def test_room_is_what_the_page_cache_gives_back_too(tmp_path: Path) -> None:
    boards.write(tmp_path, {"proc/meminfo": CACHED})
    assert room_mib(tmp_path) == 6000
    assert room_mib(tmp_path / "nothing") is None


def test_room_is_no_more_than_a_control_group_leaves_without_its_cache(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice"
    boards.write(
        tmp_path,
        {
            "proc/meminfo": CACHED,
            "proc/self/cgroup": "0::/user.slice/run.scope",
            f"{group}/run.scope/memory.max": "max",
            f"{group}/run.scope/memory.current": "1",
            f"{group}/memory.max": 2000 * 2**20,
            f"{group}/memory.current": 1500 * 2**20,
            f"{group}/memory.stat": f"anon 7\ninactive_file {200 * 2**20}",
        },
    )
    assert room_mib(tmp_path) == 700


def test_what_cannot_fit_is_refused_on_a_board_and_on_a_cpu_and_never_on_a_gpu_with_its_own_memory(
    tmp_path: Path,
) -> None:
    boards.write(tmp_path, {"proc/meminfo": "MemAvailable: 102400 kB"})
    large = Job(batch=8)
    reason = "needs at least 112 MiB, and 100 MiB of this machine's memory can be had: a smaller batch or a half"
    assert (misfit(large, ORIN, WORK, tmp_path) or "").startswith(reason)
    assert (misfit(large, Environment(device="cpu"), WORK, tmp_path) or "").startswith(reason)
    assert misfit(large, Environment(device="cuda:0"), WORK, tmp_path) is None
    assert misfit(dataclasses.replace(large, precision="fp16"), ORIN, WORK, tmp_path) is None
    assert misfit(large, ORIN, WORK, tmp_path / "nothing") is None


def test_a_sweep_skips_what_cannot_fit_says_why_and_measures_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = boards.board(tmp_path / "board", "orin_nano_r36")
    boards.write(root, {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 60000 kB"})
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    words = ("-m", "precision=fp32", "batch=1,4096", *SMALL, *FAST, "tracking=none")
    done = tcsweep(tmp_path, *words, TCSWEEP_BOARD_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert "needs at least" in done.stdout + done.stderr
    (summary,) = tmp_path.glob("outputs/*/*/summary.csv")
    small, large = csv.DictReader(summary.open())
    assert (small["status"], large["status"]) == ("ok", "skipped")
    assert large["reason"].startswith("needs at least ")
    assert float(small["board_memory_mib"]) == pytest.approx(float(small["peak_memory_mib"]), rel=0.2)
    assert small["power_of"] == "INA3221 VDD_IN"


def test_fit_is_check_or_try(tmp_path: Path) -> None:
    done = tcsweep(tmp_path, "fit=tri", "batch=1", *SMALL)
    assert (done.returncode, done.stderr) == (2, "tcsweep: fit=tri is unknown; did you mean try? Allowed: check, try\n")
