"""What MLflow is to hold of a sweep: a parent run, and a child of each outcome. From what is on disk; sends nothing."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tcsweep.evidence.figures import timed
from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Failure, Job, Outcome, Result, Round, Skipped, Sweep
from tcsweep.owner import is_dead
from tcsweep.report.words import COLOURS, OTHER_COLOUR, device_title, number, times
from tcsweep.speedup import Row
from tcsweep.stats import Interval
from tcsweep.store import RESULT, SWEEP, write_file
from tcsweep.tracking_uri import redact
from tcsweep.why import Neighbours, in_a_line, lines, main_cause

T = TypeVar("T")

# Longest parameter values, tried in turn: the servers' limit was 250 before MLflow 1.28, then 500, 6000 since 2.9.
PARAM_LIMITS = (500, 250)
TAG_LIMIT = 5000  # of older servers; 8000 today
SAMPLES = "samples.csv"
SERIES_POINTS = 100  # of one series; all samples are in `SAMPLES` and result.json
NOTE_ROWS = 30  # in the sweep's note
PLOT = "throughput.png"
KILLED = "KILLED"
BEFORE_TIMED = ("start", "context", "build", "input", "first_call", "warmup")  # stages
# MLflow shows system/ on a page of its own, with a time axis.
DEVICE_SERIES = {
    "system/gpu_clock_sm_mhz": "sm_mhz",
    "system/gpu_power_w": "power_w",
    "system/gpu_temperature_c": "temperature_c",
}
STATUSES: dict[type[Any], str] = {Result: "FINISHED", Skipped: "FINISHED", Failure: "FAILED"}
SWEEP_STATUSES = {"running": "RUNNING", "finished": "FINISHED", "interrupted": "KILLED"}
ENVIRONMENT_TAGS = (
    *("gpu_uuid", "compute_capability", "driver", "cuda", "cudnn", "torch", "torchvision"),
    *("apex", "apex_version", "apex_build", "python", "host", "os", "cpu_model", "cpu_threads"),
    *("l4t", "jetpack", "module", "soc", "power_mode", "clocks_locked", "shared_memory"),
    *("cpu_mhz_max", "gpu_mhz_max", "emc_mhz_max", "tcsweep", "git_commit"),
)


@dataclass(frozen=True)
class Point:
    """One value of a series."""

    at_ms: int
    step: int
    value: float


@dataclass(frozen=True)
class Dataset:
    """The images, for MLflow's field of that name."""

    name: str
    digest: str  # 36 characters at most
    source: str  # JSON


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
    series: dict[str, tuple[Point, ...]] = field(default_factory=dict)
    dataset: Dataset | None = None

    @property
    def digest(self) -> str:
        """Differs when anything to be sent differs: after a resumed sweep, or with a new plot."""
        sizes = [(p.name, p.stat().st_size) for p in self.files]
        facts = [self.name, self.status, self.started_at, self.ended_at, self.tags, self.params, self.metrics, sizes]
        facts += [{name: [asdict(p) for p in points] for name, points in self.series.items()}]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def params_cut(self) -> tuple[dict[str, str], ...]:
        """The parameters as they are to be tried, cut to each of PARAM_LIMITS."""
        return tuple({k: cut(v, limit) for k, v in self.params.items()} for limit in PARAM_LIMITS)


def best_of(table: Sequence[Row]) -> Row | None:
    """The fastest result that can be used."""
    return max(_usable(table), key=_throughput, default=None)


def best_of_each_precision(table: Sequence[Row]) -> list[Row]:
    """The fastest usable result of each precision, best first."""
    found: dict[str, Row] = {}
    for row in sorted(_usable(table), key=_throughput, reverse=True):
        found.setdefault(row.job.precision, row)
    return list(found.values())


def _usable(table: Sequence[Row]) -> list[Row]:
    usable = [row for row in table if row.figures is not None and row.verdict != SUSPECT]
    return [row for row in usable if row.outcome.role != "stored"]  # that one has a run of its own


def _throughput(row: Row) -> float:
    return row.figures.throughput_img_s if row.figures else 0.0


@dataclass(frozen=True)
class Whole:
    """A sweep with what its runs have to know of each other."""

    sweep: Sweep
    table: Sequence[Row]
    best: Row | None
    backends: bool  # whether the amp backend tells jobs apart; else it follows from the precision
    others: Neighbours = field(default_factory=lambda: Neighbours(()))

    @classmethod
    def of(cls, sweep: Sweep, table: Sequence[Row]) -> Whole:
        """From the sweep's rows."""
        backends = {row.job.amp_backend for row in table if row.job.amp_backend}
        return cls(sweep, table, best_of(table), len(backends) > 1, Neighbours(table))


