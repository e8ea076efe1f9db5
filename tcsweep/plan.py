"""From the jobs asked for to the jobs measured, and their order. Pure."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcsweep.devices import Resolved
from tcsweep.engines import ENGINES
from tcsweep.job import Environment, Job, Result, Role
from tcsweep.precision import PRECISIONS, resolve_amp_backend


@dataclass(frozen=True)
class Planned:
    """A job in its place: `reason` says why this machine cannot do it, None where it can."""

    job: Job
    role: Role
    index: int
    environment: Environment
    reason: str | None = None
    composed: str | None = None  # its config as YAML, for an asked job
    stored: Result | None = None  # what an earlier sweep measured, taken instead of measuring


def plan(
    jobs: Sequence[Job], devices: Mapping[str, Resolved], composed: Sequence[str] = (), compare: bool = True
) -> list[Planned]:
    """The asked jobs, device and amp backend resolved, repeats numbered, in the order typed; then, to `compare` them,
    the baselines and references that they lack."""
    planned: list[Planned] = []
    seen: dict[Job, int] = {}
    for index, job in enumerate(jobs):
        one = _place(job, devices[job.device], index, composed[index] if composed else None)
        repeat = seen.get(one.job, 0)
        seen[one.job] = repeat + 1
        planned.append(dataclasses.replace(one, job=dataclasses.replace(one.job, repeat=repeat)))
    asked = [p for p in planned if p.reason is None and compare]
    needed: dict[Job, Role] = {p.job.cell: "baseline" for p in asked}
    needed |= {p.job.reference: "reference" for p in asked if p.job.reference not in needed}
    present = {p.job for p in planned}
    for job, role in needed.items():
        if job not in present:
            environment = next(p.environment for p in asked if p.job.device == job.device)
            planned.append(Planned(job, role, len(planned), environment))
    return planned


def _place(job: Job, resolved: Resolved, index: int, composed: str | None) -> Planned:
    environment = resolved.environment
    if environment is None:
        return Planned(job, "asked", index, Environment(device=job.device), resolved.reason, composed)
    backend = resolve_amp_backend(job.precision, job.amp_backend, environment, job.engine)
    job = dataclasses.replace(job, device=environment.device, amp_backend=backend)
    reason = PRECISIONS[job.precision].missing(environment, backend) or ENGINES[job.engine].missing(environment)
    return Planned(job, "asked", index, environment, reason, composed)


def order(planned: Sequence[Planned], seed: int, number: int) -> list[Planned]:
    """The order of one round: cells shuffled, jobs shuffled within their cell, so that drift touches all alike."""
    shuffle = random.Random(f"{seed}/{number}")
    cells: dict[Job, list[Planned]] = {}
    for one in planned:
        cells.setdefault(one.job.cell, []).append(one)
    groups = list(cells.values())
    shuffle.shuffle(groups)
    for group in groups:
        shuffle.shuffle(group)
    return [one for group in groups for one in group]
