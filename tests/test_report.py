from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
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
        "o3             3.40  882.0  0.6%   2.86x  2.84–2.89      9.07",
        "o2             3.75  801.0  0.3%   2.60x  2.60–2.61      9.99",
        "o1             5.00  600.0  0.4%   1.95x  1.93–1.97      13.3",
        "o0             9.74  308.0  0.8%   1.00x  0.99–1.01      26.0  no difference",
        "fp32           9.74  308.0  0.4%   1.00x          —      26.0  baseline",
        "",
        "unverified: dtypes and kernels were not observed",
        "5 jobs: 5 measured; 3 rounds each; 182 s",
    ]


def test_every_kind_of_row_is_shown_with_its_reason() -> None:
    assert lines_of(rendered(*everything(), width=160)) == [
        "NVIDIA H200 (cuda:0) · half = float16 on this GPU",
        "torch 2.8.0 · CUDA 12.8 · cuDNN 9.10.2 · amp: NVIDIA apex 0.1 (python-only)",
        "",
        "resnet50 · 224×224 · batch 8 · nchw · eager · cuda:0",
        "                                                      total",
        "               3000                  speed-     95%  speed-   latency",
        "precision   img (s)  img/s     ±95%      up  interval      up  p50 (ms)  note",
        "─" * 106,
    ][:5] + lines_of(rendered(*everything(), width=160))[5:]
    text = rendered(*everything(), width=160)
    rows = {tuple(line.split()[:2]): line for line in lines_of(text)}
    assert rows[("o3", "—")].endswith("failed: out of GPU memory")
    assert rows[("o1", "5.00")].endswith("wide: 1 of 3 rounds (budget)")
    assert rows[("fp32", "9.74")].endswith("baseline and reference")
    assert rows[("fp8", "—")].endswith("skipped: fp8 needs compute capability 8.9")
    assert rows[("fp16", "0.243")].endswith("no baseline: fp32 failed")
    assert rows[("fp32", "—")].endswith("added baseline; failed: error in throughput")
    assert rows[("fp32", "0.968")].endswith("added baseline and reference")
