"""The MLflow sink, and the only module that imports mlflow: sends a sweep's saved results, exactly once.

A sweep is a parent run, each of its outcomes a child. Everything sent is derived from the files of the sweep's folder,
times included, so an upload can be cut off and repeated at will: runs are found again by their tags."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tcsweep import tracking_views as views
from tcsweep._process import environment
from tcsweep.job import Sweep, from_json
from tcsweep.owner import Owner, is_dead
from tcsweep.speedup import rows
from tcsweep.store import load_sweep
from tcsweep.tracking_patience import OutOfPatienceError, Patience, Patient
from tcsweep.tracking_runs import (
    KILLED,
    Run,
    Whole,
    best_of_each_precision,
    child_run,
    cut,
    is_killed,
    parent_run,
    sweep_line,
    write_samples,
)
from tcsweep.tracking_uri import (
    DATABASES,
    Target,
    check,
    connect_sqlite,
    deleted_reason,
    is_http,
    resolved_uri,
    safe_uri,
    split_credentials,
    sqlite_path,
    sqlite_uri,
    unreachable,
    without_secrets,
)

WAIT_S = 5.0  # in all, for a server at the end of a sweep; also for another process that sends the same sweep
SYNC_WAIT_S = 120.0  # where sending is all that was asked for
LOCK_WAIT_S = 30.0  # for the file of the embedded store, which other sweeps lock for moments
# Set before the import, where the user has not: no telemetry, nothing printed, no waiting (measured: a dead
# server holds the default client for 4 to 20 minutes a call).
QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{WAIT_S:.0f}",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "PGCONNECT_TIMEOUT": f"{WAIT_S:.0f}",
}
NOTE = "mlflow.note.content"
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow's words for "not with these values"
BATCH_METRICS = 1000  # values in one call: the limit of a server
TRIES = 3  # of what another process may be making at this moment


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
    view_key: str | None = None  # of the prepared view, where it was written


class _RefusedError(Exception):
    """A reason in a line, meant for a person."""


@dataclass
class _Session:
    """One upload under way: what Uploaded is made of when it ends, however it ends."""

    uri: str
    patience: Patience
    client: Any = None
    sweep_id: str | None = None
    experiment_id: str | None = None
    parent_id: str | None = None
    runs: int = 0
    already: int = 0
    refusals: list[str] = field(default_factory=list)
    view_key: str | None = None

    def result(self, error: str | None) -> Uploaded:
        counts = (self.runs, self.already)
        ids = (self.experiment_id, self.parent_id, safe_uri(self.uri))
        return Uploaded(*ids, *counts, error, self.sweep_id, self.view_key)


def upload(sweep_dir: Path, target: Target, wait_s: float = WAIT_S) -> Uploaded:
    """Send what is on disk and not yet there, waiting no longer in all for a server. Never raises for MLflow, the
    network or the files: see `error`."""
    uri = resolved_uri(target)
    session = _Session(uri, Patience(wait_s if sqlite_path(uri) is None else LOCK_WAIT_S))
    try:
        reason = check(target) or session.patience.call(unreachable, uri, min(wait_s, WAIT_S))
        if reason:
            raise _RefusedError(reason)
        with _only_uploader(sweep_dir), credentials(uri) as address:
            _send_sweep(session, sweep_dir, target, address)
        return session.result(session.refusals[0] if session.refusals else None)
    except Exception as error:
        return session.result(error_line(error, uri))


def prepare(target: Target) -> None:
    """Make the embedded store, so that `upload` need not. Quiet: what fails here fails there too."""
    with contextlib.suppress(Exception):
        address = resolved_uri(target)
        path = sqlite_path(address)
        if path is not None and not _is_locked(path):
            _experiment(open_client(address), target, address)


def _is_locked(path: Path) -> bool:
    """Whether somebody else is writing: `upload` can wait for that, a measurement should not."""
    import sqlite3

    if not _is_ready(path):
        return False
    try:
        with contextlib.closing(connect_sqlite(path, "rw", timeout_s=1)) as database:
            database.execute("begin immediate").connection.rollback()
    except sqlite3.Error:
        return True
    return False


@contextlib.contextmanager
def _only_uploader(sweep_dir: Path) -> Iterator[None]:
    """MLflow has no unique tags: two uploaders at once would both create."""
    from filelock import FileLock, Timeout

    lock = FileLock(sweep_dir / ".upload.lock", timeout=WAIT_S)
    try:
        lock.acquire()
    except Timeout:
        raise _RefusedError("another process is sending this sweep to MLflow") from None
    except OSError as error:
        raise _RefusedError(f"cannot write in {sweep_dir} ({error.strerror}): sync a copy of it") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def credentials(uri: str) -> Iterator[str]:
    """An http address without its credentials, which MLflow gets by its own variables, so that it can't log them."""
    bare, user, password = split_credentials(uri) if is_http(uri) else (uri, None, None)
    given = {} if password is None else {"MLFLOW_TRACKING_USERNAME": user or "", "MLFLOW_TRACKING_PASSWORD": password}
    with environment(given):
        yield bare


