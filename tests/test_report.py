from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from tcsweep import report, speedup, store
from tcsweep.job import Environment, Failure, Job, Outcome, Result, Role, Round, Skipped, Sweep
from tcsweep.report import files, plot, progress, table, words
from tcsweep.speedup import Row
from tcsweep.stats import Interval

GPU = Environment(
    device="cuda:0",
    device_name="NVIDIA H200",
    torch="2.8.0",
    cuda="12.8",
    cudnn="9.10.2",
    apex="amp",
    apex_version="0.1",
    apex_build="python-only",
)
JETSON = Environment(device="cuda:0", device_name="Orin", torch="2.5.0", jetpack="6.1", power_mode="MAXN")
CPU = Environment(device="cpu", cpu_model="EPYC 7763", torch="2.8.0+cpu", cuda="12.8")
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB [of 79.1 GiB]"


def job(precision: str = "fp32", **fields: object) -> Job:
    return Job(**{"precision": precision, "device": "cuda:0", "batch": 8, **fields})  # type: ignore[arg-type]


def one_round(of: Job, number: int, rate: float, latencies: int = 11, **fields: object) -> Round:
    ms = of.batch * 10 / rate * 1e3
    values = {
        "number": number,
        "started_at": 0.0,
        "worker_s": 3.0,
        "stage_s": {"start": 0.25, "build": 0.5, "throughput": 9.0},
        "warmup_iterations": 5,
        "block_iterations": 10,
        "block_wall_ms": (ms,) * 4,
        "block_device_ms": None if of.device == "cpu" else (ms,) * 4,
        "latency_ms": (ms / 10,) * latencies,
        "peak_memory_mib": 512.0,
    }
    return Round(**{**values, **fields})  # type: ignore[arg-type]


def measured(
    of: Job,
    index: int,
    *rates: float,
    role: Role = "asked",
    environment: Environment = GPU,
    stopped: str | None = None,
    **fields: object,
) -> Result:
    rounds = tuple(one_round(of, n, rate, **fields) for n, rate in enumerate(rates, 1))  # type: ignore[arg-type]
    return Result(of, role, index, environment, rounds, 0.0, 1.0, stopped=stopped)


def failed(of: Job, index: int, role: Role = "asked", kind: str = "gpu-memory", reason: str = OUT_OF_MEMORY) -> Failure:
    return Failure(of, role, index, GPU, "throughput", kind, reason, 0.0, 1.0, log="worker.log")


def skipped(of: Job, index: int, reason: str = "fp8 needs compute capability 8.9") -> Skipped:
    return Skipped(of, "asked", index, GPU, reason, 0.0, 1.0)


def sweep_of(*outcomes: Outcome, **fields: object) -> Sweep:
    values = {
        "id": "one",
        "started_at": 1.7e9,
        "command": "tcsweep",
        "order_seed": 1,
        "environment": outcomes[0].environment if outcomes else GPU,
        "folders": tuple(o.job.folder for o in outcomes),
        "status": "finished",
        "wall_s": 182.4,
    }
    return Sweep(**{**values, **fields})  # type: ignore[arg-type]


