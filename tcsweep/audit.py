"""`python -m tcsweep audit FOLDER ...`: saved results checked again, from what is saved. Nothing is measured.

Exit status 0 where nothing is found, 1 where something is, 2 for a folder that holds no sweep."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tcsweep import explain, store
from tcsweep.job import (
    MEASUREMENT_VERSION,
    SCHEMA_VERSION,
    Outcome,
    Result,
    Round,
    Sweep,
    from_json,
    outcome_from_json,
    to_json,
)
from tcsweep.mistakes import Mistake
from tcsweep.stats import figures

USAGE = "python -m tcsweep audit FOLDER [FOLDER ...]"
SAME = 1e-9  # relative difference of two figures computed from the same times
# Of the timed phase's duration, what its blocks may add up to, but for `BETWEEN_MS` a block: 0.97 to 1 were seen.
BLOCKS_SHARE = (0.75, 1.001)
BETWEEN_MS = 1.0
# A CPU's iteration in a block takes no less than this share of one alone, both medians: 0.89 to 1.24 were seen in 100
# rounds on a shared machine, so that what was made half of it is below.
LATENCY_LEAST = 0.65
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError)  # of a file edited by hand


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file or a job of a sweep."""

    where: str
    what: str


def main(arguments: list[str]) -> int:
    """Check each folder and print what was found. Raises Mistake."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\nSaved results checked again, from their own evidence; exit status 1 where something is wrong.")
        return 0
    if not arguments or any(a.startswith("-") for a in arguments):
        raise Mistake(f"audit takes folders of sweeps: {USAGE}")
    found = 0
    for name in arguments:
        folder = Path(name)
        if not (folder / store.SWEEP).is_file():
            raise Mistake(f"{name}: no sweep's folder, it has no {store.SWEEP}")
        findings = list(audit(folder))
        results = len(list(folder.glob(f"*/{store.RESULT}")))
        for one in findings:
            print(f"{one.where}: {one.what}")
        print(f"{name}: {results} results, {f'{len(findings)} findings' if findings else 'nothing found'}")
        found += len(findings)
    return 1 if found else 0


def audit(folder: Path) -> Iterator[Finding]:
    """Everything that is wrong with a sweep's folder."""
    try:
        saved = _load(folder / store.SWEEP)
        sweep = from_json(Sweep, saved)
    except UNREADABLE as error:
        yield Finding(store.SWEEP, f"cannot be read: {error}")
        return
    yield from _versions(store.SWEEP, saved, sweep.measurement_version)
    for name in sweep.folders:
        path = folder / name / store.RESULT
        if path.exists():
            yield from _result(name, path)
        elif sweep.status == "finished":
            yield Finding(name, f"{store.RESULT} is missing, and the sweep finished")
    strays = {p.parent.name for p in folder.glob(f"*/{store.RESULT}")} - set(sweep.folders)
    yield from (Finding(name, "no job of this sweep") for name in sorted(strays))


def _versions(where: str, saved: Mapping[str, Any], measurement: int) -> Iterator[Finding]:
    if saved.get("schema") != SCHEMA_VERSION:
        yield Finding(where, f"schema {saved.get('schema')}, this tcsweep writes {SCHEMA_VERSION}")
    if measurement != MEASUREMENT_VERSION:
        yield Finding(where, f"measured by method {measurement}, this tcsweep by {MEASUREMENT_VERSION}: do not compare")


def _load(path: Path) -> Any:
    """A file's JSON; ValueError for numbers that are none, which `store` never writes."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _result(name: str, path: Path) -> Iterator[Finding]:
    try:
        saved = _load(path)
        outcome = outcome_from_json(saved)
        yield from _outcome(name, saved, outcome)
    except UNREADABLE as error:
        yield Finding(name, f"cannot be read: {type(error).__name__}: {error}")


def _outcome(name: str, saved: Mapping[str, Any], outcome: Outcome) -> Iterator[Finding]:
    yield from _versions(name, saved, MEASUREMENT_VERSION)
    if saved.get("digest") != store.digest(saved):
        yield Finding(name, "the file was changed after it was written")
    if not (saved.get("id") == outcome.job.id and name == outcome.job.folder):
        yield Finding(name, f"holds job {outcome.job.folder}")
    impossible = [f"round {r.number}: {what}" for r in outcome.rounds for what in _impossible(r)]
    if isinstance(outcome, Result) and not outcome.rounds:
        impossible = ["holds no round"]
    yield from (Finding(name, what) for what in impossible)
    if isinstance(outcome, Result) and not impossible:
        yield from (Finding(name, what) for what in _contradictions(outcome, saved))


def _impossible(one: Round) -> Iterator[str]:
    """Values that no measurement gives."""
    device = one.block_device_ms
    if not one.block_wall_ms or one.block_iterations < 1:
        yield "holds no timed block"
        return
    if not all(_is_time(ms) for ms in (*one.block_wall_ms, *(device or ()), *one.latency_ms)):
        yield "a time is not over 0"
        return
    if device is not None and len(device) != len(one.block_wall_ms):
        yield f"{len(one.block_wall_ms)} blocks, {len(device)} device times"
    yield from _too_short_or_long(one)
    iteration_ms = median(one.block_wall_ms) / one.block_iterations
    if device is None and one.latency_ms and iteration_ms < LATENCY_LEAST * median(one.latency_ms):
        yield f"an iteration took {iteration_ms:.3g} ms in a block, and {median(one.latency_ms):.3g} ms alone"


def _is_time(ms: Any) -> bool:
    return isinstance(ms, (int, float)) and math.isfinite(ms) and ms > 0


def _too_short_or_long(one: Round) -> Iterator[str]:
    """Blocks against the duration of the phase, which is kept twice."""
    sums_ms, blocks = sum(one.block_wall_ms), len(one.block_wall_ms)
    known = one.timed_from is not None and one.timed_until is not None
    kept = [(one.timed_until or 0.0) - (one.timed_from or 0.0)] if known else []
    kept += [one.stage_s["throughput"]] if "throughput" in one.stage_s else []
    for phase_ms in dict.fromkeys(round(s * 1e3, 3) for s in kept):
        least = BLOCKS_SHARE[0] * phase_ms - BETWEEN_MS * blocks
        if not least <= sums_ms <= BLOCKS_SHARE[1] * phase_ms:
            yield f"the blocks add up to {sums_ms:.4g} ms, and were timed in {phase_ms:.4g} ms"


def _contradictions(result: Result, saved: Mapping[str, Any]) -> Iterator[str]:
    derived = figures(result.job, result.rounds)
    yield from (f"figures: {name} is not what its times give" for name in _differing(saved.get("figures"), derived))
    verdict = explain.suspect(result, derived)
    if verdict is not None:
        yield from (f"suspect: {reason}" for reason in verdict.reasons)


def _differing(saved: Any, derived: Any) -> Sequence[str]:
    if not isinstance(saved, Mapping):
        return ["all"]
    fresh = to_json(derived)
    return [name for name, value in saved.items() if name in fresh and not _same(value, fresh[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12)
    return bool(one == other)
