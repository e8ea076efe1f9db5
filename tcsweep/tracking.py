"""The MLflow sink, and the only module that imports mlflow: sends a sweep's saved results, exactly once.

A sweep is a parent run, each of its outcomes a child. Everything sent is derived from the files of the sweep's folder,
times included, so an upload can be cut off and repeated at will: runs are found again by their tags."""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from tcsweep.job import Environment, Failure, Job, Outcome, Result, Round, Skipped, Sweep
from tcsweep.speedup import Row, rows
from tcsweep.stats import Interval
from tcsweep.store import RESULT, SWEEP, load_sweep

WAIT_S = 5.0  # for a server that does not answer, and for another process that sends the same sweep
# Set before the import, where the user has not: no telemetry, nothing printed, no waiting (facts/mlflow.md: a dead
# server holds the default client for 4 to 20 minutes a call).
QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{WAIT_S:.0f}",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "PGCONNECT_TIMEOUT": f"{WAIT_S:.0f}",
}
# Longest parameter values, tried in turn: the servers' limit was 250 before MLflow 1.28, then 500, 6000 since 2.9.
PARAM_LIMITS = (500, 250)
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow's words for "not with these values"
TAG_LIMIT = 5000  # of older servers; 8000 today
DATABASES = ("postgresql", "mysql", "mssql")
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SAMPLES = "samples.csv"
STATUSES: dict[type[Any], str] = {Result: "FINISHED", Skipped: "FINISHED", Failure: "FAILED"}
SWEEP_STATUSES = {"running": "RUNNING", "finished": "FINISHED", "interrupted": "KILLED"}
ENVIRONMENT_TAGS = (
    *("gpu_uuid", "compute_capability", "driver", "cuda", "cudnn", "torch", "torchvision"),
    *("apex", "apex_version", "apex_build", "python", "host", "os", "cpu_model", "cpu_threads"),
    *("l4t", "jetpack", "power_mode", "tcsweep", "git_commit"),
)


@dataclass(frozen=True)
class Target:
    """Where a sweep is sent. `uri` None: MLFLOW_TRACKING_URI, else the embedded store, `mlflow.db` in `store`."""

    uri: str | None = field(repr=False)  # may hold a password
    experiment: str = "tcsweep"
    store: Path = field(kw_only=True)  # the folder of all sweeps, absolute


@dataclass(frozen=True)
class Uploaded:
    """What came of an upload. Counts are of outcomes; with an `error` the rest waits on disk for the next upload."""

    experiment_id: str | None
    parent_run_id: str | None
    uri: str  # without password
    runs: int  # sent now
    already: int  # there before, or deleted there by the user
    error: str | None
    sweep_id: str | None


# --- addresses ---

_CREDENTIALS = re.compile(r"^(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^:]*):(?P<secret>.*)@(?P<rest>[^@]*)$", re.DOTALL)
_IN_TEXT = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^\s:]*):\S*@")
_QUERY = re.compile(r"(?i)([?&;](?:[\w.-]*(?:passw(?:or)?d|pwd|secret|token|api_?key))=)[^&#\s]*")
_PASSWORDLESS = ("sqlite", "file")  # a path may hold both ":" and "@"


def resolved_uri(target: Target) -> str:
    """The address as MLflow takes it: asked for, or from the environment, or the embedded store's. May hold a
    password."""
    uri = target.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or sqlite_uri(target.store / "mlflow.db")


def safe_uri(uri: str) -> str:
    """The address without its password; user and host stay. Passwords may hold any character, even unquoted."""
    found = None if uri.startswith(_PASSWORDLESS) else _CREDENTIALS.match(uri)
    bare = f"{found['scheme']}{found['user']}@{found['rest']}" if found else uri
    return _QUERY.sub(r"\1***", bare)


def redact(text: str) -> str:
    """Any text without the passwords of the addresses in it."""

    def without(found: re.Match[str]) -> str:
        kept = found["scheme"].startswith(_PASSWORDLESS)
        return found[0] if kept else f"{found['scheme']}://{found['user']}@"

    return _QUERY.sub(r"\1***", _IN_TEXT.sub(without, text))


def sqlite_uri(path: Path) -> str:
    """The address of an sqlite file. Quotes no more than it must: MLflow makes the folder of the quoted path, too."""
    text = str(path.absolute())
    if _sqlalchemy_unquotes(text):
        text = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", text).replace("?", "%3F")
    return f"sqlite:///{text}"