def child_run(whole: Whole, row: Row, folder: Path) -> Run:
    """The run of one outcome."""
    sweep, best = whole.sweep, row is whole.best
    outcome, job = row.outcome, row.job
    params = _params(outcome, whole.backends)
    tags: dict[str, Any] = {
        "tcsweep.role": outcome.role,
        "tcsweep.kind": {"ok": "result", "failed": "failure", "skipped": "skipped"}[outcome.status],
        "tcsweep.verdict": row.verdict,
        "tcsweep.reason": _reasons(row),
        "tcsweep.image_size": job.image_size,
        "tcsweep.weights": job.weights and Path(job.weights).name,
        "tcsweep.weights_sha256": next((r.weights_sha256 for r in outcome.rounds if r.weights_sha256), None),
        "tcsweep.best": "true" if best else None,
        "mlflow.runColor": COLOURS.get(job.precision, OTHER_COLOUR),
        "tcsweep.measure": job.measure.name,
        "tcsweep.cause": getattr(main_cause(row, whole.others), "name", None),
        "mlflow.note.content": _note(row, whole),
        **{f"tcsweep.param.{k}": v for k, v in params.items() if len(v) > PARAM_LIMITS[-1]},
        **_environment_tags(outcome.environment, outcome.rounds),
    }
    return Run(
        id=f"{sweep.id}/{job.id}",
        name=_marked(_name(whole, outcome), row, best),
        status=STATUSES[type(outcome)],
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        tags=_tags(sweep, tags),
        params=params,
        metrics=_metrics(row),
        files=_files(folder, RESULT, SAMPLES, "config.yaml"),
        series=_series(outcome.rounds),
        dataset=_dataset(outcome),
    )


def parent_run(whole: Whole, folder: Path, links: str = "", run_id: str | None = None) -> Run:
    """The run of the sweep as a whole; its note has the `links`, a table, and the plot that is an artifact of
    `run_id`."""
    sweep = whole.sweep
    ended = [row.outcome.ended_at for row in whole.table]
    tags: dict[str, Any] = {
        "tcsweep.kind": "sweep",
        "tcsweep.command": redact(sweep.command),
        "tcsweep.owner": None if sweep.owner is None else json.dumps(asdict(sweep.owner)),
        "tcsweep.owner_host": sweep.owner and sweep.owner.host,
        "mlflow.note.content": _sweep_note(whole, links, run_id if _files(folder, PLOT) else None),
        **_environment_tags(sweep.environment, ()),
    }
    return Run(
        id=sweep.id,
        name=sweep.name or f"sweep {sweep.id}",
        status=KILLED if is_killed(sweep) else SWEEP_STATUSES[sweep.status],
        started_at=sweep.started_at,
        ended_at=sweep.ended_at or max(ended, default=sweep.started_at),
        tags=_tags(sweep, tags),
        files=_files(folder, SWEEP, "summary.csv", "*.png", "report.*", "config.yaml"),
    )


def is_killed(sweep: Sweep) -> bool:
    """Whether a sweep that did not say how it ended cannot say so any more."""
    return sweep.status == "running" and sweep.owner is not None and is_dead(sweep.owner)


def _params(outcome: Outcome, backends: bool) -> dict[str, str]:
    """The axes, and what else differs from its default: MLflow's pages show what varies, so nothing that follows from
    another parameter stands here."""
    job, plain = outcome.job, Job()
    device = outcome.environment.device if job.device == "auto" else job.device
    values: dict[str, Any] = {**job.axes, "device": device}
    if job.weights:
        values["weights"] = Path(job.weights).name
    if job.amp_backend and backends:
        values["amp_backend"] = job.amp_backend
    for name in ("image_size", "seed", "repeat"):
        if getattr(job, name) != getattr(plain, name):
            values[name] = getattr(job, name)
    return {k: str(v) for k, v in values.items()}


def _dataset(outcome: Outcome) -> Dataset | None:
    job = outcome.job
    if not outcome.rounds:
        return None
    source = {"images": outcome.rounds[0].input, "size": job.image_size, "batch": job.batch, "seed": job.seed}
    text = json.dumps(source, sort_keys=True)
    return Dataset(f"synthetic-{job.image_size}", hashlib.sha256(text.encode()).hexdigest()[:8], text)


