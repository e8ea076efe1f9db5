"""From composed configs to a finished sweep: measured, saved, then told. Where the side effects meet."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tcsweep import config, resume, session, store, sweep
from tcsweep.config import Loaded, Tracking
from tcsweep.job import Failure, Origin
from tcsweep.lock import folder_lock
from tcsweep.mistakes import Mistake
from tcsweep.objective import value
from tcsweep.report.words import number
from tcsweep.speedup import Row
from tcsweep.tracking import Uploaded, prepare, ui_lines, upload
from tcsweep.tracking_uri import Target, check, redact


def load(configs: Sequence[DictConfig]) -> list[Loaded]:
    """Check every config; raises Mistake for the first that is wrong."""
    return [_load(number, one, len(configs)) for number, one in enumerate(configs)]


def measure(loaded: Sequence[Loaded], folder: Path, trial: Origin | None = None) -> list[float]:
    """Measure checked configs as one sweep, then report; returns each one's objective. A `trial` of a search is told in
    a line, and says what would repeat it alone. Raises Mistake with nothing measured."""
    target = _target(loaded[0].tracking)
    from rich.console import Console

    from tcsweep.report.progress import pick

    console, progress = Console(), pick(Console(stderr=True))
    if target is not None and (reason := check(target)):
        progress.message(f"MLflow: {reason}; results go to the folder only, to be sent later by `sync`")
        target = None
    command = redact(shlex.join(["python", "-m", "tcsweep", *session.ARGV]))
    saved = resume.origin(session.RESUMING[0]) if session.RESUMING else None
    origin = saved or trial or resume.origin_of(session.ARGV)
    repeated = [one for one in loaded for _ in range(one.repeat)]
    with sweep.signals_raise():
        claimed = _folder(folder, origin)
        try:
            with folder_lock(claimed):
                finished = sweep.run(
                    [one.job for one in repeated],
                    claimed,
                    progress,
                    command=command,
                    composed=[redact(one.composed) for one in repeated],
                    name=loaded[0].name,
                    while_waiting=lambda: _prepare(target),
                    origin=origin,
                    baselines=loaded[0].baselines,
                    check_fit=loaded[0].check_fit,
                )
        finally:
            if not session.RESUMING:
                sweep.release(claimed)
    session.EXIT_STATUS.append(finished.exit_status)
    rows = iter(tell(finished.folder, target, console, brief=trial is not None))
    values = [value([next(rows) for _ in range(one.repeat)], one.objective, one.latency_ms_p50_max) for one in loaded]
    if trial is not None:
        for one, found in zip(loaded, values):
            bounded = one.latency_ms_p50_max is not None
            lacking = "outside the bound, or not measured" if bounded else "not measured"
            figure = lacking if found == one.objective.worst else number(found)
            line = f"{one.job.label}: {one.objective.name} {figure}   {finished.folder}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    return values


def _folder(folder: Path, origin: Origin) -> Path:
    """The sweep's folder, made. Raises Mistake where the user names one that a sweep has already."""
    if session.RESUMING:
        if not os.access(session.RESUMING[0], os.W_OK):
            raise Mistake(f"cannot write in {session.RESUMING[0]}: go on with a copy of it")
        return session.RESUMING[0]
    if resume.named_folders(session.ARGV):
        resume.refuse_taken(folder)
    return sweep.claim(folder, origin)


def _prepare(target: Target | None) -> None:
    """Import what the end of the sweep needs, and make a new MLflow store, before anything is measured."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home that cannot be written is no concern of ours
    with contextlib.suppress(Exception):  # said when the picture is drawn
        import matplotlib.figure  # noqa: F401
    if target is not None:
        prepare(target)


def tell(folder: Path, target: Target | None, console: Any, brief: bool = False) -> list[Row]:
    """Everything that follows the measuring, from what is on disk: files, table, MLflow. It cannot lose a result. In
    `brief` only what went wrong is said. Returns the rows, the asked ones first, in the order typed."""
    from tcsweep import report
    from tcsweep.report import table

    rows = report.write(folder)
    record, _ = store.load_sweep(folder)
    uploaded = None if target is None else upload(folder, target)  # first: printing ends with a closed pipe
    if not brief:
        table.render(record, rows, console)
        console.print(f"Results: {folder}", soft_wrap=True, highlight=False)
    if record.status != "finished" or any(isinstance(row.outcome, Failure) for row in rows):
        console.print(f"Go on:   {resume.line(folder)}", soft_wrap=True, highlight=False)
    if target is not None and uploaded is not None and (uploaded.error or not brief):
        say_uploaded(folder, target, uploaded, console)
    return rows


def say_uploaded(folder: Path, target: Target, uploaded: Uploaded, console: Any) -> bool:
    """Say where in MLflow a sweep is, or how to send it later; whether all of it arrived."""
    if uploaded.error:
        console.print(f"MLflow: {uploaded.error}", soft_wrap=True, highlight=False, markup=False)
        console.print(
            f"Nothing is lost; send it later: python -m tcsweep sync {folder}", soft_wrap=True, highlight=False
        )
        return False
    for line in ui_lines(uploaded, target):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return True


def _load(number: int, composed: DictConfig, total: int) -> Loaded:
    try:
        return config.load(composed)
    except Mistake as error:
        raise Mistake(f"job {number + 1} of {total}: {error}" if total > 1 else str(error)) from None


def _target(tracking: Tracking) -> Target | None:
    if tracking.name == "none":
        return None
    return Target(uri=tracking.uri, experiment=tracking.experiment, store=Path("outputs").resolve())