def sqlite_path(uri: str) -> Path | None:
    """The file behind an sqlite address; None for any other address."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    text = uri.partition(":///")[2].partition("?")[0]
    return Path(unquote(text) if _sqlalchemy_unquotes(text) else text).absolute()


def _sqlalchemy_unquotes(text: str) -> bool:
    """Whether SQLAlchemy unquotes the path of an address: since 2.1. Asked only where it matters."""
    return ("%" in text or "?" in text) and _version("sqlalchemy") >= (2, 1)


@functools.cache
def _version(package: str) -> tuple[int, ...]:
    from importlib import metadata

    try:
        return tuple(int(n) for n in re.findall(r"\d+", metadata.version(package))[:2])
    except metadata.PackageNotFoundError:
        return ()


def _is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _split(uri: str) -> tuple[str, str | None, str | None]:
    """Address without credentials, user, password. `host:5000/a@b` is a port and a path."""
    found = _CREDENTIALS.match(uri)
    if found is None or re.match(r"\d+/", found["secret"]):
        return uri, None, None
    return found["scheme"] + found["rest"], unquote(found["user"]), unquote(found["secret"])


# --- before measuring ---


def check(target: Target) -> str | None:
    """Why tracking would not work, in a line, or None. Cheap: neither mlflow nor the network is touched."""
    if importlib.util.find_spec("mlflow") is None:
        return "mlflow is not installed: `pip install mlflow`, or turn tracking off; results are kept on disk"
    uri = resolved_uri(target)
    scheme = uri.partition("://")[0] if "://" in uri else uri.partition(":")[0] if re.match(r"\w{2,}:", uri) else ""
    scheme = scheme.partition("+")[0].lower()
    if uri.startswith("databricks"):
        return None
    if scheme in ("", "file"):
        return _check_folder(uri)
    if scheme == "sqlite":
        return _check_sqlite(uri, target.experiment)
    if scheme in ("http", "https"):
        return _check_host(uri)
    if scheme in DATABASES or scheme in _plugin_schemes():
        return None
    return f"MLflow has no store for {safe_uri(uri)}: use http(s)://host:port, sqlite:////path/mlflow.db or a database"


def _check_folder(uri: str) -> str | None:
    if _version("mlflow") < (3, 13) or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return None
    better = sqlite_uri(Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri) / "mlflow.db")
    return f"MLflow since 3.13 refuses a folder ({uri}): use {better}, or set MLFLOW_ALLOW_FILE_STORE=true"


def _check_host(uri: str) -> str | None:
    try:
        parts = urlsplit(_split(uri)[0])
        if parts.hostname and (parts.port is None or parts.port > 0):
            return None
    except ValueError:
        pass
    return f"{safe_uri(uri)} names no host: use http://host:port; characters such as @ / # in a password as %40 %2F %23"


def _check_sqlite(uri: str, experiment: str) -> str | None:
    path = sqlite_path(uri)
    if path is None:
        return f"{uri} is a database in memory, lost at once: use sqlite:////path/mlflow.db"
    if "?" in str(path) and not _sqlalchemy_unquotes("?"):
        return f"SQLAlchemy before 2.1 cannot open {path}, with a '?' in it: use another folder for MLflow's store"
    nearest = next(p for p in (path, *path.parents) if p.exists())
    if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
        return f"cannot write MLflow's store {path}: {nearest} is not writable; set another address for tracking"
    return _deleted_in_sqlite(path, experiment, uri)


def _deleted_in_sqlite(path: Path, experiment: str, uri: str) -> str | None:
    """The reason if the experiment is deleted there. Anything unreadable is left for MLflow to judge."""
    import sqlite3

    query = "select experiment_id from experiments where name = ? and lifecycle_stage = 'deleted'"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(path, "ro", timeout_s=1)) as database:
        found = database.execute(query, (experiment,)).fetchone()
        return _deleted(experiment, found[0], uri) if found else None
    return None


def _connect(path: Path, mode: str, timeout_s: float) -> Any:
    import sqlite3

    return sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=timeout_s)


def _deleted(experiment: str, experiment_id: Any, uri: str) -> str:
    address = shlex.quote(safe_uri(uri))
    return (
        f"MLflow's experiment {experiment!r} was deleted, and its name stays taken: restore it by "
        f"`MLFLOW_TRACKING_URI={address} mlflow experiments restore -x {experiment_id}` or choose another name"
    )


def _plugin_schemes() -> set[str]:
    from importlib import metadata

    return {point.name for point in metadata.entry_points(group="mlflow.tracking_store")}


def _unreachable(uri: str) -> str | None:
    """Why the address's host can't be talked to, in `WAIT_S` at most, names looked up included. Asked before the
    import of mlflow, which takes seconds on a small machine."""
    try:
        parts = urlsplit(_split(uri)[0])
        scheme = parts.scheme.partition("+")[0]
        host, port = parts.hostname, parts.port or PORTS.get(scheme)
    except ValueError:
        return None
    if scheme not in PORTS or not host or not port or _proxied(scheme, host):
        return None
    outcome: list[str | None] = []

    def knock() -> None:
        try:
            with socket.create_connection((host, port), timeout=WAIT_S) as connection:
                if scheme == "http":  # any answer will do
                    connection.sendall(f"HEAD {parts.path}/health HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
                    connection.recv(65536)
            outcome.append(None)
        except OSError as error:
            outcome.append((error.strerror or str(error)).lower())

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    why = outcome[0] if outcome else "timed out"
    return None if why is None else f"MLflow at {safe_uri(uri)} does not answer ({why})"


def _proxied(scheme: str, host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(host)


# --- what is sent: pure, from what is on disk ---


@dataclass(frozen=True)
class _Run:
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


def _child(sweep: Sweep, row: Row, folder: Path) -> _Run:
    outcome, job = row.outcome, row.job
    params = _params(outcome)
    tags: dict[str, Any] = {
        "tcsweep.role": outcome.role,
        "tcsweep.kind": {"ok": "result", "failed": "failure", "skipped": "skipped"}[outcome.status],
        "tcsweep.verdict": row.verdict,
        "tcsweep.reason": None if isinstance(outcome, Result) else outcome.reason,
        "tcsweep.image_size": job.image_size,
        "tcsweep.weights": job.weights,
        "tcsweep.measure": job.measure.name,
        "mlflow.note.content": _note(row),
        **{f"tcsweep.param.{k}": v for k, v in params.items() if len(v) > PARAM_LIMITS[-1]},
        **_environment_tags(outcome.environment, () if isinstance(outcome, Skipped) else outcome.rounds),
    }
    return _Run(
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


def _parent(sweep: Sweep, table: list[Row], folder: Path, experiment_id: str) -> _Run:
    ended = [row.outcome.ended_at for row in table]
    tags: dict[str, Any] = {
        "tcsweep.kind": "sweep",
        "tcsweep.command": redact(sweep.command),
        "mlflow.note.content": _sweep_note(sweep, table, experiment_id),
        **_environment_tags(sweep.environment, ()),
    }
    return _Run(
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
    axes = {"model": job.model, "precision": job.precision, "batch": job.batch, "layout": job.layout}
    return {k: str(v) for k, v in {**axes, "engine": job.engine, "device": device}.items()}


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
    }
    return {k: float(f"{v:.6g}") for k, v in values.items() if v is not None and math.isfinite(v)}


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
    return {k: _cut(str(v), TAG_LIMIT) for k, v in tags.items() if v is not None}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return None


def _cut(text: str, limit: int) -> str:
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
    return _cut(" ".join(parts), 250)


def _note(row: Row) -> str:
    """One plain line: the table's Description column shows it raw."""
    if not isinstance(row.outcome, Result) or row.figures is None:
        return f"{row.outcome.status}: {getattr(row.outcome, 'reason', '')}"
    parts = [f"{_say(row.figures.throughput_img_s)} img/s"]
    if row.speedup.value is not None and row.job.cell != row.job:
        parts.append(f"{row.speedup.value:.2f}x fp32")
    return ", ".join([*parts, *([row.verdict] if row.verdict else [])])


