"""summary.csv: every job of a sweep on a line, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tcsweep.job import Failure, Skipped
from tcsweep.report.words import one_line, seconds_for_images
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.store import write_file
from tcsweep.why import Neighbours, causes, main_cause

SUMMARY = "summary.csv"


def _figure(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.figures, name) if row.figures else None


def _seen(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.seen, name) if row.seen else None


def _job(name: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row.job, name)


def _ends(name: str, interval: Callable[[Row], Interval | None]) -> dict[str, Callable[[Row], Any]]:
    def end(side: str) -> Callable[[Row], Any]:
        return lambda row: getattr(interval(row), side, None)

    return {f"{name}_{side}": end(side) for side in ("low", "high")}


def _used(row: Row, name: str) -> str | None:
    """What a job's rounds say of themselves, once."""
    values = dict.fromkeys(getattr(r, name) for r in row.outcome.rounds)
    return " ".join(v for v in values if v) or None


def _reason(row: Row) -> str | None:
    """Why a job has no figures, or why a figure is missing or not to be trusted."""
    if isinstance(row.outcome, (Failure, Skipped)):
        return one_line(row.outcome.reason)
    gravest = row.verdicts[0].reasons if row.verdicts else ()
    return "; ".join(filter(None, (row.speedup.reason, *gravest))) or None


# Column by column; names are stable, new columns are added at the end.
COLUMNS: dict[str, Callable[[Row], Any]] = {
    "index": lambda row: row.outcome.index,
    "role": lambda row: row.outcome.role,
    "status": lambda row: row.outcome.status,
    "model": _job("model"),
    "weights": _job("weights"),
    "image_size": _job("image_size"),
    "precision": _job("precision"),
    "amp_backend": lambda row: _used(row, "amp_backend"),
    "half_dtype": lambda row: _used(row, "half_dtype"),
    "batch": _job("batch"),
    "layout": _job("layout"),
    "engine": _job("engine"),
    "device": _job("device"),
    "throughput_img_s": _figure("throughput_img_s"),
    **_ends("throughput_ci95", lambda row: row.figures.throughput_ci95 if row.figures else None),
    **_ends("throughput_ci95_within", lambda row: row.figures.throughput_ci95_within if row.figures else None),
    "speedup": lambda row: row.speedup.value,
    **_ends("speedup_ci95", lambda row: row.speedup.ci95),
    "speedup_total": lambda row: row.speedup_total.value,
    "time_3000_images_s": lambda row: seconds_for_images(row.figures) if row.figures else None,
    "wall_ms": _figure("wall_ms"),
    "device_ms": _figure("device_ms"),
    "latency_ms_p50": _figure("latency_ms_p50"),
    "latency_ms_p90": _figure("latency_ms_p90"),
    "latency_ms_p95": _figure("latency_ms_p95"),
    "latency_ms_p99": _figure("latency_ms_p99"),
    "peak_memory_mib": _figure("peak_memory_mib"),
    "setup_s": _figure("setup_s"),
    "rounds": lambda row: None if isinstance(row.outcome, Skipped) else len(row.outcome.rounds),
    "sustained_s": _figure("sustained_s"),
    "verdict": lambda row: row.verdict,
    "reason": _reason,
    "folder": lambda row: row.job.folder,
    "dtypes": lambda row: " ".join(row.seen.dtypes) if row.seen else None,
    "tensor_core_time_fraction": _seen("tensor_core_time_fraction"),
    "unknown_time_fraction": _seen("unknown_time_fraction"),
    "gpu_busy_fraction": _seen("gpu_busy_fraction"),
    "achieved_tflop_s": _seen("achieved_tflop_s"),
    "peak_tflop_s": _seen("peak_tflop_s"),
    "layerwise_roof_img_s": _seen("layerwise_roof_img_s"),
    "roof_fraction": _seen("roof_fraction"),
    "relative_error": _seen("relative_error"),
    "sm_mhz": _seen("sm_mhz"),
    "power_w": _seen("power_w"),
    "temperature_c": _seen("temperature_c"),
    "energy_j_per_img": _figure("energy_j_per_img"),
    "isolation": _job("isolation"),
    "power": _job("power"),
    "power_mode": lambda row: row.outcome.environment.power_mode,
    "throughput_img_s_w": _seen("throughput_img_s_w"),
    "power_of": lambda row: next((r.device_state.power_of for r in row.outcome.rounds if r.device_state), None),
    "board_memory_mib": _seen("board_memory_mib"),
    "verdicts": lambda row: " ".join(v.name for v in row.verdicts) or None,
}


def columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], Any]]:
    """All columns: a row's own, and those that the whole sweep is asked for."""
    others = Neighbours(rows)
    return {
        **COLUMNS,
        "cause": lambda row: getattr(main_cause(row, others), "name", None),
        "causes": lambda row: one_line("; ".join(causes(row, others))) or None,
    }


def _cell(value: Any) -> Any:
    """Ten digits of a number: a mean over rounds has dust in its last ones (199.99999999999991)."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line a job, whatever came of it; empty where there is no value. Readers see the old file or the new."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shown = columns(rows)
    writer.writerow(shown)
    writer.writerows([_cell(show(row)) for show in shown.values()] for row in rows)
    write_file(path, text.getvalue())
