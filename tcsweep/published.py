"""What others published for this device and model, and how far a sweep's best job is from it: in factors that the sweep
measured, and what is left."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tcsweep.explain import SUSPECT
from tcsweep.job import Environment, Job
from tcsweep.speedup import Row

FILE = Path(__file__).parent / "data" / "published.csv"
# What a device calls itself, and the name in the file. A module's name goes before a GPU's: "Orin" is many modules.
DEVICES = (
    (re.compile(r"Jetson[- ]AGX Orin|AGX Orin"), "AGX Orin 64GB"),
    (re.compile(r"Orin NX"), "Orin NX"),
    (re.compile(r"Xavier NX"), "Xavier NX"),
    (re.compile(r"AGX Xavier|Jetson-AGX\b"), "AGX Xavier"),
    (re.compile(r"\bH200\b"), "H200"),
    (re.compile(r"\bH100\b(?!.*(PCIe|NVL))"), "H100 SXM"),
)
AXES = ("precision", "layout", "engine")
NOT_AN_AIM = re.compile(r"contaminated|not retrievable")  # figures that are known to be wrong, or of no known device


@dataclass(frozen=True)
class Published:
    """A published figure."""

    device: str
    model: str
    precision: str
    engine: str
    img_s: float
    source: str
    note: str


@dataclass(frozen=True)
class Gap:
    """How far the best of a sweep is from the fastest published."""

    best: Row
    of: Published
    share: float  # of the published figure
    steps: tuple[tuple[str, float], ...]  # what the sweep measured on the way from fp32, NCHW, eager: ("nhwc", 1.47)


@functools.cache
def figures(file: Path = FILE) -> tuple[Published, ...]:
    """All of the file, with the source of each."""
    with file.open(encoding="utf-8", newline="") as lines:
        return tuple(
            Published(r["device"], r["model"], r["precision"], r["engine"], float(r["img_s"]), r["source"], r["note"])
            for r in csv.DictReader(lines)
        )


def device(environment: Environment) -> str | None:
    """The file's name of a device; None where it has none. A CPU is no device there."""
    if not environment.device.startswith("cuda"):
        return None
    names = f"{environment.module or ''} {environment.device_name or ''}"
    return next((name for pattern, name in DEVICES if pattern.search(names)), None)


def gap(rows: Sequence[Row], published: Sequence[Published] | None = None) -> Gap | None:
    """The best asked job against the fastest published figure of its device and model; None where none is known."""
    able = [r for r in rows if r.outcome.role == "asked" and r.figures is not None and r.verdict != SUSPECT]
    best = max(able, key=lambda row: row.figures.throughput_img_s if row.figures else 0.0, default=None)
    if best is None or best.figures is None:
        return None
    name = device(best.outcome.environment)
    known = [
        p for p in (figures() if published is None else published)
        if (p.device, p.model) == (name, best.job.model) and not NOT_AN_AIM.search(p.note)
    ]  # fmt: skip
    aim = max(known, key=lambda p: p.img_s, default=None)
    if aim is None:
        return None
    return Gap(best, aim, best.figures.throughput_img_s / aim.img_s, steps(best, rows))


def steps(best: Row, rows: Sequence[Row]) -> tuple[tuple[str, float], ...]:
    """What each change on the way to the best job gained, from fp32, NCHW, eager of its batch, where the sweep measured
    it; changes that were made together are one step. Their product is the whole."""
    rates = {
        row.job: row.figures.throughput_img_s for row in rows if row.figures is not None and row.verdict != SUSPECT
    }
    job = best.job
    at = dataclasses.replace(job.cell, layout="nchw", engine="eager", repeat=0)
    if at not in rates:
        return ()
    found: list[tuple[str, float]] = []
    waiting: list[str] = []
    towards = at
    for axis in AXES:
        if getattr(towards, axis) == getattr(job, axis):
            continue
        changes = {axis: getattr(job, axis)} | ({"amp_backend": job.amp_backend} if axis == "precision" else {})
        towards = dataclasses.replace(towards, **changes)
        waiting.append(str(getattr(job, axis)))
        if towards in rates:
            found.append((" and ".join(waiting), rates[towards] / rates[at]))
            at, waiting = towards, []
    return tuple(found)


def line(rows: Sequence[Row]) -> str | None:
    """The gap in a line."""
    found = gap(rows)
    if found is None or found.best.figures is None:
        return None
    job: Job = found.best.job
    aim = found.of
    said = (
        f"{job.model} {job.precision} batch {job.batch}: {found.best.figures.throughput_img_s:.0f} img/s is "
        f"{found.share:.0%} of the published {aim.img_s:.0f} "
        f"({aim.precision.upper()}, {_engine(aim.engine)}, {aim.source})"
    )
    if found.steps:
        said += "; measured here: " + ", ".join(f"{name} {gain:.2f}x" for name, gain in found.steps)
    if found.share < 1:
        said += f"; left: {1 / found.share:.1f}x"
    return said


def _engine(name: str) -> str:
    return {"tensorrt": "TensorRT", "pytorch-eager": "PyTorch eager"}.get(name, name)
