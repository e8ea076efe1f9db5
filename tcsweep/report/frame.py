"""The lines around the tables: what was measured on, what has to be said once, what failed, and the counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Failure, Result, Sweep
from tcsweep.report.words import (
    amp_titles,
    count,
    device_title,
    duration,
    half_dtypes,
    one_line,
    precision_labels,
)
from tcsweep.speedup import Row

KINDS = {
    "gpu-memory": "out of GPU memory",
    "host-memory": "out of host memory",
    "killed": "killed",
    "timeout": "timed out",
    "too-large": "too large",
}
ONCE = ("unverified",)  # verdicts said once, under the tables, not in every row


def heading(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """A line for each device measured, then one for the software."""
    devices: dict[tuple[str | None, str], list[Row]] = {}
    for row in rows:
        devices.setdefault((row.outcome.environment.host, row.outcome.environment.device), []).append(row)
    lines = [_device_line(group[0].outcome.environment, group) for group in devices.values()]
    lines = lines or [_device_line(sweep.environment, [])]
    return [line for line in (*lines, _software_line(sweep.environment, rows)) if line]


def _device_line(environment: Environment, rows: Sequence[Row]) -> str:
    kind = "CPU" if environment.device == "cpu" else "GPU"
    name = device_title(environment)
    half = half_dtypes(rows)
    modes = dict.fromkeys(row.outcome.environment.power_mode for row in rows) or [environment.power_mode]
    return _joined(
        name if name == environment.device else f"{name} ({environment.device})",
        environment.module != name and environment.module,
        environment.jetpack and f"JetPack {environment.jetpack}",
        any(modes) and f"power mode{'s' * (len(modes) > 1)} {', '.join(str(m) for m in modes if m)}",
        half and f"half = {', '.join(half)} on this {kind}",
    )


def _software_line(environment: Environment, rows: Sequence[Row]) -> str:
    on_cuda = any(r.outcome.environment.device.startswith("cuda") for r in rows)
    amp = amp_titles(rows)
    return _joined(
        environment.torch and f"torch {environment.torch}",
        on_cuda and environment.cuda and f"CUDA {environment.cuda}",
        on_cuda and environment.cudnn and f"cuDNN {environment.cudnn}",
        amp and f"amp: {', '.join(amp)}",
    )


def _joined(*parts: object) -> str:
    return " · ".join(str(p) for p in parts if p)


def failure_words(failure: Failure) -> str:
    """Why a job failed, in a few words."""
    return KINDS.get(failure.kind) or f"error in {failure.stage}"


def footnotes(sweep: Sweep, rows: Sequence[Row], left_out: Sequence[str], width: int) -> list[str]:
    """What is said once for all tables."""
    lines = [*_verdicts_said_once(rows), *_advice(rows), *_round_notes(rows), *_stored(rows)]
    removed = sweep.environment.removed_variables
    if removed:
        lines.append(f"taken out of the workers' environment, as they change results: {', '.join(removed)}")
    if left_out:
        lines.append(f"not shown at {width} columns, but in summary.csv: {', '.join(left_out)}")
    return lines


def _verdicts_said_once(rows: Sequence[Row]) -> list[str]:
    measured = [r for r in rows if r.figures is not None]
    lines = []
    for name in ONCE:
        found = [v for r in measured for v in r.verdicts if v.name == name]
        if found:
            which = "" if len(found) == len(measured) else f" ({count(len(found), 'job')} of {len(measured)})"
            lines.append(f"{name}: {'; '.join(found[0].reasons)}{which}")
    return lines


def _advice(rows: Sequence[Row]) -> list[str]:
    found = {v.name: v.advice for r in rows for v in r.verdicts if v.advice and v.name not in ONCE}
    return [f"{name}: {advice}" for name, advice in found.items()]


def _round_notes(rows: Sequence[Row]) -> list[str]:
    said: dict[str, dict[str, None]] = {}
    for row, label in zip(rows, precision_labels([r.job for r in rows]), strict=True):
        for one in row.outcome.rounds:
            for note in one.notes:
                said.setdefault(one_line(note), {})[label] = None
    return [f"{', '.join(labels)}: {note}" for note, labels in said.items()]


def _stored(rows: Sequence[Row]) -> list[str]:
    """What was not measured here, by the sweep that did."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if isinstance(row.outcome, Result) and row.outcome.role == "stored":
            day = time.strftime("%Y-%m-%d", time.localtime(row.outcome.started_at))
            found.setdefault((row.outcome.measured_in or "another sweep", day), []).append(row)
    return [
        f"stored: {count(len(group), 'job')} measured on {day} in {folder}; intervals over it know nothing of what "
        "changed between the two sweeps"
        for (folder, day), group in found.items()
    ]


def suspicions(rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...]]]:
    """Label and reasons of each job whose figures must not be used."""
    return [(r.job.label, v.reasons) for r in rows for v in r.verdicts if v.name == SUSPECT]


def failures(rows: Sequence[Row]) -> list[tuple[str, str, str | None]]:
    """Label, what happened, and the log's path in the sweep's folder, of each job that failed."""
    return [
        (o.job.label, f"{o.stage}: {one_line(o.reason)}", f"{o.job.folder}/{o.log}" if o.log else None)
        for o in (r.outcome for r in rows)
        if isinstance(o, Failure)
    ]


def closing(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The counts: 15 jobs: 14 measured, 1 failed; 3 rounds each; 182 s."""
    asked = [r.outcome for r in rows if r.outcome.role == "asked"]
    missing = max(len(sweep.folders) - len(rows), 0)
    tally = {name: sum(o.status == status for o in asked) for status, name in _STATUS_WORDS.items()}
    said = [f"{n} {name}" for name, n in {**tally, "not reached": missing}.items() if n or name == "measured"]
    doubtful = sum(r.verdict == SUSPECT for r in rows)
    parts = [
        f"{count(len(asked) + missing, 'job')}: {', '.join(said)}",
        f"{doubtful} suspect" if doubtful else "",
        _added(rows),
        _rounds(rows),
    ]
    parts.append(duration(sweep.wall_s) if sweep.wall_s is not None else "")
    start = "" if sweep.status == "finished" else f"{_UNFINISHED[sweep.status]}; "
    return start + "; ".join(p for p in parts if p)


_STATUS_WORDS = {"ok": "measured", "failed": "failed", "skipped": "skipped"}
_UNFINISHED = {"interrupted": "interrupted", "running": "not finished"}


def _added(rows: Sequence[Row]) -> str:
    added = [r.outcome for r in rows if r.outcome.role not in ("asked", "stored")]
    failed = sum(isinstance(o, Failure) for o in added)
    stored = sum(r.outcome.role == "stored" for r in rows)
    parts = [
        f"{len(added)} added for comparison{f' ({failed} failed)' if failed else ''}" if added else "",
        f"{stored} taken from an earlier sweep" if stored else "",
    ]
    return "; ".join(part for part in parts if part)


def _rounds(rows: Sequence[Row]) -> str:
    measured = [r.outcome for r in rows if isinstance(r.outcome, Result) and r.outcome.role != "stored"]
    counts = sorted(len(one.rounds) for one in measured)
    if not counts:
        return ""
    least, most = counts[0], counts[-1]
    each = "" if len(counts) == 1 else " each"
    return f"{count(most, 'round')}{each}" if least == most else f"{least} to {most} rounds each"