def rendered(*outcomes: Outcome, width: int = 80, encoding: str = "utf-8", **fields: object) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    table.render(sweep_of(*outcomes, **fields), speedup.rows(outcomes), Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def published() -> list[Outcome]:
    """The published benchmark's five levels, with a gain that it did not find."""
    rates = {"o3": (880, 884, 882), "o2": (800, 801, 802), "o1": (600, 599, 601), "o0": (307, 309, 308)}
    o_levels: list[Outcome] = [
        measured(job(p, amp_backend="auto"), i, *r, amp_backend="torch", half_dtype="float16")
        for i, (p, r) in enumerate(rates.items())
    ]
    return [*o_levels, measured(job("fp32"), 4, 308, 308.5, 307.5)]


def everything() -> list[Outcome]:
    """Each kind of row: failed, skipped, short of rounds, without a baseline, added."""
    other = job("fp16", layout="channels_last", batch=256)
    return [
        failed(job("o3", amp_backend="auto"), 0),
        measured(job("o1", amp_backend="auto"), 1, 600.0, stopped="budget", amp_backend="apex", half_dtype="float16"),
        measured(job("fp32"), 2, 308, 308.5, 307.5),
        skipped(job("fp8"), 3),
        measured(other, 4, 12345.0, 12346.0, 12344.0, latencies=2),
        failed(other.cell, 5, role="baseline", kind="error", reason="RuntimeError: no\nsuch thing"),
        measured(other.reference, 6, 3100.0, 3110.0, 3090.0, role="reference"),
    ]


def test_the_table_looks_like_the_published_one() -> None:
    assert lines_of(rendered(*published())) == [
        "NVIDIA H200 (cuda:0) · half = float16 on this GPU",
        "torch 2.8.0 · CUDA 12.8 · cuDNN 9.10.2 · amp: torch-native twin",
        "",
        "resnet50 · 224×224 · batch 8 · nchw · eager · cuda:0",
        "               3000               speed-        95%   latency",
        "precision   img (s)  img/s  ±95%      up   interval  p50 (ms)  note",
        "────────────────────────────────────────────────────────────────────────────",
        "o3             3.40  882.0  0.7%   2.86x  2.85–2.88      9.07",
        "o2             3.75  801.0  0.4%   2.60x  2.58–2.62      9.99",
        "o1             5.00  600.0  0.5%   1.95x  1.93–1.96      13.3",
        "o0             9.74  308.0  1.0%   1.00x  0.99–1.01      26.0  no difference",
        "fp32           9.74  308.0  0.5%   1.00x          —      26.0  baseline",
        "",
        "resnet50 o3 batch 8: 882 img/s is 1% of the published 96029 (INT8, TensorRT,",
        "MLPerf Inference v4.1 datacenter); measured here: o3 2.86x; left: 108.9x",
        "",
        "unverified: dtypes and kernels were not observed",
        "5 jobs: 5 measured; 3 rounds each; 182 s",
    ]


def test_every_kind_of_row_is_shown_with_its_reason() -> None:
    rows = {tuple(line.split()[:2]): line for line in lines_of(rendered(*everything(), width=160))}
    assert rows[("o3", "—")].endswith("  failed: out of GPU memory")
    assert rows[("o1", "5.00")].endswith("  wide: 1 of 3 rounds (budget)")
    assert rows[("fp32", "9.74")].endswith("  baseline and reference")
    assert rows[("fp8", "—")].endswith("  skipped: fp8 needs compute capability 8.9")
    assert rows[("fp16", "0.243")].endswith("  no baseline: fp32 failed")
    assert rows[("fp32", "—")].endswith("  added baseline; failed: error in throughput")
    assert rows[("fp32", "0.968")].endswith("  added baseline and reference")


def test_failures_are_listed_in_full_under_the_tables_with_their_logs() -> None:
    outcomes = everything()
    lines = lines_of(rendered(*outcomes, width=120))
    assert lines[lines.index("wide: repeat with measure=thorough on a quiet machine") + 1 :] == [
        "",
        "failed: resnet50-o3-b8-nchw-eager-cuda0",
        f"  throughput: {OUT_OF_MEMORY}",
        f"  log: {outcomes[0].job.folder}/worker.log",
        "",
        "failed: resnet50-fp32-b256-channels_last-eager-cuda0",
        "  throughput: RuntimeError: no such thing",
        f"  log: {outcomes[5].job.folder}/worker.log",
        "",
        "5 jobs: 3 measured, 1 failed, 1 skipped; 2 added for comparison (1 failed); 1 to 3 rounds each; 182 s",
    ]


def test_a_log_path_is_never_broken_over_lines() -> None:
    assert f"  log: {everything()[5].job.folder}/worker.log" in lines_of(rendered(*everything(), width=40))


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 160])
def test_no_figure_loses_a_digit_at_any_width(width: int) -> None:
    text = rendered(*published(), width=width)
    for figure in ("882.0", "801.0", "600.0", "308.0", "2.86x", "2.60x", "1.95x", "1.00x"):
        assert re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", text), figure
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_but_a_path_is_wider_than_the_terminal(width: int) -> None:
    text = rendered(*everything(), width=width)
    assert [line for line in text.splitlines() if len(line) > width and "log:" not in line] == []


def columns_at(width: int, *outcomes: Outcome) -> list[str]:
    return [c.name for c in table.plan(speedup.rows(outcomes), width).columns]


def test_columns_go_in_order_of_importance_as_the_terminal_narrows() -> None:
    every = ["seconds for 3000 images", "img/s", "±95%", "speed-up", "95% interval of the speed-up", "latency p50"]
    assert columns_at(80, *published()) == every
    assert columns_at(70, *published()) == [c for c in every if "interval" not in c]
    assert columns_at(60, *published()) == ["seconds for 3000 images", "img/s", "speed-up", "latency p50"]
    assert columns_at(50, *published()) == ["seconds for 3000 images", "img/s", "speed-up"]
    assert columns_at(30, *published()) == ["img/s", "speed-up"]


