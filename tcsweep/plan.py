"""From the jobs asked for to the jobs measured, and their order. Pure."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcsweep.devices import Resolved
from tcsweep.devices.nvpmodel import Target
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
    jobs: Sequence[Job],
    devices: Mapping[str, Resolved],
    composed: Sequence[str] = (),
    compare: bool = True,
    powers: Mapping[str, Target] | None = None,
) -> list[Planned]:
    """The asked jobs, device and amp backend resolved, repeats numbered, in the order typed; then, to `compare` them,
    the baselines and references that they lack. `powers`: what each power mode's name came to."""
    planned: list[Planned] = []
    seen: dict[Job, int] = {}
    for index, job in enumerate(jobs):
        one = _place(job, devices[job.device], index, composed[index] if composed else None, powers or {})
        repeat = seen.get(one.job, 0)
        seen[one.job] = repeat + 1
        planned.append(dataclasses.replace(one, job=dataclasses.replace(one.job, repeat=repeat)))
    asked = [p for p in planned if p.reason is None and compare]
    needed: dict[Job, Role] = {p.job.cell: "baseline" for p in asked}
    needed |= {p.job.reference: "reference" for p in asked if p.job.reference not in needed}
    present = {p.job for p in planned}
    for job, role in needed.items():
        if job not in present:
            environment = next(p.environment for p in asked if (p.job.device, p.job.power) == (job.device, job.power))
            planned.append(Planned(job, role, len(planned), environment))
    return planned


def _place(job: Job, resolved: Resolved, index: int, composed: str | None, powers: Mapping[str, Target]) -> Planned:
    environment = resolved.environment
    if environment is None:
        return Planned(job, "asked", index, Environment(device=job.device), resolved.reason, composed)
    backend = resolve_amp_backend(job.precision, job.amp_backend, environment, job.engine)
    job = dataclasses.replace(job, device=environment.device, amp_backend=backend)
    reason = PRECISIONS[job.precision].missing(environment, backend) or ENGINES[job.engine].missing(environment)
    if job.power is not None:
        target = powers[job.power]
        if target.mode is None:
            return Planned(job, "asked", index, environment, reason or target.reason, composed)
        job = dataclasses.replace(job, power=target.mode.short)
        environment = dataclasses.replace(environment, power_mode=str(target.mode))
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
