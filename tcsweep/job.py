"""The nouns of tcsweep: what is measured, and what came of it. Frozen, plain data with a JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from tcsweep.evidence.facts import Arithmetic, DeviceState, Energy, Evidence, HostState
from tcsweep.owner import Owner

SCHEMA_VERSION = 1  # of result.json and sweep.json
MEASUREMENT_VERSION = 2  # rises when the way of measuring changes, so that unlike figures are never compared

Role = Literal[
    "asked", "baseline", "reference", "stored"
]  # stored: a baseline or reference that an earlier sweep measured
O_LEVELS = ("o0", "o1", "o2", "o3")
BASELINE_PRECISION = "fp32"

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """How a job is measured; the numbers behind `measure=quick|default|thorough`. Times in seconds."""

    name: str = "default"
    rounds: int = 3  # fresh processes for each job
    rounds_max: int = 5  # more rounds while the half-width of the interval over rounds is over `rounds_ci`
    rounds_ci: float = 0.02
    within_ci: float = 0.005  # a round may stop early once its own half-width is under this
    timed_s_min: float = 0.5
    timed_s_max: float = 1.5
    iterations: int | None = None  # exactly so many timed iterations a round, whatever the interval
    warmup_s_min: float = 0.25
    warmup_s_max: float = 5.0
    warmup_iterations_min: int = 2  # besides the first call, which is set-up
    warmup_iterations_max: int = 10_000
    latency_s_max: float = 0.2
    energy_s: float = 0.0  # of the energy phase; 0: none
    budget_s: float = 20.0  # all of a job's worker seconds; one round is always finished
    timeout_s: float = 600.0  # of one worker; over it the job is a Failure


@dataclass(frozen=True)
class Job:
    """One point of the sweep, every field that can change its figures and no other."""

    model: str = "resnet50"
    weights: str | None = None  # None: random, seeded; a torchvision weights name; a path to a state dict
    image_size: int = 224  # height and width in pixels
    precision: str = "fp32"
    amp_backend: str | None = None  # "auto" | "apex" | "torch" for the O levels, else None
    batch: int = 1
    layout: str = "nchw"
    engine: str = "eager"
    device: str = "auto"  # as asked; the sweep replaces it by "cpu" or "cuda:N"
    power: str | None = None  # a Jetson's power mode, "15w"; None: the one that it is in
    isolation: str = "process"  # "none": with all such jobs in one process, in the order asked for
    seed: int = 0
    measure: Measure = field(default_factory=Measure)
    repeat: int = 0  # number of the repeat, where the same point was asked for more than once

    @property
    def id(self) -> str:
        """Twelve hex digits that two jobs share exactly when every field is equal."""
        fields = {k: v for k, v in to_json(self).items() if k != "power" or v is not None}  # as before there were any
        text = json.dumps(fields, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Readable name, unique among jobs that differ in their axes only."""
        parts = [self.model, self.precision, f"b{self.batch}", self.layout, self.engine, self.device.replace(":", "")]
        if self.power is not None:
            parts.append(self.power)
        if self.isolation != "process":
            parts.append("one-process")
        if self.repeat:
            parts.append(f"r{self.repeat + 1}")
        return "-".join(parts)

    @property
    def folder(self) -> str:
        """Name of the job's folder inside its sweep's folder."""
        return f"{self.label}-{self.id}"

    @property
    def axes(self) -> dict[str, str | int]:
        """What a sweep usually varies, by the names of the config groups."""
        names = ("model", "precision", "batch", "layout", "engine", "device")
        rare = {"power": self.power is not None, "isolation": self.isolation != "process"}
        return {n: getattr(self, n) for n in (*names, *(n for n, there in rare.items() if there))}

    @property
    def cell(self) -> Job:
        """The job with its precision taken away: jobs with equal cells are compared with one baseline."""
        return dataclasses.replace(self, precision=BASELINE_PRECISION, amp_backend=None, repeat=0)

    @property
    def reference(self) -> Job:
        """The plainest job of the same model, batch and device: fp32, NCHW, eager, in a process of its own."""
        return dataclasses.replace(self.cell, layout="nchw", engine="eager", isolation="process")

    @property
    def is_baseline(self) -> bool:
        """Whether the others of its cell are compared with this job."""
        return self == self.cell

    @property
    def is_reference(self) -> bool:
        """Whether `speedup_total` is over this job."""
        return self == self.reference


