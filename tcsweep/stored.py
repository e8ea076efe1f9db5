"""`baseline=store`: what is compared with was measured by an earlier sweep. Looked up before anything is measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tcsweep import store
from tcsweep.explain import SUSPECT, verdicts
from tcsweep.job import MEASUREMENT_VERSION, Job, Result
from tcsweep.mistakes import Mistake
from tcsweep.plan import Planned
from tcsweep.resume import differences, fields_of
from tcsweep.stats import figures


def taken(planned: Sequence[Planned], folder: Path) -> list[Planned]:
    """The plan with the newest saved results below `folder` in place of the baselines and references that it would
    measure. Raises Mistake, with the difference named, where a baseline was measured elsewhere, otherwise or never; a
    reference that is not there is left out."""
    made = []
    for one in planned:
        if one.role not in ("baseline", "reference"):
            made.append(one)
            continue
        found, reason = _newest(one, folder)
        if found is not None:
            again = dataclasses.replace(found, role="stored", index=one.index)
            made.append(dataclasses.replace(one, role="stored", stored=again))
        elif one.role == "baseline":
            raise Mistake(f"baseline=store: {one.job.label}: {reason}")
    return made


def _newest(one: Planned, folder: Path) -> tuple[Result | None, str]:
    """The newest result that may be compared with; else why the newest of all may not."""
    found = sorted(_saved(one.job, folder), key=lambda pair: pair[0].started_at, reverse=True)
    refused = []
    for result, sweep_dir in found:
        apart = _apart(one, result, sweep_dir)
        if not apart:
            return dataclasses.replace(result, measured_in=result.measured_in or str(sweep_dir)), ""
        refused.append(f"in {sweep_dir} {'; '.join(apart)}")
    words = " ".join(f"{name}={value}" for name, value in one.job.axes.items())
    measure = f"measure it first: python -m tcsweep {words}"
    return None, f"{refused[0]}: not compared; {measure}" if refused else f"no saved result in {folder}: {measure}"


def _saved(job: Job, folder: Path) -> Iterator[tuple[Result, Path]]:
    """Results whose axes are the job's, with the folders of their sweeps; what cannot be read is not there."""
    for path in folder.glob(f"**/{job.label}-*/{store.RESULT}"):
        try:
            outcome = store.load_outcome(path)
        except (OSError, ValueError):
            continue
        if isinstance(outcome, Result) and outcome.rounds:
            yield outcome, path.parents[1]


def _apart(one: Planned, result: Result, sweep_dir: Path) -> list[str]:
    """Why a saved result is not the job's in this environment."""
    said = [
        f"{name} was {_shown(old)}, is {_shown(new)}" for name, old, new in _fields(result.job, one.job) if old != new
    ]
    version = _measurement_version(sweep_dir)
    if version != MEASUREMENT_VERSION:
        said.append(f"the way of measuring was version {version}, is {MEASUREMENT_VERSION}")
    said += differences(result.environment, one.environment, fields_of(result))
    suspect = next((v for v in verdicts(result, figures(result.job, result.rounds)) if v.name == SUSPECT), None)
    return [*said, f"it is suspect: {'; '.join(suspect.reasons)}"] if suspect else said


def _fields(old: Job, new: Job) -> Iterator[tuple[str, object, object]]:
    for f in dataclasses.fields(Job):
        if f.name == "measure" and old.measure.name == new.measure.name:
            for g in dataclasses.fields(old.measure):
                yield f"measure.{g.name}", getattr(old.measure, g.name), getattr(new.measure, g.name)
        else:
            yield f.name, getattr(old, f.name), getattr(new, f.name)


def _shown(value: object) -> object:
    return getattr(value, "name", value)


def _measurement_version(sweep_dir: Path) -> int | None:
    try:
        version = json.loads((sweep_dir / store.SWEEP).read_text(encoding="utf-8")).get("measurement_version")
        return version if isinstance(version, int) else None
    except (OSError, ValueError, AttributeError):
        return None