def _send_sweep(session: _Session, sweep_dir: Path, target: Target, address: str) -> None:
    sweep, outcomes = load_sweep(sweep_dir)
    session.sweep_id = sweep.id
    session.client = open_client(address, session.patience)
    session.experiment_id = _experiment(session.client, target, address)
    known = _known_runs(session.client, session.experiment_id, sweep.id)
    table = rows(outcomes)
    whole = Whole.of(sweep, table)
    parent = parent_run(whole, sweep_dir)
    found = known.get(parent.id)
    if found is not None and found.info.lifecycle_stage == "deleted":
        session.parent_id, session.already = found.info.run_id, len(table)
        return
    session.parent_id = _create_run(session, parent, {}) if found is None else str(found.info.run_id)
    revised_at = max((row.outcome.ended_at for row in table), default=sweep.started_at)
    sent = {}
    for row in table:
        if row.outcome.role == "stored":  # sent by the sweep that measured it
            continue
        folder = sweep_dir / row.job.folder
        write_samples(folder, row.outcome.rounds)
        run = child_run(whole, row, folder)
        sent[row.job] = _send_outcome(session, run, known.get(run.id), revised_at), run
    compared = [run_id for row in best_of_each_precision(table) for run_id, _ in (sent[row.job],) if run_id]
    links = _write_views(session, sweep, [run for _, run in sent.values()], compared, sweep_line(whole))
    parent = parent_run(whole, sweep_dir, links, session.parent_id)
    if not _is_complete(found, parent):
        if found is not None:
            _revise_tags(session, session.parent_id, found, parent, {})
        elif links:
            _log(session.client, session.parent_id, tags=parent.tags)
        if sweep.status != "running" or is_killed(sweep):
            _fill_run(session, session.parent_id, parent, parent.ended_at, complete=not session.refusals)
    _close_dead(session)


def _send_outcome(session: _Session, run: Run, found: Any, revised_at: float) -> str | None:
    """The run's id; None where the server refused it."""
    from mlflow.exceptions import MlflowException

    if _is_complete(found, run):
        session.already += 1
        return str(found.info.run_id)
    # MLflow shows the latest value of a metric, and of two at one time the larger: changed figures need a later time.
    revised = found is not None and "tcsweep.digest" in found.data.tags
    try:
        more = {"mlflow.parentRunId": session.parent_id or ""}
        if found is None:
            run_id = _create_run(session, run, more)
        else:
            run_id = str(found.info.run_id)
            _revise_tags(session, run_id, found, run, more)
        _fill_run(session, run_id, run, revised_at if revised else run.ended_at)
        session.runs += 1
        return run_id
    except MlflowException as error:  # refused for what it says: the other runs may still be taken
        if error.error_code not in REFUSALS:
            raise
        session.refusals.append(f"{run.name}: {error_line(error, session.uri)}")
        return None


def _is_complete(found: Any, run: Run) -> bool:
    if found is None:
        return False
    tags = found.data.tags
    same = tags.get("tcsweep.upload") == "complete" and tags.get("tcsweep.digest") == run.digest
    return bool(same or found.info.lifecycle_stage == "deleted")


def _create_run(session: _Session, run: Run, more: Mapping[str, str]) -> str:
    """The id of a new run, made with all of its tags: no run is ever without its result_id."""
    tags = {**run.tags, **more, "tcsweep.result_id": run.id, "tcsweep.upload": "partial"}
    start, name = round(run.started_at * 1e3), cut(run.name, 250)
    created = session.client.create_run(session.experiment_id, start_time=start, tags=tags, run_name=name)
    return str(created.info.run_id)


def _revise_tags(session: _Session, run_id: str, found: Any, run: Run, more: Mapping[str, str]) -> None:
    """Give a run that is there the tags that it should have, and take away those that it should not."""
    tags = {**run.tags, **more, "tcsweep.result_id": run.id, "tcsweep.upload": "partial", "mlflow.runName": run.name}
    for name in found.data.tags:
        if name.startswith(("tcsweep.", "env.")) and name not in {*tags, "tcsweep.digest"}:
            session.client.delete_tag(run_id, name)
    _log(session.client, run_id, tags=tags)


