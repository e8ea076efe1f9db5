"""Tracking that fails in every way that was thought of: how long it is waited for, what is said, that nothing is lost.
The table in docs/tracking.md is of these."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcsweep import tracking
from tcsweep.owner import this_process
from tcsweep.store import load_sweep, save_sweep
from tcsweep.tracking import upload
from tcsweep.tracking_uri import Target, sqlite_uri
from tests import sweeps

from .test_main import FAST, SMALL, Here, environment, here
from .test_tracking import a_server, client_of, files_below, new_database, runs_of, store, target

__all__ = ["here", "new_database", "store", "target"]  # fixtures

Answer = Callable[[Any], "tuple[int, dict[str, Any]]"]
PROMISED_S = 5.0
SWEEPS = int(os.environ.get("TCSWEEP_TEST_SWEEPS", "3"))
SLACK_S = 3.0  # of a machine that does other things, too


def fake(folder: Path, spoiled: Callable[[Any, int], tuple[int, dict[str, Any]] | None]) -> Answer:
    """A tracking server that takes everything, but for what `spoiled(handler, number of the call)` answers."""
    calls = 0

    def answer(handler: Any) -> tuple[int, dict[str, Any]]:
        nonlocal calls
        calls += 1
        if (said := spoiled(handler, calls)) is not None:
            return said
        experiment = {"experiment_id": "1", "name": "tcsweep", "lifecycle_stage": "active", "tags": []}
        run = {"info": {"run_id": "r", "artifact_uri": (folder / "there").as_uri(), "lifecycle_stage": "active"}}
        if "experiments/get" in handler.path:
            return 200, {"experiment": experiment}
        return 200, {"run": run} if "runs/create" in handler.path or "runs/get" in handler.path else {}

    return answer


def sent_in(folder: Path, answer: Answer) -> tuple[tracking.Uploaded, float, Path]:
    """An upload to such a server, the seconds it took, and the sweep's folder."""
    sweep_dir = sweeps.write_sweep(folder / "o")
    with a_server(answer) as port:
        began = time.monotonic()
        done = upload(sweep_dir, Target(f"http://127.0.0.1:{port}", store=folder))
        return done, time.monotonic() - began, sweep_dir


def slow(seconds: float, after: int = 0) -> Callable[[Any, int], None]:
    return lambda handler, n: time.sleep(seconds) if n > after else None


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        pytest.param(slow(30), "does not answer (timed out)", id="mute from the start"),
        pytest.param(slow(30, after=6), "does not answer (timed out)", id="mute in the middle"),
        pytest.param(slow(0.9), "answers too slowly: waited", id="slow at every call"),
        pytest.param(
            lambda h, n: (500, {"error_code": "INTERNAL_ERROR"}) if n > 1 else None, "(500)", id="500 at every call"
        ),
        pytest.param(
            lambda h, n: (503, {"error_code": "TEMPORARILY_UNAVAILABLE"}) if n > 8 else None,
            "(503)",
            id="503 in the middle",
        ),
        pytest.param(
            lambda h, n: (401, {"error_code": "UNAUTHENTICATED"}) if n > 1 else None, "refuses the login", id="login"
        ),
        pytest.param(
            lambda h, n: (403, {"error_code": "PERMISSION_DENIED"}) if n > 4 else None,
            "permission EDIT",
            id="no permission",
        ),
        pytest.param(lambda h, n: (200, {"nonsense": 1}) if n > 1 else None, "MLflow at", id="another service"),
    ],
)
def test_a_server_costs_a_sweep_five_seconds_in_all_and_no_result(
    tmp_path: Path, spoiled: Callable[[Any, int], Any], said: str
) -> None:
    upload(sweeps.write_sweep(tmp_path / "first"), Target("http://127.0.0.1:9", store=tmp_path))  # imports are done
    done, took, sweep_dir = sent_in(tmp_path, fake(tmp_path, spoiled))
    assert done.error is not None
    assert said in done.error
    assert "\n" not in done.error
    assert took < PROMISED_S + SLACK_S
    assert len(files_below(sweep_dir)) == 6