def _sweep_note(sweep: Sweep, table: list[Row], experiment_id: str) -> str:
    kinds = [row.outcome.status for row in table]
    counts = [f"{kinds.count('ok')} measured", *(f"{kinds.count(k)} {k}" for k in ("failed", "skipped") if k in kinds)]
    measured = [(r.figures.throughput_img_s, _name(sweep, r.outcome)) for r in table if r.figures]
    best = [f"best {_say(max(measured)[0])} img/s: {max(measured)[1]}"] if measured else []
    line = f"{', '.join(counts + best)}; {sweep.status}"
    return f"{line}\n\n[Table of this sweep, fastest first]({_page(experiment_id, sweep.id)})"


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
    temporary = path.with_name(f".{SAMPLES}.{os.getpid()}")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


# --- sending ---


class _RefusedError(Exception):
    """A reason in a line, meant for a person."""


@dataclass
class _Session:
    """One upload under way: what Uploaded is made of when it ends, however it ends."""

    uri: str
    client: Any = None
    sweep_id: str | None = None
    experiment_id: str | None = None
    parent_id: str | None = None
    runs: int = 0
    already: int = 0
    refusals: list[str] = field(default_factory=list)

    def result(self, error: str | None) -> Uploaded:
        return Uploaded(
            self.experiment_id, self.parent_id, safe_uri(self.uri), self.runs, self.already, error, self.sweep_id
        )