def _fill_run(session: _Session, run_id: str, run: Run, metrics_at: float, complete: bool = True) -> None:
    """Everything after the run's creation; each step is safe to repeat, and `complete` comes last."""
    client = session.client
    if run.metrics or run.params:
        _log_facts(client, run_id, run, at_ms=round(metrics_at * 1e3))
    if run.series:
        _log_series(client, run_id, run)
    if run.dataset is not None:
        _log_dataset(client, run_id, run)
    for path in run.files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, status=run.status, end_time=round(run.ended_at * 1e3))
    if complete:
        _log(client, run_id, tags={"tcsweep.digest": run.digest, "tcsweep.upload": "complete"})


def _log_facts(client: Any, run_id: str, run: Run, at_ms: int) -> None:
    """Metrics and parameters in one call. A server refuses all of it for one value that it finds too long: then the
    metrics alone, and the parameters shorter."""
    from mlflow.exceptions import MlflowException

    longest, shorter = run.params_cut
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


def _log_series(client: Any, run_id: str, run: Run) -> None:
    from mlflow.entities import Metric

    points = [Metric(name, p.value, p.at_ms, p.step) for name, found in run.series.items() for p in found]
    for start in range(0, len(points), BATCH_METRICS):
        client.log_batch(run_id, metrics=points[start : start + BATCH_METRICS])


def _log_dataset(client: Any, run_id: str, run: Run) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if run.dataset is not None:
        made = Dataset(run.dataset.name, run.dataset.digest, "code", run.dataset.source)
        inputs = [DatasetInput(made, [InputTag("mlflow.data.context", "benchmark")])]
        _made_once(lambda: client.log_inputs(run_id, datasets=inputs))


def _made_once(make: Callable[[], Any]) -> None:
    """Make what all runs share, a dataset or an experiment's tag. MLflow looks whether it is there and then adds it: of
    two that do so at once one is refused, and finds it there the next time."""
    from mlflow.exceptions import MlflowException

    for tries_left in reversed(range(TRIES)):
        try:
            make()
            return
        except MlflowException as error:
            if error.error_code not in REFUSALS or not tries_left:
                raise


# --- what the pages show without a click ---


def _write_views(session: _Session, sweep: Sweep, runs: Sequence[Run], compared: Sequence[str], line: str) -> str:
    """Save the views of a sweep and put the experiment's links in its note; returns the sweep's own links."""
    metrics = list(dict.fromkeys(name for run in runs for name in (*run.metrics, *run.series)))
    if "throughput_img_s" not in metrics:
        return ""
    client, experiment_id = session.client, session.experiment_id or ""
    tags = client.get_experiment(experiment_id).tags
    owner = views.owner_of(_user(), sweep.environment.host)
    own, latest = views.sweep_key(owner, sweep.id), views.latest_key(owner)
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.params.items():
            values.setdefault(name, set()).add(value)
    varying = [name for name, found in values.items() if len(found) > 1]
    axes = [name for name in values if name in ("model", "precision", "batch", *varying)]
    at_ms = round(sweep.started_at * 1e3)

    def view(name: str) -> str:
        return views.view(name, sweep.id, axes, varying, metrics, at_ms)

    wanted = {views.TAG + own: view(f"{sweep.name or sweep.id} ({owner})")}
    if views.created_at_ms(tags.get(views.TAG + latest, "")) <= at_ms:
        wanted[views.TAG + latest] = view(f"latest sweep of {owner}")
        when = f"{sweep.id[:4]}-{sweep.id[4:6]}-{sweep.id[6:8]} {owner}"
        shown = f"{views.links(experiment_id, latest, compared)} {when}: {line}"
        note = views.experiment_note(tags.get(NOTE, ""), owner, shown)
        wanted[NOTE] = cut(note, 19_000)
    for name, value in wanted.items():
        if tags.get(name) != value:
            _made_once(partial(client.set_experiment_tag, experiment_id, name, value))
    for name in views.outdated({**tags, **wanted}, owner):
        client.delete_experiment_tag(experiment_id, name)
    session.view_key = own
    return views.links(experiment_id, own, compared)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return None


# --- runs that nobody will end ---