def _series(rounds: Sequence[Round]) -> dict[str, tuple[Point, ...]]:
    """What was sampled over time, thinned: latency in each round, and what the device said in its timed blocks."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in rounds:
        timed_at = one.started_at + sum(s for stage, s in one.stage_s.items() if stage in BEFORE_TIMED)
        at = timed_at + sum(one.block_wall_ms) / 1e3
        for ms in one.latency_ms:
            found.setdefault("series/latency_ms", []).append((at, ms))
            at += ms / 1e3
        for sample in timed(one):
            for name, field_name in DEVICE_SERIES.items():
                if (value := getattr(sample, field_name)) is not None:
                    found.setdefault(name, []).append((timed_at + sample.at_s, value))
    return {
        name: tuple(Point(round(at * 1e3), step, float(f"{v:.6g}")) for step, (at, v) in enumerate(thinned(points)))
        for name, points in found.items()
    }


def thinned(values: Sequence[T], most: int = SERIES_POINTS) -> list[T]:
    """The first, the last, and others at even distances."""
    if len(values) <= most:
        return list(values)
    return [values[round(n * (len(values) - 1) / (most - 1))] for n in range(most)]


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
    *("throughput_img_s_w", "board_memory_mib"),
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


def _name(whole: Whole, outcome: Outcome) -> str:
    """The job's axes, those left at their default unsaid."""
    job, plain = outcome.job, Job()
    parts = [job.model, job.precision, f"b{job.batch}"]
    parts += [v for v, default in ((job.layout, plain.layout), (job.engine, plain.engine)) if v != default]
    parts += [f"{job.image_size}px"] if job.image_size != plain.image_size else []
    parts += [Path(job.weights).name] if job.weights else []
    parts += [job.amp_backend] if job.amp_backend and whole.backends else []
    parts += [job.device] if job.device not in ("auto", whole.sweep.environment.device) else []
    parts += ["one process"] if job.isolation != plain.isolation else []
    parts += [f"#{job.repeat + 1}"] if job.repeat else []
    parts += [f"({outcome.role})"] if outcome.role != "asked" else []
    return cut(" ".join(parts), 250)


def _marked(name: str, row: Row, best: bool) -> str:
    """What stands out in a list of runs."""
    if not isinstance(row.outcome, Result):
        return f"{name} ({row.outcome.status})"
    mark = SUSPECT if row.verdict == SUSPECT else "best" if best else None
    return f"{name} ({mark})" if mark else name


def _note(row: Row, whole: Whole) -> str:
    """One plain line: the table's Description column shows it raw."""
    if not isinstance(row.outcome, Result) or row.figures is None:
        return f"{row.outcome.status}: {getattr(row.outcome, 'reason', '')}"
    parts = [f"{_say(row.figures.throughput_img_s)} img/s"]
    if row.speedup.value is not None and not row.job.is_baseline:
        parts.append(f"{row.speedup.value:.2f}x fp32")
    said = [f"{v.name}: {'; '.join(v.reasons)}" for v in row.verdicts[:1]]
    cause = main_cause(row, whole.others)
    held = [f"why not faster: {in_a_line(cause)}"] if cause else []
    return "; ".join([", ".join([*parts, *(said or [row.verdict or ""])]), *held])


def _reasons(row: Row) -> str | None:
    if not isinstance(row.outcome, Result):
        return row.outcome.reason
    return "; ".join(reason for v in row.verdicts[:1] for reason in v.reasons) or None


def _sweep_note(whole: Whole, links: str, plot_of: str | None) -> str:
    """A plain line, since the table of runs shows it raw; then the links, a table and the plot."""
    parts = [sweep_line(whole), links, "\n".join(f"- {line}" for line in lines(whole.table)), _note_table(whole)]
    if plot_of:
        parts.append(f"![throughput](get-artifact?path={PLOT}&run_uuid={plot_of})")
    note = "\n\n".join(filter(None, parts))
    return note if len(note) <= TAG_LIMIT else "\n\n".join(filter(None, (*parts[:3], *parts[4:])))


def sweep_line(whole: Whole) -> str:
    """What a sweep came to, in a line."""
    sweep, table, best = whole.sweep, whole.table, whole.best
    kinds = [row.outcome.status for row in table]
    counts = [f"{kinds.count('ok')} measured", *(f"{kinds.count(k)} {k}" for k in ("failed", "skipped") if k in kinds)]
    suspects = sum(row.verdict == SUSPECT for row in table)
    counts += [f"{suspects} suspect"] if suspects else []
    said = [f"best {_say(_throughput(best))} img/s: {_name(whole, best.outcome)}"] if best else []
    return f"{', '.join(counts + said)}; {'killed' if is_killed(sweep) else sweep.status}"


def _note_table(whole: Whole) -> str:
    found = sorted((row for row in whole.table if row.figures), key=_throughput, reverse=True)
    if not found:
        return ""
    said = [f"{device_title(whole.sweep.environment)}, fastest first", ""]
    said += ["| run | img/s | speed-up | p50 ms | verdict |", "|---|---|---|---|---|"]
    for row in found[:NOTE_ROWS]:
        speed, latency = times(row.speedup.value), number(row.figures.latency_ms_p50 if row.figures else None)
        cells = (_name(whole, row.outcome), _say(_throughput(row)), speed, latency, row.verdict)
        said.append(f"| {' | '.join(map(str, cells))} |")
    if len(found) > NOTE_ROWS:
        said.append(f"\nand {len(found) - NOTE_ROWS} more")
    return "\n".join(said)


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