def test_a_store_that_becomes_full_is_one_line_and_sync_takes_it_up(
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    sweep_dir, log_artifact, left = sweeps.write_sweep(target.store), MlflowClient.log_artifact, [3]

    def full(self: Any, run_id: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        log_artifact(self, run_id, path)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", full)
        done = upload(sweep_dir, target)
    assert done.error is not None
    assert done.error.startswith("no space left for MLflow's store")
    again = upload(sweep_dir, target)
    assert (again.error, again.runs + again.already) == (None, 5)
    assert len(runs_of(target)) == 6


def test_a_store_locked_for_a_while_is_waited_for(target: Target) -> None:
    sweep_dir = sweeps.write_sweep(target.store)
    upload(sweep_dir, dataclasses.replace(target, experiment="warm"))
    path = target.store / "mlflow.db"
    locked = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    locked.execute("begin immediate")
    threading.Timer(3, lambda: locked.execute("rollback")).start()
    began = time.monotonic()
    done = upload(sweep_dir, target)
    assert (done.error, done.runs) == (None, 5)
    assert 2 < time.monotonic() - began < 15
    locked.close()


def test_a_half_made_database_is_one_line_and_left_alone(tmp_path: Path) -> None:
    sweep_dir = sweeps.write_sweep(tmp_path)
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table experiments (half integer)")
        database.commit()
    before = path.read_bytes()
    done = upload(sweep_dir, Target(None, store=tmp_path))
    assert done.error is not None
    assert "\n" not in done.error
    assert path.read_bytes() == before
    assert len(files_below(sweep_dir)) == 6


def test_a_database_of_another_mlflow_is_never_migrated_unasked(target: Target) -> None:
    path = target.store / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update alembic_version set version_num = 'deadbeef0000'")
        database.commit()
    done = upload(sweeps.write_sweep(target.store), target)
    assert done.error is not None
    assert "mlflow db upgrade" in done.error
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("select version_num from alembic_version").fetchone() == ("deadbeef0000",)


# --- runs that nobody will end ---


def test_a_run_left_running_by_a_sweep_killed_here_is_closed_and_nobody_elses(target: Target) -> None:
    me = this_process()
    dead = dataclasses.replace(me, started="1")
    owners = {
        "killed": dead,
        "alive": me,
        "elsewhere": dataclasses.replace(dead, host="another"),
        "contained": dataclasses.replace(dead, pid_namespace="pid:[1]"),
    }
    ids = {}
    for name, owner in owners.items():
        folder = sweeps.write_sweep(target.store, sweeps.outcomes()[:2], name=name, status="running")
        alive = dataclasses.replace(load_sweep(folder)[0], owner=me)
        save_sweep(folder, alive)
        ids[name] = upload(folder, target).parent_run_id
        client_of(target).set_tag(ids[name], "tcsweep.owner", json.dumps(dataclasses.asdict(owner)))
        client_of(target).set_tag(ids[name], "tcsweep.owner_host", owner.host)
    upload(sweeps.write_sweep(target.store, name="later"), target)
    found = {name: client_of(target).get_run(run_id).info for name, run_id in ids.items()}
    assert {name: info.status for name, info in found.items()} == {
        "killed": "KILLED",
        "alive": "RUNNING",
        "elsewhere": "RUNNING",
        "contained": "RUNNING",
    }
    assert found["killed"].end_time == 1_764_000_032_500  # its last child's


def test_what_a_killed_sweep_measured_is_sent_as_killed(target: Target) -> None:
    folder = sweeps.write_sweep(target.store, sweeps.outcomes()[:2], status="running")
    gone = dataclasses.replace(this_process(), started="1")
    save_sweep(folder, dataclasses.replace(load_sweep(folder)[0], owner=gone))
    done = upload(folder, target)
    info = client_of(target).get_run(done.parent_run_id).info
    assert (info.status, info.end_time) == ("KILLED", 1_764_000_032_500)
    assert upload(folder, target).runs == 0


# --- eight at once ---


def test_sweeps_that_start_together_on_no_database_are_all_there_once(tmp_path: Path) -> None:
    """Full size: TCSWEEP_TEST_SWEEPS=8."""
    words = ["-m", "precision=fp32", "batch=1", *SMALL, *FAST, f"tracking.uri={sqlite_uri(tmp_path / 'mlflow.db')}"]
    started = []
    for n in range(SWEEPS):
        (tmp_path / str(n)).mkdir()
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tcsweep", *words],
                cwd=tmp_path / str(n),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * SWEEPS, said
    assert [text for text in said if "send it later" in text] == []
    client = client_of(Target(sqlite_uri(tmp_path / "mlflow.db"), store=tmp_path))
    runs = client.search_runs(["1"])
    ids = [run.data.tags["tcsweep.result_id"] for run in runs]
    assert len(ids) == len(set(ids)) == 2 * SWEEPS


# --- the password ---


@pytest.mark.parametrize("answers", [True, False], ids=["a sweep", "a failed sweep"])
def test_a_password_with_odd_characters_is_nowhere_after_a_sweep(
    tmp_path: Path,
    here: Here,
    answers: bool,
) -> None:
    secret = "S3cr et@/#%&"
    from urllib.parse import quote

    words = ["-m", "precision=fp32", *SMALL, *FAST]
    words += [] if answers else ["batch=100000000", "fit=try"]
    seen = []

    def note(handler: Any, n: int) -> None:
        seen.append(handler.headers.get("Authorization"))

    with a_server(fake(tmp_path, note)) as port:
        uri = f"http://bob:{quote(secret, safe='')}@127.0.0.1:{port}"
        stop, found = threading.Event(), []
        watching = threading.Thread(target=_watch_arguments, args=(stop, found))
        watching.start()
        try:
            done = here(*words, MLFLOW_TRACKING_URI=uri)
        finally:
            stop.set()
            watching.join()
    assert done.returncode == (0 if answers else 1), done.stderr
    assert any(one for one in seen)  # it was used
    texts = [done.stdout, done.stderr, *found]
    texts += [p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert [text for text in texts if "S3cr" in text] == []


def _watch_arguments(stop: threading.Event, found: list[str]) -> None:
    """The arguments of every process, as any user of the machine sees them."""
    while not stop.wait(0.05):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = path.read_text(errors="replace")
                if "S3cr" in text:
                    found.append(text)