def test_columns_left_out_are_said() -> None:
    said = "not shown at 60 columns, but in summary.csv: 95% interval of the speed-up, ±95%"
    assert said in " ".join(rendered(*published(), width=60).split())
    assert "not shown" not in rendered(*published(), width=80)


def test_the_total_speedup_is_shown_where_layout_or_engine_vary() -> None:
    plain, fast = job("fp32"), job("fp16", engine="cudagraph")
    outcomes = [measured(plain, 0, 100.0), measured(fast.cell, 1, 200.0), measured(fast, 2, 600.0)]
    row = next(line for line in lines_of(rendered(*outcomes)) if line.startswith("fp16"))
    assert row.split() == ["fp16", "5.00", "600.0", "1", "round", "3.00x", "6.00x", "13.3", "wide"]
    assert "total speed-up" not in columns_at(160, *published())


def test_text_that_is_no_terminal_has_no_control_codes() -> None:
    assert "\x1b" not in rendered(*everything())


def test_a_terminal_gets_colours_and_the_same_text() -> None:
    file = io.StringIO()
    outcomes = everything()
    table.render(
        sweep_of(*outcomes), speedup.rows(outcomes), Console(file=file, width=100, force_terminal=True, no_color=False)
    )
    assert "\x1b[" in file.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()) == rendered(*outcomes, width=100)


def test_an_ascii_terminal_gets_ascii_aligned_as_ever() -> None:
    text = rendered(*everything(), width=100, encoding="ascii")
    row = next(line for line in lines_of(text) if line.startswith("o3"))
    assert row.split("|")[-1] == "failed: out of GPU memory"
    assert "resnet50 | 224x224 | batch 8 | nchw | eager | cuda:0" in text


def test_groups_come_as_first_seen_and_asked_rows_first() -> None:
    first, second = job("fp16"), job("fp16", batch=1)
    outcomes = [
        measured(first.cell, 3, 100.0, role="baseline"),
        measured(second, 1, 50.0),
        measured(job("bf16"), 2, 300.0),
        measured(first, 0, 310.0),
    ]
    groups = table.grouped(speedup.rows(outcomes))
    assert [[(r.job.precision, r.job.batch) for r in g] for g in groups] == [
        [("fp16", 8), ("bf16", 8), ("fp32", 8)],
        [("fp16", 1)],
    ]


def test_jobs_alike_in_precision_are_told_apart() -> None:
    jobs = [job("o1", amp_backend="apex"), job("o1", amp_backend="torch"), job("o2", amp_backend="apex")]
    assert words.precision_labels([*jobs, job("fp32"), job("fp32", repeat=1)]) == [
        "o1 apex",
        "o1 torch",
        "o2",
        "fp32",
        "fp32 r2",
    ]


def test_the_heading_names_power_mode_and_what_half_meant() -> None:
    assert lines_of(rendered(measured(job("fp32"), 0, 30.0, environment=JETSON)))[:2] == [
        "Orin (cuda:0) · JetPack 6.1 · power mode MAXN",
        "torch 2.5.0",
    ]
    on_cpu = job("o1", amp_backend="auto", device="cpu")
    twin = measured(on_cpu, 0, 30.0, environment=CPU, amp_backend="torch", half_dtype="bfloat16")
    assert lines_of(rendered(twin))[:2] == [
        "EPYC 7763 (cpu) · half = bfloat16 on this CPU",
        "torch 2.8.0+cpu · amp: torch-native twin",
    ]


def test_notes_of_the_workers_and_removed_variables_are_said_once() -> None:
    environment = Environment(device="cuda:0", removed_variables=("NVIDIA_TF32_OVERRIDE",))
    outcomes = [
        measured(job("bf16", batch=b), i, 30.0, 31.0, environment=environment, notes=("bf16 is emulated on this GPU",))
        for i, b in enumerate((1, 2))
    ]
    text = rendered(*outcomes)
    assert text.count("bf16: bf16 is emulated on this GPU") == 1
    said = "taken out of the workers' environment, as they change results: NVIDIA_TF32_OVERRIDE"
    assert said in " ".join(text.split())