def upload(sweep_dir: Path, target: Target) -> Uploaded:
    """Send what is on disk and not yet there. Never raises for MLflow, the network or the files: see `error`."""
    uri = resolved_uri(target)
    session = _Session(uri)
    try:
        reason = check(target) or _unreachable(uri)
        if reason:
            raise _RefusedError(reason)
        with _only_uploader(sweep_dir), _credentials(uri) as address:
            _send_sweep(session, sweep_dir, target, address)
        return session.result(session.refusals[0] if session.refusals else None)
    except Exception as error:
        return session.result(_line(error, uri))


def prepare(target: Target) -> None:
    """Make the embedded store, so that `upload` need not. Quiet: what fails here fails there too."""
    with contextlib.suppress(Exception):
        address = resolved_uri(target)
        path = sqlite_path(address)
        if path is not None:
            _experiment(_open_client(address), target, address)


@contextlib.contextmanager
def _only_uploader(sweep_dir: Path) -> Iterator[None]:
    """MLflow has no unique tags: two uploaders at once would both create."""
    from filelock import FileLock, Timeout

    lock = FileLock(sweep_dir / ".upload.lock", timeout=WAIT_S)
    try:
        lock.acquire()
    except Timeout:
        raise _RefusedError("another process is sending this sweep to MLflow") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _credentials(uri: str) -> Iterator[str]:
    """An http address without its credentials, which MLflow gets by its own variables, so that it can't log them."""
    bare, user, password = _split(uri) if _is_http(uri) else (uri, None, None)
    given = {} if password is None else {"MLFLOW_TRACKING_USERNAME": user or "", "MLFLOW_TRACKING_PASSWORD": password}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield bare
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _send_sweep(session: _Session, sweep_dir: Path, target: Target, address: str) -> None:
    sweep, outcomes = load_sweep(sweep_dir)
    session.sweep_id = sweep.id
    session.client = _open_client(address)
    session.experiment_id = _experiment(session.client, target, address)
    known = _known_runs(session.client, session.experiment_id, sweep.id)
    table = rows(outcomes)
    parent = _parent(sweep, table, sweep_dir, session.experiment_id)
    if parent.id in known and known[parent.id].info.lifecycle_stage == "deleted":
        session.parent_id, session.already = known[parent.id].info.run_id, len(table)
        return
    session.parent_id = _open_run(session, parent, known.get(parent.id), {})
    revised_at = max((row.outcome.ended_at for row in table), default=sweep.started_at)
    for row in table:
        _send_outcome(session, sweep, row, sweep_dir / row.job.folder, known, revised_at)
    if sweep.status != "running" and not _is_complete(known.get(parent.id), parent):
        _fill_run(session, session.parent_id, parent, parent.ended_at, complete=not session.refusals)


def _send_outcome(
    session: _Session, sweep: Sweep, row: Row, folder: Path, known: Mapping[str, Any], revised_at: float
) -> None:
    from mlflow.exceptions import MlflowException

    write_samples(folder, () if isinstance(row.outcome, Skipped) else row.outcome.rounds)
    run = _child(sweep, row, folder)
    found = known.get(run.id)
    if _is_complete(found, run):
        session.already += 1
        return
    # MLflow shows the latest value of a metric, and of two at one time the larger: changed figures need a later time.
    revised = found is not None and "tcsweep.digest" in found.data.tags
    try:
        run_id = _open_run(session, run, found, {"mlflow.parentRunId": session.parent_id or ""})
        _fill_run(session, run_id, run, revised_at if revised else run.ended_at)
        session.runs += 1
    except MlflowException as error:  # refused for what it says: the other runs may still be taken
        if error.error_code not in REFUSALS:
            raise
        session.refusals.append(f"{run.name}: {_line(error, session.uri)}")


