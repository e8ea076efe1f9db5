"""What MLflow is to hold of a sweep: a parent run, and a child of each outcome. From what is on disk; sends nothing."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tcsweep.job import Environment, Failure, Job, Outcome, Result, Round, Skipped, Sweep
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.store import RESULT, SWEEP, write_file
from tcsweep.tracking_uri import redact

# Longest parameter values, tried in turn: the servers' limit was 250 before MLflow 1.28, then 500, 6000 since 2.9.
PARAM_LIMITS = (500, 250)
TAG_LIMIT = 5000  # of older servers; 8000 today
SAMPLES = "samples.csv"
STATUSES: dict[type[Any], str] = {Result: "FINISHED", Skipped: "FINISHED", Failure: "FAILED"}
SWEEP_STATUSES = {"running": "RUNNING", "finished": "FINISHED", "interrupted": "KILLED"}
ENVIRONMENT_TAGS = (
    *("gpu_uuid", "compute_capability", "driver", "cuda", "cudnn", "torch", "torchvision"),
    *("apex", "apex_version", "apex_build", "python", "host", "os", "cpu_model", "cpu_threads"),
    *("l4t", "jetpack", "power_mode", "tcsweep", "git_commit"),
)


@dataclass(frozen=True)
class Run:
    """All that one MLflow run is to hold."""

    id: str  # value of the tag tcsweep.result_id
    name: str
    status: str
    started_at: float
    ended_at: float
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """Differs when anything to be sent differs: after a resumed sweep, or with a new plot."""
        sizes = [(p.name, p.stat().st_size) for p in self.files]
        facts = [self.name, self.status, self.started_at, self.ended_at, self.tags, self.params, self.metrics, sizes]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def params_cut(self) -> tuple[dict[str, str], ...]:
        """The parameters as they are to be tried, cut to each of PARAM_LIMITS."""
        return tuple({k: cut(v, limit) for k, v in self.params.items()} for limit in PARAM_LIMITS)


def child_run(sweep: Sweep, row: Row, folder: Path) -> Run:
    """The run of one outcome."""
    outcome, job = row.outcome, row.job
    params = _params(outcome)
    tags: dict[str, Any] = {
        "tcsweep.role": outcome.role,
        "tcsweep.kind": {"ok": "result", "failed": "failure", "skipped": "skipped"}[outcome.status],
        "tcsweep.verdict": row.verdict,
        "tcsweep.reason": _reasons(row),
        "tcsweep.image_size": job.image_size,
        "tcsweep.weights": job.weights,
        "tcsweep.measure": job.measure.name,
        "mlflow.note.content": _note(row),
        **{f"tcsweep.param.{k}": v for k, v in params.items() if len(v) > PARAM_LIMITS[-1]},
        **_environment_tags(outcome.environment, outcome.rounds),
    }
    return Run(
        id=f"{sweep.id}/{job.id}",
        name=_name(sweep, outcome),
        status=STATUSES[type(outcome)],
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        tags=_tags(sweep, tags),
        params=params,
        metrics=_metrics(row),
        files=_files(folder, RESULT, SAMPLES, "config.yaml"),
    )


def parent_run(sweep: Sweep, table: list[Row], folder: Path, experiment_id: str) -> Run:
    """The run of the sweep as a whole."""
    ended = [row.outcome.ended_at for row in table]
    tags: dict[str, Any] = {
        "tcsweep.kind": "sweep",
        "tcsweep.command": redact(sweep.command),
        "mlflow.note.content": _sweep_note(sweep, table, experiment_id),
        **_environment_tags(sweep.environment, ()),
    }
    return Run(
        id=sweep.id,
        name=sweep.name or f"sweep {sweep.id}",
        status=SWEEP_STATUSES[sweep.status],
        started_at=sweep.started_at,
        ended_at=sweep.ended_at or max(ended, default=sweep.started_at),
        tags=_tags(sweep, tags),
        files=_files(folder, SWEEP, "summary.csv", "*.png", "config.yaml"),
    )


def _params(outcome: Outcome) -> dict[str, str]:
    job = outcome.job
    device = outcome.environment.device if job.device == "auto" else job.device
    return {k: str(v) for k, v in {**job.axes, "device": device}.items()}


def _metrics(row: Row) -> dict[str, float]:
    """In the order that MLflow's pages show: its Compare page opens on the metric logged first."""
    f = row.figures
    if f is None:
        return {}

    def ends(name: str, interval: Interval | None) -> dict[str, float | None]:
        low, high = (interval.low, interval.high) if interval else (None, None)
        return {f"{name}_low": low, f"{name}_high": high}

    values: dict[str, float | None] = {
        "throughput_img_s": f.throughput_img_s,
        **ends("throughput_ci95", f.throughput_ci95),
        "speedup": row.speedup.value,
        **ends("speedup_ci95", row.speedup.ci95),
        "speedup_total": row.speedup_total.value,
        "latency_ms_p50": f.latency_ms_p50,
        "latency_ms_p90": f.latency_ms_p90,
        "latency_ms_p95": f.latency_ms_p95,
        "latency_ms_p99": f.latency_ms_p99,
        "device_ms": f.device_ms,
        "wall_ms": f.wall_ms,
        "peak_memory_mib": f.peak_memory_mib,
        "setup_s": f.setup_s,
        "energy_j_per_img": f.energy_j_per_img,
        **_evidence_metrics(row),
    }
    return {k: float(f"{v:.6g}") for k, v in values.items() if v is not None and math.isfinite(v)}