def test_an_interrupted_sweep_says_what_it_did_not_reach() -> None:
    done = measured(job("fp16"), 0, 30.0)
    text = rendered(done, status="interrupted", wall_s=None, folders=("a", "b", "c"))
    assert lines_of(text)[-1] == "interrupted; 3 jobs: 1 measured, 2 not reached; 1 round"


def test_a_sweep_without_outcomes_is_still_said() -> None:
    assert lines_of(rendered())[-1] == "0 jobs: 0 measured; 182 s"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (float("nan"), "—"),
        (float("inf"), "—"),
        (0.0, "0.00"),
        (0.04214, "0.0421"),
        (0.832, "0.832"),
        (0.9999, "1.00"),
        (9.724, "9.72"),
        (9.999, "10.0"),
        (308.44, "308.4"),
        (999.96, "1000"),
        (12345.6, "12346"),
    ],
)
def test_numbers_keep_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_speedups_shares_and_durations_are_short() -> None:
    assert [words.times(v) for v in (2.861, 0.5, 0.042, 12.34, None)] == ["2.86x", "0.50x", "0.0420x", "12.3x", "—"]
    assert [words.percent(v) for v in (0.0004, 0.034, 0.19, 0.0, None)] == ["0.04%", "3.4%", "19%", "0.0%", "—"]
    assert words.span(Interval(2.814, 2.906)) == "2.81–2.91"
    assert [words.duration(s) for s in (41.6, 750, 7500)] == ["42 s", "12 min 30 s", "2 h 05 min"]


# Files


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


SEEN = (
    *("tensor_core_time_fraction", "unknown_time_fraction", "gpu_busy_fraction", "achieved_tflop_s", "peak_tflop_s"),
    *("layerwise_roof_img_s", "roof_fraction", "relative_error", "sm_mhz", "power_w", "temperature_c"),
)