@dataclass(frozen=True)
class Environment:
    """What the machine and the software were: facts of a sweep's probe worker; None is "could not be read"."""

    device: str = "cpu"  # "cpu" or "cuda:N", as resolved
    device_name: str | None = None
    gpu_uuid: str | None = None
    compute_capability: str | None = None  # "9.0"
    sm_count: int | None = None
    device_memory_mib: int | None = None
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    apex: str = "none"  # none | not-nvidia | without-amp | amp
    apex_version: str | None = None
    apex_build: str | None = None  # full | python-only
    python: str | None = None
    host: str | None = None
    os: str | None = None
    cpu_model: str | None = None
    cpu_features: tuple[str, ...] = ()  # the instructions that decide 16-bit and 8-bit speed
    cpu_threads: int | None = None
    memory_mib: int | None = None
    l4t: str | None = None  # Jetson Linux release, "36.4.3"
    jetpack: str | None = None
    power_mode: str | None = None
    module: str | None = None  # "NVIDIA Jetson AGX Orin"
    soc: str | None = None  # "tegra234"
    shared_memory: bool | None = None  # whether the GPU uses the CPU's memory
    clocks_locked: bool | None = None  # by jetson_clocks: the GPU's lowest clock is its highest
    cpu_mhz_max: float | None = None  # the limits of the power mode
    gpu_mhz_max: float | None = None
    emc_mhz_max: float | None = None  # of the memory
    tcsweep: str | None = None
    git_commit: str | None = None
    removed_variables: tuple[str, ...] = ()  # taken out of the workers' environment: they change results
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """One measurement of a job in one fresh process. Raw times only; figures are derived in `stats`."""

    number: int  # from 1
    started_at: float  # seconds since the epoch
    worker_s: float  # from asking for the process to its result, seen by the sweep
    stage_s: dict[str, float]  # seconds by stage: start, context, build, input, first_call, warmup, throughput, latency
    warmup_iterations: int
    block_iterations: int  # iterations in each timed block
    block_wall_ms: tuple[float, ...]  # host clock around each whole block, synchronised at its ends
    block_device_ms: tuple[float, ...] | None  # CUDA events at the same ends; None on a CPU
    latency_ms: tuple[float, ...]  # one batch in flight, synchronised
    peak_memory_mib: float | None  # of the device; on a CPU of the process
    host_memory_mib: float | None = None  # the process's largest resident set
    reserved_memory_mib: float | None = None  # what torch's allocator held at the end, autotuning's leavings included
    warmed_up: bool = True  # False: the warm-up ended at its ceiling with a trend left
    converged: bool = True  # False: the time ran out before the round's own interval was narrow enough
    amp_backend: str | None = None  # what ran an O level: "apex" or "torch"
    amp_version: str | None = None
    half_dtype: str | None = None  # what "half" meant: "float16" or "bfloat16"
    notes: tuple[str, ...] = ()  # what the worker has to say, such as "bf16 is emulated on this GPU"
    timed_from: float | None = None  # when the timed blocks began, in seconds of the machine's CLOCK_MONOTONIC
    timed_until: float | None = None  # and when they ended
    arithmetic_before: Arithmetic | None = None  # the process's switches, before the first call
    arithmetic_after: Arithmetic | None = None  # and after the timing
    device_state: DeviceState | None = None
    host_state: HostState | None = None
    energy: Energy | None = None  # None: not asked for
    input: str = "standard normal, seeded"  # what the images are made of
    weights_sha256: str | None = None  # of the state dict's file; None: the weights have no file of the user's
    evidence: Evidence | None = None  # in the first of a job's rounds
    power_mode: str | None = None  # a Jetson's, after the round

    @property
    def setup_s(self) -> float:
        """Seconds before the warm-up: process, context, model, input, first call with its autotuning."""
        return sum(self.stage_s.get(k, 0.0) for k in ("start", "context", "build", "input", "first_call"))