EVIDENCE_METRICS = (
    *("tensor_core_time_fraction", "unknown_time_fraction", "gpu_busy_fraction", "achieved_tflop_s", "peak_tflop_s"),
    *("layerwise_roof_img_s", "roof_fraction", "relative_error", "sm_mhz", "power_w", "temperature_c"),
)


def _evidence_metrics(row: Row) -> dict[str, float | None]:
    if row.seen is None:
        return {}
    kinds = {f"kernel_ms_{re.sub('[^a-z]+', '_', kind.lower())}": ms for kind, ms in row.seen.ms_by_kind.items()}
    return {**{name: getattr(row.seen, name) for name in EVIDENCE_METRICS}, **kinds}


def _environment_tags(environment: Environment, rounds: tuple[Round, ...]) -> dict[str, Any]:
    tags = {f"env.{name}": getattr(environment, name) for name in ENVIRONMENT_TAGS}
    if environment.device != "cpu":
        tags["env.gpu"] = environment.device_name
    for name in ("amp_backend", "amp_version", "half_dtype"):
        tags[f"env.{name}"] = next((v for r in rounds if (v := getattr(r, name)) is not None), None)
    return {**tags, "mlflow.source.git.commit": environment.git_commit}


def _tags(sweep: Sweep, more: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "tcsweep.sweep_id": sweep.id,
        **more,
        "mlflow.source.name": "tcsweep",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    return {k: cut(str(v), TAG_LIMIT) for k, v in tags.items() if v is not None}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return None


def cut(text: str, limit: int) -> str:
    """The text, its end replaced by a mark where it is too long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _name(sweep: Sweep, outcome: Outcome) -> str:
    """The job's axes, those left at their default unsaid."""
    job, plain = outcome.job, Job()
    parts = [job.model, job.precision, f"b{job.batch}"]
    parts += [v for v, default in ((job.layout, plain.layout), (job.engine, plain.engine)) if v != default]
    parts += [f"{job.image_size}px"] if job.image_size != plain.image_size else []
    parts += [Path(job.weights).name] if job.weights else []
    parts += [job.amp_backend] if job.amp_backend not in (None, "auto") else []
    parts += [job.device] if job.device not in ("auto", sweep.environment.device) else []
    parts += [f"#{job.repeat + 1}"] if job.repeat else []
    parts += [f"({outcome.role})"] if outcome.role != "asked" else []
    return cut(" ".join(parts), 250)


def _note(row: Row) -> str:
    """One plain line: the table's Description column shows it raw."""
    if not isinstance(row.outcome, Result) or row.figures is None:
        return f"{row.outcome.status}: {getattr(row.outcome, 'reason', '')}"
    parts = [f"{_say(row.figures.throughput_img_s)} img/s"]
    if row.speedup.value is not None and not row.job.is_baseline:
        parts.append(f"{row.speedup.value:.2f}x fp32")
    said = [f"{v.name}: {'; '.join(v.reasons)}" for v in row.verdicts[:1]]
    return ", ".join([*parts, *(said or [row.verdict or ""])])


def _reasons(row: Row) -> str | None:
    if not isinstance(row.outcome, Result):
        return row.outcome.reason
    return "; ".join(reason for v in row.verdicts[:1] for reason in v.reasons) or None


def _sweep_note(sweep: Sweep, table: list[Row], experiment_id: str) -> str:
    kinds = [row.outcome.status for row in table]
    counts = [f"{kinds.count('ok')} measured", *(f"{kinds.count(k)} {k}" for k in ("failed", "skipped") if k in kinds)]
    measured = [(r.figures.throughput_img_s, _name(sweep, r.outcome)) for r in table if r.figures]
    best = [f"best {_say(max(measured)[0])} img/s: {max(measured)[1]}"] if measured else []
    line = f"{', '.join(counts + best)}; {sweep.status}"
    return f"{line}\n\n[Table of this sweep, fastest first]({sweep_page(experiment_id, sweep.id)})"


def _say(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _files(folder: Path, *patterns: str) -> tuple[Path, ...]:
    return tuple(p for pattern in patterns for p in sorted(folder.glob(pattern)) if p.is_file())


def write_samples(folder: Path, rounds: tuple[Round, ...]) -> None:
    """Write the raw times beside result.json as CSV, unless they are there and no older. Throughput: whole blocks."""
    path, source = folder / SAMPLES, folder / RESULT
    if not rounds or (path.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns):
        return
    lines = ["round,phase,index,value_ms"]
    for one in rounds:
        for phase, values in (("throughput", one.block_wall_ms), ("latency", one.latency_ms)):
            lines += [f"{one.number},{phase},{index},{value!r}" for index, value in enumerate(values)]
    write_file(path, "\n".join(lines) + "\n")


def sweep_page(experiment_id: str, sweep_id: str) -> str:
    """The run table of one sweep, fastest first. MLflow opens in its GenAI mode without `workflowType`."""
    wanted = quote(f"tags.`tcsweep.sweep_id` = '{sweep_id}'", safe="")
    order = quote("metrics.`throughput_img_s`", safe="")
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&searchFilter={wanted}&orderByKey={order}&orderByAsc=false"
    )