def _close_dead(session: _Session) -> None:
    """End as KILLED the runs of sweeps that were killed on this machine, and of no other."""
    host = platform.node()
    if "'" in host:
        return
    wanted = "attributes.status = 'RUNNING' and tags.`tcsweep.kind` = 'sweep'"
    found = session.client.search_runs(
        [session.experiment_id], f"{wanted} and tags.`tcsweep.owner_host` = '{host}'", max_results=100
    )
    for run in found:
        if run.info.run_id != session.parent_id and _owner_is_dead(run.data.tags.get("tcsweep.owner", "")):
            children = session.client.search_runs(
                [session.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", max_results=1000
            )
            ends = [child.info.end_time for child in children if child.info.end_time]
            session.client.set_terminated(
                run.info.run_id, status=KILLED, end_time=max(ends, default=run.info.start_time)
            )


def _owner_is_dead(tag: str) -> bool:
    try:
        return is_dead(from_json(Owner, json.loads(tag)))
    except (ValueError, TypeError, AttributeError):
        return False


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
        raise _RefusedError(deleted_reason(target.experiment, found.experiment_id, resolved_uri(target)))
    return str(found.experiment_id)


def _artifacts(database: Path) -> Path:
    return database.parent / "mlartifacts"


def open_client(address: str, patience: Patience | None = None) -> Any:
    """An MlflowClient that prints nothing and does not wait; a new embedded store is made."""
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

        # The default, 10, waits 101 s for a database that refuses; `unreachable` and `_initialise` waited already.
        database.MAX_RETRY_COUNT = min(getattr(database, "MAX_RETRY_COUNT", 2), 2)
    with _no_stray_folder(address):
        client = MlflowClient(tracking_uri=address)
    return client if patience is None else Patient(client, patience)


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
    with contextlib.closing(connect_sqlite(path, "ro", timeout_s=20)) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    if tables and "alembic_version" not in tables:
        raise _RefusedError(f"MLflow's store {path} is half made, or no store of MLflow: move it away, then `sync`")


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
    # Write-ahead log: half the time a run, and readers don't block. Kept by the file.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect_sqlite(fresh, "rw", timeout_s=5)) as database:
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


def error_line(error: BaseException, uri: str) -> str:
    """An exception as one line for a person, without passwords."""
    text = str(error).strip() or type(error).__name__
    shown = safe_uri(split_credentials(uri)[0])
    status = _http_status(error, text) if is_http(uri) else None
    if isinstance(error, _RefusedError):
        return without_secrets(text, uri)
    if isinstance(error, OutOfPatienceError):
        return without_secrets(f"MLflow at {shown} {text}", uri)
    if "Connection refused" in text:
        text = f"MLflow at {shown} does not answer (connection refused)"
    elif re.search(r"[Tt]imed? ?out", text):
        text = f"MLflow at {shown} does not answer (timed out)"
    elif status == 401:
        text = (
            f"MLflow at {shown} refuses the login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or both "
            "in the address in MLFLOW_TRACKING_URI, characters such as @ / # as %40 %2F %23"
        )
    elif "Invalid Host header" in text:
        text = f"MLflow at {shown} does not go by that name: it has to be among the server's --allowed-hosts"
    elif status == 403:
        text = f"MLflow at {shown} does not let this login write there (403): it needs the permission EDIT"
    elif status is not None and status >= 500:
        text = f"MLflow at {shown} answers with an error of its own ({status}): {text.splitlines()[0]}"
    elif "No space left" in text:
        text = f"no space left for MLflow's store {shown}"
    elif "database is locked" in text:
        text = f"MLflow's store {shown} is locked by another process"
    else:
        first = text.splitlines()[0].replace("<database_uri>", shlex.quote(shown))  # in the advice to upgrade it
        text = f"MLflow at {shown}: {first}"
    return cut(without_secrets(text, uri), 400)


def _http_status(error: BaseException, text: str) -> int | None:
    """The status that a server answered with: in the text of what was no answer of MLflow's, or told by its code."""
    if found := re.search(r"failed with error code (\d{3})|too many (\d{3}) error", text):
        return int(found[1] or found[2])
    told = getattr(error, "get_http_status_code", None)
    return int(told()) if told is not None and getattr(error, "error_code", None) is not None else None


# --- looking at it ---


def ui_lines(uploaded: Uploaded, target: Target) -> list[str]:
    """What a person runs and opens to see the sweep; empty where it cannot be said."""
    uri = resolved_uri(target)
    if uploaded.experiment_id is None or uploaded.view_key is None:
        return []
    page = views.table_page(uploaded.experiment_id, uploaded.view_key)
    if is_http(uri):
        parts = urlsplit(split_credentials(uri)[0])
        return [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/{page}"]
    path = sqlite_path(uri)
    if path is None and not uri.startswith(DATABASES):
        return []
    link = f"http://127.0.0.1:5000/{page}"
    if path is None:
        program = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
        return [f"{program} server --backend-store-uri {shlex.quote(safe_uri(uri))}", link]
    # `make ui` is there in a checkout only.
    usual = path == (target.store / "mlflow.db").absolute()
    made = usual and (target.store.parent / "Makefile").exists()
    folder = "" if usual else f" {shlex.quote(str(path.parent))}"
    return [f"python -m tcsweep ui{folder}{'   (or: make ui)' if made else ''}", link]