@dataclass(frozen=True)
class Result:
    """A job that was measured: every round of it."""

    job: Job
    role: Role
    index: int  # place in the order typed, from 0; added jobs come after the asked ones
    environment: Environment
    rounds: tuple[Round, ...]
    started_at: float
    ended_at: float
    stopped: str | None = None  # why there are fewer rounds than asked for: "budget", "interrupted"
    measured_in: str | None = None  # the folder of the sweep that measured it, where that was an earlier one
    status: Literal["ok"] = "ok"

    @property
    def evidence(self) -> Evidence | None:
        """What was seen of what ran, once a job."""
        return next((r.evidence for r in self.rounds if r.evidence is not None), None)


@dataclass(frozen=True)
class Failure:
    """A job that was started and gave no result."""

    job: Job
    role: Role
    index: int
    environment: Environment
    stage: str  # where it happened: "build", "throughput", ...
    kind: str  # "gpu-memory", "host-memory", "killed", "timeout", "too-large", "error"
    reason: str  # one line for a person
    started_at: float
    ended_at: float
    rounds: tuple[Round, ...] = ()  # what had been measured before, kept
    log: str | None = None  # file name of the worker's log, relative to the job's folder
    status: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Skipped:
    """A valid job that this machine cannot do, or that the sweep did not come to."""

    job: Job
    role: Role
    index: int
    environment: Environment
    reason: str
    started_at: float
    ended_at: float
    status: Literal["skipped"] = "skipped"

    @property
    def rounds(self) -> tuple[Round, ...]:
        """None were measured."""
        return ()


Outcome = Union[Result, Failure, Skipped]  # noqa: UP007 - evaluated, and 3.10 cannot join forward references
OUTCOMES: dict[str, type[Result] | type[Failure] | type[Skipped]] = {
    "ok": Result,
    "failed": Failure,
    "skipped": Skipped,
}


@dataclass(frozen=True)
class Origin:
    """What `resume=` needs to repeat a sweep."""

    argv: tuple[str, ...] = ()  # the words typed, none that holds a password
    withheld: tuple[str, ...] = ()  # those that hold one, without it
    cwd: str | None = None  # the folder that relative paths, and the embedded store, are in
    compare: bool = True  # whether baselines and references are added


@dataclass(frozen=True)
class Sweep:
    """What `sweep.json` holds: the plan, and how the sweep ended."""

    id: str
    started_at: float
    command: str  # as typed, passwords taken out
    order_seed: int
    environment: Environment  # of the first device measured
    folders: tuple[str, ...]  # of all jobs, in row order
    ended_at: float | None = None
    status: Literal["running", "finished", "interrupted"] = "running"
    wall_s: float | None = None  # by a monotonic clock
    name: str | None = None
    argv: tuple[str, ...] = ()  # this and the next three: its Origin
    withheld: tuple[str, ...] = ()
    cwd: str | None = None
    compare: bool = True
    measurement_version: int = MEASUREMENT_VERSION
    resumed_at: tuple[float, ...] = ()
    owner: Owner | None = None  # the process that measures, or last did


def to_json(value: Any) -> Any:
    """Plain JSON form of a dataclass, tuple or scalar; non-finite numbers become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(cls: type[T], data: Any) -> T:
    """The inverse of `to_json`. Unknown keys are ignored, so that newer files can be read; raises TypeError or
    ValueError where a value does not fit its field."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{k: _coerce(hints[k], v) for k, v in data.items() if k in known})


def _coerce(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{value!r} is not one of {args}")
        return value
    if origin is tuple:
        return tuple(_coerce(args[0], v) for v in value)
    if origin is dict:
        return {k: _coerce(args[1], v) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    if hint is float and value is not None:
        return float(value)
    return value


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    """A Result, Failure or Skipped from its JSON form; raises ValueError for anything else."""
    cls = OUTCOMES.get(data.get("status", ""))
    if cls is None:
        raise ValueError(f"status {data.get('status')!r} is not one of {', '.join(OUTCOMES)}")
    return from_json(cls, data)