def _is_complete(found: Any, run: _Run) -> bool:
    if found is None:
        return False
    tags = found.data.tags
    same = tags.get("tcsweep.upload") == "complete" and tags.get("tcsweep.digest") == run.digest
    return bool(same or found.info.lifecycle_stage == "deleted")


def _open_run(session: _Session, run: _Run, found: Any, more: Mapping[str, str]) -> str:
    """The id of the run, created with all of its tags if it is not there: no run is ever without its result_id."""
    tags = {**run.tags, **more, "tcsweep.result_id": run.id, "tcsweep.upload": "partial"}
    if found is None:
        start = round(run.started_at * 1e3)
        created = session.client.create_run(
            session.experiment_id, start_time=start, tags=tags, run_name=_cut(run.name, 250)
        )
        return str(created.info.run_id)
    run_id = str(found.info.run_id)
    if not _is_complete(found, run):
        tags["mlflow.runName"] = run.name
        for name in found.data.tags:
            if name.startswith(("tcsweep.", "env.")) and name not in {*tags, "tcsweep.digest"}:
                session.client.delete_tag(run_id, name)
        _log(session.client, run_id, tags=tags)
    return run_id


def _fill_run(session: _Session, run_id: str, run: _Run, metrics_at: float, complete: bool = True) -> None:
    """Everything after the run's creation; each step is safe to repeat, and `complete` comes last."""
    client = session.client
    if run.metrics or run.params:
        _log_facts(client, run_id, run, at_ms=round(metrics_at * 1e3))
    for path in run.files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, status=run.status, end_time=round(run.ended_at * 1e3))
    if complete:
        _log(client, run_id, tags={"tcsweep.digest": run.digest, "tcsweep.upload": "complete"})


def _log_facts(client: Any, run_id: str, run: _Run, at_ms: int) -> None:
    """Metrics and parameters in one call. A server refuses all of it for one value that it finds too long: then the
    metrics alone, and the parameters shorter."""
    from mlflow.exceptions import MlflowException

    longest, shorter = ({k: _cut(v, limit) for k, v in run.params.items()} for limit in PARAM_LIMITS)
    try:
        _log(client, run_id, metrics=run.metrics, at_ms=at_ms, params=longest)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        _log(client, run_id, metrics=run.metrics, at_ms=at_ms)
        _log(client, run_id, params=shorter)


def _log(
    client: Any,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    at_ms: int = 0,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        run_id,
        metrics=[Metric(k, v, at_ms, 0) for k, v in (metrics or {}).items()],
        params=[Param(k, v) for k, v in (params or {}).items()],
        tags=[RunTag(k, v) for k, v in (tags or {}).items()],
    )


def _known_runs(client: Any, experiment_id: str, sweep_id: str) -> dict[str, Any]:
    """The sweep's runs by result_id, those deleted in MLflow's pages included; the oldest where there are two."""
    from mlflow.entities import ViewType

    known: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`tcsweep.sweep_id` = '{sweep_id}'",
            run_view_type=ViewType.ALL,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            known.setdefault(run.data.tags.get("tcsweep.result_id", ""), run)
        token = page.token
        if not token:
            return known


