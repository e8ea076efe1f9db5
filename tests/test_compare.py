"""Two saved sweeps side by side."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        "driver": (None, None), "gpu_uuid": (None, None),  # a GPU has them: unknown is not equal
    }  # fmt: skip
    assert changed(CPU, dataclasses.replace(CPU, host="other")) == [
        (name, None, None) for name in ("torch", "cpu_model") if getattr(CPU, name) is None
    ]


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
    assert "not significant" in said
    assert said.index("what differs:") < said.index("A img/s")
    assert "  driver: unknown in both" in said
    assert "no single one is its cause" in said
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
    assert "A and B are the same folder" in done.stdout
    assert "what differs" not in done.stdout


# --- one fact at a time, edited in the saved files ---


def two(tmp_path: Path, edit: Callable[[dict[str, Any]], object], name: str = "result.json") -> tuple[str, str]:
    """A sweep, and a copy of it in which every file of that name was edited."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        save(folder, h200())
    for path in folders[1].rglob(name):
        data = json.loads(path.read_text())
        edit(data)
        path.write_text(json.dumps(data))
    return str(folders[0]), str(folders[1])


def compared(capsys: pytest.CaptureFixture[str], folders: tuple[str, str]) -> str:
    assert compare.main(list(folders)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("environment", "power_mode", "30W (2)", "  power_mode: unknown → 30W (2)"),
        ("environment", "torch", "2.9.0", "  torch: 2.8.0 → 2.9.0"),
        ("environment", "gpu_uuid", "GPU-2", "  gpu_uuid: unknown → GPU-2"),
        ("environment", "torch", None, "  torch: 2.8.0 → unknown"),
        ("job", "seed", 7, "  seed: 0 → 7"),
        ("job", "image_size", 160, "  image_size: 224 → 160"),
        ("job", "layout", "nhwc", "  layout: nchw → nhwc"),
        ("job", "weights", "IMAGENET1K_V2", "  weights: unknown → IMAGENET1K_V2"),
    ],
)
def test_the_fact_that_differs_is_listed_before_the_figures(
    part: str,
    field: str,
    value: object,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = compared(capsys, two(tmp_path, lambda data: data[part].__setitem__(field, value)))
    assert said in text
    assert text.index(said) < text.index("A img/s")
    if part == "job" and field != "seed":  # the ratio of two jobs that are not the same one is marked in its line
        assert f"{said.strip().replace(': ', ' ')}; not significant" in text


def test_what_ran_an_o_level_and_the_users_weights_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(data: dict[str, Any]) -> None:
        for one in data.get("rounds", ()):
            one.update(amp_backend="apex", weights_sha256="0" * 64)

    text = compared(capsys, two(tmp_path, edit))
    assert "  amp_backend: unknown → apex" in text
    assert f"  weights_sha256: unknown → {'0' * 64}" in text


def test_another_way_of_measuring_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    folders = two(tmp_path, lambda data: data.update(measurement_version=1), "sweep.json")
    with pytest.raises(Mistake, match="A was measured in way 2, B in way 1: such figures must not be compared"):
        compare.main(list(folders))
    for name in ("result.json", "sweep.json"):
        folders = two(tmp_path / name, lambda data: data.update(schema=9), name)
        with pytest.raises(Mistake, match=f"{name} is of schema 9, this tcsweep reads 1: update it"):
            compare.main(list(folders))


@pytest.mark.parametrize(
    ("time", "said"), [(0.0, "holds no time"), (float("nan"), "a time of nan ms"), (None, "a time of None")]
)
def test_a_time_that_is_none_is_refused_with_the_file(time: float | None, said: str, tmp_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        for one in data.get("rounds", ()):
            one["block_wall_ms"] = [time] * len(one["block_wall_ms"])

    with pytest.raises(Mistake, match=said):
        compare.main(list(two(tmp_path, edit)))


def test_a_sweep_without_results_is_refused(tmp_path: Path) -> None:
    folders = two(tmp_path, lambda data: data.update(folders=[]), "sweep.json")
    with pytest.raises(Mistake, match=r"B, .*/b, has no results"):
        compare.main(list(folders))


def test_one_round_says_that_significance_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = compared(capsys, two(tmp_path, lambda data: data.update(rounds=data.get("rounds", [])[:1])))
    assert "one round: no interval, so nobody knows" in text
    assert "not significant" not in text
