"""Two saved sweeps side by side."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tcsweep import compare, speedup
from tcsweep.compare import changed, key, matched
from tcsweep.job import Measure, Outcome
from tcsweep.mistakes import Mistake
from tcsweep.stats import Interval

from .test_report import CPU, GPU, failed, job, measured, save

ORIN = dataclasses.replace(
    GPU, device_name="Orin", l4t="36.4.3", jetpack="6", power_mode="MAXN (0)", torch="2.6.0", host="orin"
)


def h200() -> list[Outcome]:
    return [measured(job("fp32"), 0, 100, 101, 99), measured(job("fp16"), 1, 300, 303, 297), failed(job("bf16"), 2)]


def orin() -> list[Outcome]:
    brief = Measure(name="quick", rounds=1)
    return [
        measured(job("fp32", device="cuda:1", measure=brief), 0, 50, 50.5, 49.5, environment=ORIN),
        measured(job("fp16", device="cuda:1", measure=brief), 1, 299, 305, 295, environment=ORIN),
        measured(job("bf16", device="cuda:1", measure=brief), 2, 280, 281, 279, environment=ORIN),
        measured(job("fp32", batch=1, device="cuda:1", measure=brief), 3, 20, 20, 20, environment=ORIN),
    ]


def test_jobs_are_matched_whatever_their_device_and_how_long_was_measured() -> None:
    lines, only_a, only_b = matched(speedup.rows(h200()), speedup.rows(orin()))
    assert [line.a.job.precision for line in lines] == ["fp32", "fp16", "bf16"]
    assert [line.ratio for line in lines] == [pytest.approx(0.5), pytest.approx(299.63 / 300, rel=1e-3), None]
    assert lines[2].reason == "A was not measured"
    assert (only_a, [row.job.batch for row in only_b]) == ([], [1])
    assert key(job("o1", amp_backend="apex")) == key(job("o1", amp_backend="torch"))
    assert key(job("fp32")) != key(job("fp32", layout="nhwc"))
    assert key(job("fp32")) != key(job("fp32", power="15w"))


def test_the_interval_of_a_ratio_adds_both_on_a_log_scale() -> None:
    (line, *_), _, _ = matched(speedup.rows(h200()), speedup.rows(orin()))
    halves = []
    for row in (line.a, line.b):
        assert row.figures is not None
        assert row.figures.throughput_ci95 is not None
        halves.append(math.log(row.figures.throughput_ci95.high / row.figures.throughput_ci95.low) / 2)
    wide = math.hypot(*halves)
    assert line.ratio is not None
    assert line.ci95 == Interval(
        pytest.approx(line.ratio * math.exp(-wide)), pytest.approx(line.ratio * math.exp(wide))
    )


def test_what_differs_is_named_with_both_values_but_for_the_host() -> None:
    found = {name: (was, now) for name, was, now in changed(GPU, ORIN)}
    assert found == {
        "device_name": ("NVIDIA H200", "Orin"), "torch": ("2.8.0", "2.6.0"), "l4t": (None, "36.4.3"),
        "jetpack": (None, "6"), "power_mode": (None, "MAXN (0)"),
    }  # fmt: skip
    assert changed(CPU, CPU) == []


def test_the_command_prints_both_what_differs_and_what_only_one_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a", h200())
    save(tmp_path / "b", orin())
    monkeypatch.setenv("COLUMNS", "140")
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert f"A: NVIDIA H200   {tmp_path}/a" in said
    assert "0.50x" in said
    assert "no difference" in said
    assert "A was not measured" in said
    assert "only in B: resnet50-fp32-b1-nchw-eager-cuda1" in said
    assert "  torch: 2.8.0 → 2.6.0" in said
    assert "  measure.name: default → quick" in said


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["--x", "b"]])
def test_two_folders_are_wanted(arguments: list[str]) -> None:
    with pytest.raises(Mistake, match="compare takes two sweeps' folders"):
        compare.main(arguments)


def test_comparing_needs_no_torch(tmp_path: Path) -> None:
    save(tmp_path / "a", h200())
    folder = str(tmp_path / "a")
    code = f"import sys\nfrom tcsweep.compare import main\nmain([{folder!r}] * 2)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing differs between the environments" in done.stdout
