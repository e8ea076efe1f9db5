"""Results on disk: the source of truth. Written atomically, read back whole; everything downstream reads from here."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcsweep.job import SCHEMA_VERSION, Origin, Outcome, Result, Round, Sweep, from_json, outcome_from_json, to_json
from tcsweep.stats import figures

RESULT = "result.json"
SWEEP = "sweep.json"
REFERENCES = ".references"  # float32 outputs, gone when the sweep ends


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON, atomically; raises ValueError for a number that is not finite."""
    write_file(path, json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Write by a temporary file and a rename: a reader, or a kill at any moment, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_leftovers(sweep_dir: Path) -> None:
    """Remove what a kill left in a sweep's folder: files between writing and renaming, and the references."""
    shutil.rmtree(sweep_dir / REFERENCES, ignore_errors=True)
    for name in (SWEEP, RESULT):
        for path in (*sweep_dir.glob(f".{name}.*"), *sweep_dir.glob(f"*/.{name}.*")):
            path.unlink(missing_ok=True)


def save_outcome(sweep_dir: Path, outcome: Outcome) -> Path:
    """Write an outcome's result.json; returns its path. The figures beside the facts are for readers of the file."""
    data: dict[str, Any] = {"schema": SCHEMA_VERSION, **to_json(outcome), "id": outcome.job.id}
    if isinstance(outcome, Result):
        data["figures"] = to_json(figures(outcome.job, outcome.rounds))
    path = sweep_dir / outcome.job.folder / RESULT
    write_json(path, {**data, "digest": digest(data)})
    return path


def digest(data: Mapping[str, Any]) -> str:
    """Of a result file's content but the digest itself: another one shows that the file was changed since."""
    rest = {name: value for name, value in data.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_sweep(sweep_dir: Path, sweep: Sweep) -> None:
    """Write sweep.json."""
    write_json(sweep_dir / SWEEP, {"schema": SCHEMA_VERSION, **to_json(sweep)})


def load_origin(sweep_dir: Path) -> Origin | None:
    """What a sweep was started with, None where a kill came before it was written. Raises OSError or ValueError."""
    text = (sweep_dir / SWEEP).read_text(encoding="utf-8")
    saved = json.loads(text) if text.strip() else {}
    return from_json(Origin, saved) if "argv" in saved else None


def is_planned(sweep_dir: Path) -> bool:
    """Whether a sweep came as far as a plan; before that its file holds no more than the words typed."""
    try:
        return "id" in json.loads((sweep_dir / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_outcome(path: Path) -> Outcome:
    """Read one result.json; raises OSError, or ValueError for what is none, of a newer schema, or without its times."""
    data = json.loads(path.read_text(encoding="utf-8"))
    try:
        _refuse_newer(path, data)
        outcome = outcome_from_json(data)
        wrong = next((said for one in outcome.rounds if (said := _no_times(one))), None)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} does not hold a result: {error}") from None
    if wrong:
        raise ValueError(f"{path}: {wrong}")
    return outcome


def _refuse_newer(path: Path, data: Mapping[str, Any]) -> None:
    """Fields that are new are no matter; a schema that is new means that old ones mean something else."""
    schema = data.get("schema", SCHEMA_VERSION)
    if schema > SCHEMA_VERSION:
        raise ValueError(f"{path} is of schema {schema}, this tcsweep reads {SCHEMA_VERSION}: update it")


def _no_times(one: Round) -> str | None:
    """Why a round's times are none."""
    times = (*one.block_wall_ms, *one.latency_ms, *(one.block_device_ms or ()))
    bad = next((ms for ms in times if ms is None or not (math.isfinite(ms) and ms >= 0)), None)
    if bad is not None or None in times:
        return f"round {one.number} holds a time of {bad} ms"
    if not one.block_wall_ms or sum(one.block_wall_ms) <= 0 or one.block_iterations < 1:
        return f"round {one.number} holds no time"
    return None


def load_sweep(sweep_dir: Path) -> tuple[Sweep, list[Outcome]]:
    """A sweep and the outcomes saved so far, in row order; raises OSError or ValueError."""
    data = json.loads((sweep_dir / SWEEP).read_text(encoding="utf-8"))
    _refuse_newer(sweep_dir / SWEEP, data)
    sweep = from_json(Sweep, data)
    paths = [sweep_dir / name / RESULT for name in sweep.folders]
    return sweep, [load_outcome(p) for p in paths if p.exists()]