def _experiment(client: Any, target: Target, address: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        path = sqlite_path(address)
        location = None if path is None else _artifacts(path).as_uri()
        try:
            return str(client.create_experiment(target.experiment, artifact_location=location))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(target.experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise _RefusedError(_deleted(target.experiment, found.experiment_id, resolved_uri(target)))
    return str(found.experiment_id)


def _artifacts(database: Path) -> Path:
    return database.parent / "mlartifacts"


def _open_client(address: str) -> Any:
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if not os.environ.get("MLFLOW_LOGGING_LEVEL"):  # each error comes back as an exception, too
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    path = sqlite_path(address)
    if path is not None:
        _initialise(path)
    if path is not None or address.startswith(DATABASES):
        import mlflow.store.db.utils as database

        # The default, 10, waits 101 s for a database that refuses; `_unreachable` and `_initialise` waited already.
        database.MAX_RETRY_COUNT = min(getattr(database, "MAX_RETRY_COUNT", 2), 2)
    with _no_stray_folder(address):
        return MlflowClient(tracking_uri=address)


@contextlib.contextmanager
def _no_stray_folder(address: str) -> Iterator[None]:
    """MLflow makes the folder that an address names before unquoting; take it away again."""
    path = sqlite_path(address)
    raw = Path(address.partition(":///")[2]).parent
    stray = path is not None and raw.absolute() != path.parent and not raw.exists()
    yield
    if stray:
        for folder in (raw, *raw.parents):
            try:
                folder.rmdir()  # stops at the first that holds something
            except OSError:
                break


def _initialise(path: Path) -> None:
    """Make the database if it is new: apart, then renamed into place, so that nobody ever sees a half-made one (of 8
    processes opening a new one, 7 fail). Waits for a lock on an existing one."""
    from filelock import FileLock

    if not _is_ready(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".mlflow-init.lock", timeout=60):
            if not _is_ready(path):
                _make_database(path)
    with contextlib.closing(_connect(path, "ro", timeout_s=20)) as database:
        database.execute("select count(*) from sqlite_master").fetchone()


def _is_ready(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _make_database(path: Path) -> None:
    import sqlite3

    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    fresh = path.with_name(f".{path.name}.new")
    for end in ("", "-wal", "-shm", "-journal"):
        fresh.with_name(fresh.name + end).unlink(missing_ok=True)
    address = sqlite_uri(fresh)
    with _no_stray_folder(address), _without_info():
        SqlAlchemyStore(address, _artifacts(path).as_uri()).engine.dispose()
    # Write-ahead log: half the time a run, and readers don't block (facts/mlflow.md). Kept by the file.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_connect(fresh, "rw", timeout_s=5)) as database:
        database.execute("pragma journal_mode=wal")
    os.replace(fresh, path)


@contextlib.contextmanager
def _without_info() -> Iterator[None]:
    """Migrations configure alembic's logger themselves: only this quiets them."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


def _line(error: BaseException, uri: str) -> str:
    """An exception as one line for a person, without passwords."""
    text = str(error).strip() or type(error).__name__
    shown = safe_uri(_split(uri)[0])
    if isinstance(error, _RefusedError):
        return _clean(text, uri)
    if "Connection refused" in text:
        text = f"MLflow at {shown} does not answer (connection refused)"
    elif re.search(r"[Tt]imed? ?out", text):
        text = f"MLflow at {shown} does not answer (timed out)"
    elif "database is locked" in text:
        text = f"MLflow's store {shown} is locked by another process"
    else:
        first = text.splitlines()[0].replace("<database_uri>", shlex.quote(shown))  # in the advice to upgrade it
        text = f"MLflow at {shown}: {first}"
    return _cut(_clean(text, uri), 400)


def _clean(text: str, uri: str) -> str:
    """Redacted, the address's own password wherever it stands, too."""
    found = _CREDENTIALS.match(uri)
    secrets = {os.environ.get("MLFLOW_TRACKING_PASSWORD", ""), os.environ.get("MLFLOW_TRACKING_TOKEN", "")}
    if found and not uri.startswith(_PASSWORDLESS):
        secrets |= {found["secret"], unquote(found["secret"])}
    text = redact(text.replace(uri, safe_uri(uri)))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) > 2 else text
    return " ".join(text.split())


# --- looking at it ---


def ui_lines(uploaded: Uploaded, target: Target) -> list[str]:
    """What a person runs and opens to see the sweep; empty where it cannot be said."""
    uri = resolved_uri(target)
    if uploaded.experiment_id is None or uploaded.sweep_id is None:
        return []
    page = _page(uploaded.experiment_id, uploaded.sweep_id)
    if _is_http(uri):
        parts = urlsplit(_split(uri)[0])
        return [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{page}"]
    path = sqlite_path(uri)
    if path is None and not uri.startswith(DATABASES):
        return []
    address = safe_uri(uri) if path is None else sqlite_uri(path)
    program = "mlflow" if shutil.which("mlflow") else shlex.quote(str(Path(sys.executable).with_name("mlflow")))
    command = f"{program} ui --backend-store-uri {shlex.quote(address)} --port 5000"
    also = "   (or: make ui)" if path == (target.store / "mlflow.db").absolute() else ""
    return [command + also, f"http://127.0.0.1:5000/{page}"]


def _page(experiment_id: str, sweep_id: str) -> str:
    """The run table of one sweep, fastest first. MLflow opens in its GenAI mode without `workflowType`."""
    wanted = quote(f"tags.`tcsweep.sweep_id` = '{sweep_id}'", safe="")
    order = quote("metrics.`throughput_img_s`", safe="")
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        f"&searchFilter={wanted}&orderByKey={order}&orderByAsc=false"
    )