def test_the_csv_has_a_line_a_job_with_exact_values(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    base, fast = measured(job("fp32"), 0, 100.0), measured(job("o1", amp_backend="auto"), 1, 200.0, amp_backend="torch")
    files.write_csv(path, speedup.rows([base, fast]))
    assert csv_rows(path)[1] == {
        "index": "1",
        "role": "asked",
        "status": "ok",
        "model": "resnet50",
        "weights": "",
        "image_size": "224",
        "precision": "o1",
        "amp_backend": "torch",
        "half_dtype": "",
        "batch": "8",
        "layout": "nchw",
        "engine": "eager",
        "device": "cuda:0",
        "throughput_img_s": "200.0",
        "throughput_ci95_low": "",
        "throughput_ci95_high": "",
        "throughput_ci95_within_low": "200.0",
        "throughput_ci95_within_high": "200.0",
        "speedup": "2.0",
        "speedup_ci95_low": "",
        "speedup_ci95_high": "",
        "speedup_total": "2.0",
        "time_3000_images_s": "15.0",
        "wall_ms": "40.0",
        "device_ms": "40.0",
        "latency_ms_p50": "40.0",
        "latency_ms_p90": "",
        "latency_ms_p95": "",
        "latency_ms_p99": "",
        "peak_memory_mib": "512.0",
        "setup_s": "0.75",
        "rounds": "1",
        "sustained_s": "1.6",
        "verdict": "unverified",
        "reason": "dtypes and kernels were not observed",
        "folder": fast.job.folder,
        **dict.fromkeys(("dtypes", *SEEN, "energy_j_per_img"), ""),
        "isolation": "process",
        **dict.fromkeys(("power", "power_mode", "throughput_img_s_w", "power_of", "board_memory_mib"), ""),
        "verdicts": "unverified wide",
        "cause": "",
        "causes": "not seen: what ran: measure it again with this version",
    }


def test_the_csv_leaves_empty_what_a_failed_or_skipped_job_lacks(tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    files.write_csv(
        path, speedup.rows([failed(job("o3", amp_backend="auto"), 0, reason="a,\nb"), skipped(job("fp8"), 1)])
    )
    filled = [{k: v for k, v in row.items() if v} for row in csv_rows(path)]
    assert [(r["status"], r["reason"], r.get("rounds")) for r in filled] == [
        ("failed", "a, b", "0"),
        ("skipped", "fp8 needs compute capability 8.9", None),
    ]
    assert not {"throughput_img_s", "speedup", "amp_backend", "verdict"} & (filled[0].keys() | filled[1].keys())
    assert not re.search(r"nan|inf|None", path.read_text())


# Pictures


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def by_batch(batches: range, *precisions: str) -> list[Outcome]:
    jobs = [job(p, batch=b) for b in batches for p in precisions]
    return [measured(j, i, 100.0 * j.batch, 101.0 * j.batch) for i, j in enumerate(jobs)]


ODD = {
    "one job": [measured(job("fp32"), 0, 3.2)],
    "every kind of row": everything(),
    "forty batches": by_batch(range(1, 41), "fp16", "fp32"),
    "a wide range": [measured(job("fp32"), 0, 7.5), measured(job("fp16"), 1, 0.032)],
    "all failed": [failed(job("fp32"), 0), skipped(job("fp8"), 1)],
    "lines with a gap": [*by_batch(range(1, 9), "fp16"), failed(job("fp16", batch=256), 8)],
    "nothing": [],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD)
def test_a_picture_is_drawn_of(name: str, tmp_path: Path) -> None:
    plot.draw(tmp_path / "p.png", sweep_of(*ODD[name]), speedup.rows(ODD[name]))
    assert png_size(tmp_path / "p.png")[0] == 1320
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_picture_has_six_panel_rows_at_most(tmp_path: Path) -> None:
    many = [measured(job("fp32", model=f"m{n}"), n, 10.0) for n in range(9)]
    plot.draw(tmp_path / "many.png", sweep_of(*many), speedup.rows(many))
    plot.draw(tmp_path / "six.png", sweep_of(*many[:6]), speedup.rows(many[:6]))
    assert png_size(tmp_path / "many.png") == png_size(tmp_path / "six.png")


def test_panels_of_added_jobs_only_are_left_out() -> None:
    asked = job("fp16", layout="channels_last")
    outcomes = [
        measured(asked, 0, 30.0),
        measured(asked.cell, 1, 10.0, role="baseline"),
        measured(asked.reference, 2, 9.0, role="reference"),
    ]
    (panel,) = plot.panels(speedup.rows(outcomes))
    assert (panel.title, [s.label for s in panel.series]) == (
        "resnet50 · 224×224 · channels_last · eager · cuda:0",
        ["fp32", "fp16"],
    )


def test_a_picture_leaves_no_trace_in_the_process(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.rcParams["axes.spines.top"] = True
    plot.draw(tmp_path / "p.png", sweep_of(*published()), speedup.rows(published()))
    assert matplotlib.rcParams["axes.spines.top"] is True


def test_the_report_package_does_not_import_matplotlib_and_draws_where_home_is_no_folder(tmp_path: Path) -> None:
    save(tmp_path / "sweep", published())
    code = (
        "import sys, pathlib, tcsweep.report as r, tcsweep.report.table, tcsweep.report.progress\n"
        "assert not [m for m in ('matplotlib', 'torch', 'mlflow') if m in sys.modules]\n"
        f"r.write(pathlib.Path({str(tmp_path / 'sweep')!r}))\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    }
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": "/dev/null", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert png_size(tmp_path / "sweep" / "throughput.png")[0] == 1320


# All of it


def save(folder: Path, outcomes: list[Outcome]) -> None:
    store.save_sweep(folder, sweep_of(*outcomes))
    for outcome in outcomes:
        store.save_outcome(folder, outcome)


def test_write_makes_the_files_of_a_saved_sweep(tmp_path: Path) -> None:
    save(tmp_path, everything())
    rows = report.write(tmp_path)
    assert rows == speedup.rows(everything())
    assert [r["folder"] for r in csv_rows(tmp_path / "summary.csv")] == [r.job.folder for r in rows]
    assert png_size(tmp_path / "throughput.png")[0] == 1320


def test_a_picture_that_cannot_be_drawn_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, sweep: Sweep, rows: list[Row]) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr(plot, "draw", refuse)
    save(tmp_path, published())
    assert len(report.write(tmp_path)) == 5
    assert capsys.readouterr().err == "throughput.png was not drawn: RuntimeError: no fonts\n"


# Progress


def test_a_file_that_is_to_be_coloured_is_no_terminal_to_redraw() -> None:
    assert isinstance(progress.pick(Console(file=io.StringIO(), force_terminal=True)), progress.PlainProgress)


def test_plain_progress_is_a_line_a_finished_round_and_a_failure() -> None:
    file = io.StringIO()
    one = progress.pick(Console(file=file, force_terminal=False))
    assert isinstance(one, progress.PlainProgress)
    one.started(10, 4)
    one.round_started("a", 1, 3)
    one.stage("build")
    one.estimate(12.0, 0.02)
    one.round_done("a", 1, 1234.5)
    one.failed("b", "precision=o3 batch=8", "out of\nmemory")
    one.added_rounds(-2)
    one.skipped("c", "no fp8 here")
    one.round_started("a", 2, 3)
    one.round_done("a", 2, 0.0321)
    one.close()
    assert file.getvalue().splitlines() == [
        "4 jobs, 10 rounds",
        "[ 1/10] a, round 1 of 3: 1234 img/s",
        "failed: b: out of memory [precision=o3 batch=8]",
        "skipped: c: no fp8 here",
        "[2/8] a, round 2 of 3: 0.0321 img/s",
    ]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_terminal(width: int = 80) -> tuple[progress.TerminalProgress, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=width, force_terminal=True, color_system=None)
    return progress.TerminalProgress(console, clock), file, clock


def test_terminal_progress_draws_four_times_a_second_at_most() -> None:
    one, file, clock = a_terminal()
    one.started(100, 10)
    for step in range(2000):  # ten seconds
        clock.now = 100.0 + step / 200
        one.stage(f"stage {step}")
    drawn = file.getvalue().count("/100 rounds")
    one.close()
    assert 36 <= drawn <= 41


def test_estimates_leave_room_for_what_happens() -> None:
    one, file, clock = a_terminal()
    one.started(100, 10)
    for step in range(1000):  # ten seconds
        clock.now = 100.0 + step / 100
        one.estimate(1000.0 + step, 0.02)
    assert 18 <= file.getvalue().count("/100 rounds") <= 21
    one.stage("latency")
    assert "latency" in file.getvalue()
    one.close()


def test_terminal_progress_shows_job_round_estimate_and_time_left() -> None:
    one, file, clock = a_terminal()
    one.started(4, 2)
    one.round_started("resnet50-fp16", 1, 2)
    clock.now += 10
    one.round_done("resnet50-fp16", 1, 50.0)
    clock.now += 2
    one.round_started("resnet50-o1", 2, 2)
    one.stage("throughput")
    clock.now += 2
    one.estimate(1234.0, 0.012)
    one.stage("throughput")
    last = file.getvalue().split("resnet50-o1")[-1]
    one.close()
    assert "round 2 of 2  1234 img/s ±1.2%" in last
    assert "1/4 rounds  14 s, about 26 s left" in last


def test_a_label_too_long_for_the_line_gets_its_own() -> None:
    one, file, _ = a_terminal(width=60)
    one.started(4, 2)
    one.round_started("efficientnet_v2_s-fp16-b128-channels_last-cudagraph-cuda0", 1, 2)
    assert "efficientnet_v2_s-fp16-b128-channels_last-cudagraph-cuda0" in file.getvalue()
    one.close()


def test_failures_are_printed_above_the_bar_when_they_happen() -> None:
    one, file, _ = a_terminal(width=120)
    one.started(4, 2)
    one.failed("resnet50-o3", "precision=o3", "out of [bold]memory[/bold]")
    above, below = file.getvalue().split("failed: resnet50-o3: out of [bold]memory[/bold] [precision=o3]")
    assert "0/4 rounds" in above
    assert "0/4 rounds" in below
    one.close()


def test_progress_may_be_closed_twice_and_told_more() -> None:
    one, _, _ = a_terminal()
    one.close()
    one.started(4, 2)
    one.close()
    one.close()
    one.stage("late")
    one.message("told")


@pytest.mark.parametrize(("power", "panels"), [(None, 2), ("15w", 3)])
def test_the_picture_has_throughput_per_watt_where_power_modes_were_chosen_only(
    tmp_path: Path, power: str | None, panels: int
) -> None:
    outcomes = [measured(job("fp32", power=power), 0, 100.0)]
    plot.draw(tmp_path / "p.png", sweep_of(*outcomes), speedup.rows(outcomes))
    assert imread(tmp_path / "p.png").shape[1] == panels * 5.5 * 120


def test_the_heading_names_the_module_and_every_power_mode() -> None:
    modes = [
        dataclasses.replace(JETSON, module="NVIDIA Jetson AGX Orin", power_mode=m) for m in ("MAXN (0)", "15W (2)")
    ]
    outcomes = [measured(job("fp32", power=m.power_mode), i, 100.0, environment=m) for i, m in enumerate(modes)]
    heading = "Orin (cuda:0) · NVIDIA Jetson AGX Orin · JetPack 6.1 · power modes MAXN (0), 15W (2)"
    assert lines_of(rendered(*outcomes, width=120))[0] == heading
