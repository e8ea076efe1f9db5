"""A sweep's saved results, taken back from MLflow: where the folder is on another machine, or gone."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcsweep.mistakes import Mistake
from tcsweep.store import RESULT, SWEEP, load_outcome, write_file
from tcsweep.tracking import WAIT_S, credentials, error_line, open_client
from tcsweep.tracking_uri import Target, check, resolved_uri, safe_uri, sqlite_path, unreachable

RUN_ID = re.compile(r"[0-9a-f]{32}")


def fetch(run_id: str, target: Target, root: Path) -> Path:
    """Write sweep.json and every result.json of a sweep's run, or of the sweep that a job's run belongs to, into
    `root`/SWEEP_ID; returns that folder. Raises Mistake where MLflow, the run or its files cannot be had."""
    uri = resolved_uri(target)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise Mistake(f"no MLflow store at {path}: name the server, tracking.uri=ADDRESS")
    if reason := check(target) or unreachable(uri, WAIT_S):
        raise Mistake(reason)
    try:
        with credentials(uri) as address:
            return _fetched(open_client(address), run_id, root)
    except Mistake:
        raise
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise Mistake(f"MLflow at {safe_uri(uri)} has no run {run_id}") from None
        raise Mistake(error_line(error, uri)) from None


def _fetched(client: Any, run_id: str, root: Path) -> Path:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    run = client.get_run(run_id)
    parent_id = run.data.tags.get("mlflow.parentRunId", run_id)
    tags = run.data.tags if parent_id == run_id else client.get_run(parent_id).data.tags
    sweep_id = tags.get("tcsweep.sweep_id")
    if sweep_id is None or tags.get("tcsweep.kind") != "sweep":
        raise Mistake(f"run {run_id} is none of tcsweep's")
    folder = root / str(sweep_id)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        write_file(folder / SWEEP, _downloaded(client, parent_id, SWEEP, scratch))
        for child in _children(client, run.info.experiment_id, parent_id):
            content = _downloaded(client, child, RESULT, scratch)
            one = load_outcome(Path(scratch) / child / RESULT)
            (folder / one.job.folder).mkdir(exist_ok=True)
            write_file(folder / one.job.folder / RESULT, content)
    return folder


def _downloaded(client: Any, run_id: str, name: str, scratch: str) -> bytes:
    folder = Path(scratch) / run_id
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, name, str(folder))).read_bytes()


def _children(client: Any, experiment_id: str, parent_id: str) -> Iterator[str]:
    token = None
    while True:
        wanted = f"tags.`mlflow.parentRunId` = '{parent_id}'"
        page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token)
        yield from (run.info.run_id for run in page)
        token = page.token
        if not token:
            return
