"""A list of jobs to a list of results: rounds, order, budget, locks, failures. Knows neither Hydra nor MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tcsweep import fit, resume, store, stored
from tcsweep.devices import Resolved, jetson, nvpmodel
from tcsweep.devices.reader import Absent, Reader
from tcsweep.devices.root import board_root
from tcsweep.devices.telemetry import Sampler, Windows, close_reader, occupants, open_reader
from tcsweep.evidence.facts import DeviceState
from tcsweep.job import (
    MEASUREMENT_VERSION,
    SCHEMA_VERSION,
    Environment,
    Failure,
    Job,
    Origin,
    Outcome,
    Result,
    Round,
    Skipped,
    Sweep,
    to_json,
)
from tcsweep.lock import device_lock
from tcsweep.measure import Hint, RoundRequest
from tcsweep.mistakes import Interrupted, Mistake, NothingToMeasure, cannot_write, first_line
from tcsweep.owner import this_process
from tcsweep.plan import Planned, order, plan
from tcsweep.references import References
from tcsweep.report.progress import Progress
from tcsweep.report.words import count
from tcsweep.stats import round_throughput, rounds_interval
from tcsweep.worker import Broken, Server

IDENTICAL_FAILURES = 5  # so many first jobs that fail alike mean a fault of all: the rest is not tried
PROBE_TIMEOUT_S = 120.0
FOREIGN_MIB = 100.0  # worth a word where memory ran out
NOT_SAVED = Origin()


@dataclass
class State:
    """What has come of a planned job so far."""

    planned: Planned
    rounds: list[Round] = field(default_factory=list)
    failure: Broken | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    stopped: str | None = None

    @classmethod
    def of(cls, planned: Planned, saved: Outcome | None) -> State:
        """What is on disk of a job: its rounds stay, a failure or a skip is tried again."""
        saved = planned.stored or saved
        if saved is None or not saved.rounds:
            return cls(planned)
        kept = dataclasses.replace(planned, environment=saved.environment)
        return cls(kept, list(saved.rounds), None, saved.started_at, saved.ended_at)

    def has(self, number: int) -> bool:
        """Whether the round of this number is measured."""
        return any(r.number == number for r in self.rounds)

    @property
    def job(self) -> Job:
        """The planned job."""
        return self.planned.job

    @property
    def used_s(self) -> float:
        """Worker seconds spent on measuring."""
        return sum(measuring_s(r) for r in self.rounds)

    @property
    def open(self) -> bool:
        """Whether it could be measured further."""
        return self.planned.reason is None and self.planned.stored is None and self.failure is None

    def affords(self) -> bool:
        """Whether the budget holds one more round like the last; the first is always affordable."""
        return not self.rounds or self.used_s + measuring_s(self.rounds[-1]) <= self.job.measure.budget_s

    def wide(self) -> bool:
        """Whether the interval over the rounds is wider than wished."""
        interval = rounds_interval([round_throughput(self.job.batch, r) for r in self.rounds])
        return interval is not None and interval.half_width > self.job.measure.rounds_ci


def measuring_s(one: Round) -> float:
    """A round's worker seconds without what comes after the timing: energy and evidence."""
    return one.worker_s - one.stage_s.get("energy", 0.0) - one.stage_s.get("evidence", 0.0)


@dataclass(frozen=True)
class Finished:
    """A sweep that ended: where it lies, and what came of each job."""

    folder: Path
    outcomes: tuple[Outcome, ...]
    interrupted: int | None  # the signal that ended it

    @property
    def exit_status(self) -> int:
        """130 after Ctrl-C (143 after SIGTERM), 1 if a job failed, else 0."""
        if self.interrupted:
            return 128 + self.interrupted
        return 1 if any(isinstance(o, Failure) for o in self.outcomes) else 0


def run(
    jobs: Sequence[Job],
    folder: Path,
    progress: Progress,
    *,
    command: str = "",
    composed: Sequence[str] = (),
    name: str | None = None,
    order_seed: int | None = None,
    while_waiting: Callable[[], None] = lambda: None,
    origin: Origin = NOT_SAVED,
    baselines: Path | None = None,
    check_fit: bool = True,
) -> Finished:
    """Measure the jobs into `folder`, claimed before; what an earlier try left there is gone on with. Raises Mistake,
    with nothing measured, where this machine can do none of them, or not as that try did. `while_waiting` is called
    once in a thread, and has ended before anything is measured. `baselines`: the folder of saved sweeps whose results
    stand in for the baselines and references that would be added. `check_fit`: skip what cannot fit a board.
    """
    began = time.monotonic()
    server = Server()
    with signals_raise():
        for variable in server.removed:
            progress.message(f"{variable} is set: taken away from the workers, as it changes results unseen")
        server.start()
        progress.stage("importing torch, looking at the device")
        waiting = threading.Thread(target=while_waiting, daemon=True)  # a signal does not wait for it
        waiting.start()
        nvpmodel.tidy(board_root(), progress.message)
        names = dict.fromkeys(j.power for j in jobs if j.power is not None)
        powers = nvpmodel.reachable(nvpmodel.targets(names, board_root()), board_root(), progress.message)
        devices = _probe(server, jobs, progress)
        waiting.join()  # nothing of it runs beside a measurement
        planned = plan(jobs, devices, composed, origin.compare, powers)
        if baselines is not None:
            planned = stored.taken(planned, baselines)
        _refuse_if_nothing_can_run(planned)
        if store.is_planned(folder):
            sweep, saved = _resume(folder, planned, server)
        else:
            sweep, saved = _begin(folder, planned, command, order_seed, name, server, origin), {}
        states = [State.of(p, saved.get(p.job.folder)) for p in planned]
        runner = Runner(server, folder, sweep, states, progress, check_fit)
        interrupted = runner.run()
    outcomes = tuple(_outcome(s, interrupted is not None) for s in states)
    for outcome in outcomes:
        store.save_outcome(folder, outcome)
    ended = dataclasses.replace(
        sweep,
        ended_at=time.time(),
        wall_s=(sweep.wall_s or 0.0) + time.monotonic() - began,
        status="interrupted" if interrupted else "finished",
    )
    store.save_sweep(folder, ended)
    return Finished(folder, outcomes, interrupted)


def claim(folder: Path, origin: Origin = NOT_SAVED) -> Path:
    """Make a sweep's folder, with its origin in it so that it can be gone on with; where a sweep has it already,
    the first free one of folder-2, folder-3, ... Raises Mistake where nothing can be written."""
    number, path = 1, folder
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with open(path / store.SWEEP, "x", encoding="utf-8") as file:
                json.dump({"schema": SCHEMA_VERSION, **to_json(origin)}, file)
                return path
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        except OSError as error:
            raise cannot_write(path, error) from None


def release(folder: Path) -> None:
    """Give back a claimed folder in which nothing was measured."""
    with contextlib.suppress(OSError):
        if not store.is_planned(folder):
            (folder / store.SWEEP).unlink()
            folder.rmdir()


def _probe(server: Server, jobs: Sequence[Job], progress: Progress) -> dict[str, Resolved]:
    devices = server.run("tcsweep.devices:probe", tuple(j.device for j in jobs), timeout_s=PROBE_TIMEOUT_S)
    if isinstance(devices, Broken):
        raise Mistake(f"torch cannot be used: {devices.reason}")
    for resolved in devices.values():
        if resolved.environment and resolved.reason:
            progress.message(f"device: {resolved.environment.device} ({resolved.reason})")
    return dict(devices)


def _refuse_if_nothing_can_run(planned: Sequence[Planned]) -> None:
    if any(p.reason is None for p in planned):
        return
    reasons = list(dict.fromkeys(f"{p.job.precision} on {p.job.device}: {p.reason}" for p in planned))
    raise NothingToMeasure("nothing can be measured here: " + "; ".join(reasons[:3]))


def _begin(
    folder: Path,
    planned: Sequence[Planned],
    command: str,
    seed: int | None,
    name: str | None,
    server: Server,
    origin: Origin,
) -> Sweep:
    started_at = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started_at))
    sweep = Sweep(
        id=f"{stamp}-{os.urandom(3).hex()}",
        started_at=started_at,
        command=command,
        order_seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        environment=_environment(planned, server),
        folders=tuple(p.job.folder for p in planned),
        name=name,
        owner=this_process(),
        **vars(origin),
    )
    store.save_sweep(folder, sweep)
    _save_configs(folder, planned)
    return sweep


def _environment(planned: Sequence[Planned], server: Server) -> Environment:
    first = next(p.environment for p in planned if p.reason is None)
    return dataclasses.replace(first, removed_variables=server.removed)


def _resume(folder: Path, planned: Sequence[Planned], server: Server) -> tuple[Sweep, dict[str, Outcome]]:
    """The sweep of a folder and its outcomes by folder name, both as they were. Raises Mistake."""
    try:
        sweep, outcomes = store.load_sweep(folder)
    except (OSError, ValueError) as error:
        raise Mistake(f"resume={folder}: cannot be read: {first_line(str(error))}") from None
    saved = {o.job.folder: o for o in outcomes}
    resume.check(folder, sweep, saved, planned)
    store.remove_leftovers(folder)
    if not any(o.rounds for o in outcomes):  # then it may be another machine's from here on
        environment = _environment(planned, server)
        sweep = dataclasses.replace(sweep, environment=environment, measurement_version=MEASUREMENT_VERSION)
    sweep = dataclasses.replace(
        sweep,
        status="running",
        ended_at=None,
        folders=tuple(p.job.folder for p in planned),
        resumed_at=(*sweep.resumed_at, time.time()),
        owner=this_process(),
    )
    store.save_sweep(folder, sweep)
    _save_configs(folder, planned)
    return sweep, saved


def _save_configs(folder: Path, planned: Sequence[Planned]) -> None:
    for one in planned:
        path = folder / one.job.folder
        path.mkdir(exist_ok=True)
        if one.composed is not None:
            store.write_file(path / "config.yaml", one.composed)


class Runner:
    """Goes through the rounds. The only place with the sweep's moving state."""

    def __init__(
        self,
        server: Server,
        folder: Path,
        sweep: Sweep,
        states: Sequence[State],
        progress: Progress,
        check_fit: bool = True,
    ) -> None:
        self._server, self._folder, self._sweep = server, folder, sweep
        self._states, self._progress, self._check_fit = states, progress, check_fit
        self._by_planned = {s.planned.job: s for s in states}
        self._references = References(server, folder)
        self._readers: dict[str, Reader | Absent] = {}  # of what each GPU says of itself
        self._pids: set[int] = set()  # of this sweep's workers

    def run(self) -> int | None:
        """Measure everything; the number of the signal that interrupted it, None where none did."""
        now = time.time()
        for state in self._states:
            if state.planned.reason is not None:
                state.started_at = state.ended_at = now
                self._progress.skipped(state.job.label, state.planned.reason)
                store.save_outcome(self._folder, _outcome(state, False))
        ready = [s for s in self._states if s.open]
        done = sum(len(s.rounds) for s in ready)
        if done:
            self._progress.message(f"going on: {count(done, 'round')} measured before")
        self._progress.started(sum(max(0, s.job.measure.rounds - len(s.rounds)) for s in ready), len(ready))
        try:
            with contextlib.ExitStack() as locks:
                # Sorted: two sweeps that want the same devices in another order would each wait for the other.
                for name in sorted({_lock_name(s.planned.environment) for s in ready}):
                    locks.enter_context(device_lock(name, self._progress.message))
                self._say_who_is_there({s.planned.environment.device: s.planned.environment for s in ready})
                self._in_every_mode()
                self._server.join()
        except KeyboardInterrupt:
            self._progress.message("interrupted: what was measured is kept")
            return signal.SIGINT
        except Interrupted:
            self._progress.message("terminated: what was measured is kept")
            return signal.SIGTERM
        finally:
            self._references.close()
            for reader in self._readers.values():
                close_reader(reader)
            self._progress.close()
        return None

    def _in_every_mode(self) -> None:
        """All rounds in one power mode, then in the next: a switch is slow. First those in the mode that is found."""
        powers = dict.fromkeys(s.job.power for s in self._states if s.open)
        with nvpmodel.Keeper(board_root(), self._progress.message) as keeper:
            for power in sorted(powers, key=lambda p: p is not None):
                states = [s for s in self._states if s.job.power == power]
                if (power is None or self._switched(keeper, states)) and not self._rounds(states):
                    return

    def _switched(self, keeper: nvpmodel.Keeper, states: Sequence[State]) -> bool:
        """Whether the board is in the mode of some jobs now. Their environment is read anew then."""
        first = next(s for s in states if s.open)
        (target,) = nvpmodel.targets([str(first.job.power)], board_root()).values()
        assert target.mode is not None  # the plan has none open otherwise
        self._progress.message(f"power mode {target.mode}")
        reason = keeper.switch(target.mode)
        for state in (s for s in states if s.open):
            if reason is None:
                environment = dataclasses.replace(state.planned.environment, **jetson.state(board_root()))
                state.planned = dataclasses.replace(state.planned, environment=environment)
                continue
            self._skip(state, reason)
        self._by_planned = {s.planned.job: s for s in self._states}
        return reason is None

    def _rounds(self, states: Sequence[State]) -> bool:
        """Every round of some jobs; False where all fail alike, and no more is to be tried."""
        last = max((s.job.measure.rounds_max for s in states), default=0)
        for number in range(1, last + 1):
            due = self._due(states, number)
            for group in self._groups(due, number):
                self._measure(group, number)
                if self._all_fail_alike():
                    return False
        return True

    def _groups(self, due: Sequence[State], number: int) -> list[list[State]]:
        """What is measured together, in order: first the jobs that are to share a process, as they were asked for."""
        shared = [s for s in due if s.job.isolation != "process"]
        alone = order([s.planned for s in due if s not in shared], self._sweep.order_seed, number)
        return [*([shared] if shared else []), *([self._by_planned[planned.job]] for planned in alone)]

    def _due(self, states: Sequence[State], number: int) -> list[State]:
        """The jobs to measure in a round: all in the asked rounds; after those the wide ones, each with its baseline,
        since a speed-up needs both in the same round."""
        ready = [s for s in states if s.open and s.stopped is None]
        for state in ready:
            lacks_rounds = len(state.rounds) < state.job.measure.rounds or state.wide()
            if number <= state.job.measure.rounds_max and lacks_rounds and not state.affords():
                state.stopped = "budget"
                self._forget_rounds(state)
        ready = [s for s in ready if s.stopped is None]
        asked = [s for s in ready if number <= s.job.measure.rounds]
        over = [s for s in ready if s.job.measure.rounds < number <= s.job.measure.rounds_max]
        wide = [s for s in over if s.wide() or s.has(number)]
        needed = {s.job for s in wide} | {s.job.cell for s in wide}
        extra = [s for s in ready if s not in asked and s.job in needed and s.affords() and not s.has(number)]
        self._progress.added_rounds(len(extra))
        return [s for s in asked if not s.has(number)] + extra

    def _measure(self, states: Sequence[State], number: int) -> None:
        """One round of some jobs in a fresh process: of one, but for those that are to share it."""
        asked = [(state, self._request(state, number)) for state in states]
        fitting = [(state, request) for state, request in asked if not self._misfits(state, request)]
        if not fitting:
            return
        states, requests = [state for state, _ in fitting], [request for _, request in fitting]
        asked_at, place, stages = time.monotonic(), 0, {}  # type: ignore[var-annotated]
        first, settings = states[0], states[0].job.measure
        self._progress.round_started(first.job.label, number, max(settings.rounds, number))

        def listen(kind: str, said: Any) -> None:
            nonlocal place, stages
            if kind == "one":
                place, value = said
                self._keep(states[place], number, value, sampler, asked_at, stages)
                place, stages = place + 1, {}
                if place < len(states):
                    self._progress.round_started(states[place].job.label, number, max(settings.rounds, number))
                return
            if kind == "stage":
                stages.setdefault(said, time.monotonic())
            self._listen(states[place].job, kind, said)

        together = len(states) > 1 or first.job.isolation != "process"
        with self._watched(first.planned.environment) as sampler:
            value = self._server.run(
                "tcsweep.task:measure_together" if together else "tcsweep.task:measure_round",
                requests if together else requests[0],
                log=self._folder / first.job.folder / "worker.log",
                timeout_s=sum(s.job.measure.timeout_s for s in states),
                listen=listen,
            )
        if sampler.hangs:  # it would hold up the end of every round
            self._readers[first.planned.environment.device] = Absent("its sensors stopped answering")
        if isinstance(value, Broken) or not together:
            for state in states[place:]:
                self._keep(state, number, value, sampler, asked_at, stages)

    def _misfits(self, state: State, request: RoundRequest) -> bool:
        """Whether a job is refused before its first round, as one that would take the board down."""
        if state.rounds or not self._check_fit or request.reference is None:
            return False
        reason = fit.misfit(state.job, state.planned.environment, request.reference.work, board_root())
        if reason is not None:
            self._skip(state, reason)
        return reason is not None

    def _skip(self, state: State, reason: str) -> None:
        """A job that is not tried after all."""
        self._progress.skipped(state.job.label, reason)
        self._forget_rounds(state)
        state.stopped = reason
        store.save_outcome(self._folder, _outcome(state, False))

    def _request(self, state: State, number: int) -> RoundRequest:
        job, settings = state.job, state.job.measure
        state.started_at = state.started_at or time.time()
        reference = self._references.of(job, state.planned.environment, self._listen_to_stages)
        rounds_left = max(1, settings.rounds - len(state.rounds))
        share_s = max(settings.budget_s - state.used_s, 0) / rounds_left
        hint = Hint(state.rounds[0].warmup_iterations, state.rounds[0].block_iterations) if state.rounds else None
        gathers = not any(r.evidence for r in state.rounds)
        asked_at = time.monotonic()
        return RoundRequest(job, number, asked_at, asked_at + share_s, hint, reference, gathers)

    def _keep(
        self,
        state: State,
        number: int,
        value: Round | Broken,
        sampler: Sampler,
        asked_at: float,
        stages: Mapping[str, float],
    ) -> None:
        """Save what came of a round."""
        job = state.job
        state.ended_at = time.time()
        if isinstance(value, Broken) or _holds_much(value, state.planned.environment):
            self._server.join()
        if isinstance(value, Broken):
            value = _with_memory(value, sampler)
            state.failure = value
            self._progress.failed(job.label, _overrides(job), f"{value.reason} (stage: {value.stage})")
            self._forget_rounds(state)
        else:
            seen = _device_state(sampler, value, asked_at, stages)
            mode = None if state.planned.environment.power_mode is None else jetson.power_mode(board_root())
            state.rounds.append(dataclasses.replace(value, device_state=seen, power_mode=mode))
            self._progress.round_done(job.label, number, round_throughput(job.batch, value))
        store.save_outcome(self._folder, _outcome(state, False))

    def _forget_rounds(self, state: State) -> None:
        """Take the rounds that a job will not have out of the bar."""
        self._progress.added_rounds(-max(0, state.job.measure.rounds - len(state.rounds)))

    def _say_who_is_there(self, devices: Mapping[str, Environment]) -> None:
        """Before the first round: others on the GPU take its memory and its time."""
        if any(name.startswith("cuda") for name in devices):
            self._server.join()  # the worker that looked at the devices
        for name, environment in devices.items():
            reader = self._reader(environment)
            if not isinstance(reader, Absent) and (said := occupants(reader)):
                self._progress.message(f"{environment.device_name or name} ({name}): {said}")

    def _reader(self, environment: Environment) -> Reader | Absent:
        name = environment.device
        if name not in self._readers:
            self._readers[name] = open_reader(environment.gpu_uuid, board_root(), name.startswith("cuda"))
        return self._readers[name]

    def _watched(self, environment: Environment) -> Sampler:
        """The sampler for one worker on a device."""

        def pids() -> set[int]:  # earlier workers', too: one may take a while to leave the GPU
            if self._server.worker_pid is not None:
                self._pids.add(self._server.worker_pid)
            return self._pids

        return Sampler(self._reader(environment), own_pids=pids)

    def _listen_to_stages(self, kind: str, said: Any) -> None:
        if kind == "stage":
            self._progress.stage(said)

    def _listen(self, job: Job, kind: str, said: Any) -> None:
        if kind == "stage":
            self._progress.stage(said)
        else:
            iteration_ms, half_width = said
            self._progress.estimate(job.batch / iteration_ms * 1e3, half_width)

    def _all_fail_alike(self) -> bool:
        """Whether the first jobs tried all failed, in one stage and with one error: a fault that all have."""
        tried = [s for s in self._states if (s.rounds or s.failure) and s.planned.stored is None]
        failures = {(s.failure.stage, s.failure.reason) for s in tried if s.failure}
        if any(s.rounds for s in tried) or len(tried) < IDENTICAL_FAILURES or len(failures) != 1:
            return False
        # Cells are measured whole, so five failures may be those of one model or one batch only.
        for axis in ("model", "weights", "batch", "layout", "engine", "device"):
            swept = {getattr(s.job, axis) for s in self._states}
            if len(swept) > 1 and len({getattr(s.job, axis) for s in tried}) < 2:
                return False
        rest = [s for s in self._states if s.open]
        for state in rest:
            state.stopped = f"the first {len(tried)} jobs failed alike"
        if rest:
            self._progress.message(f"the first {len(tried)} jobs failed alike: the other {len(rest)} are not tried")
        return True


def _outcome(state: State, interrupted: bool) -> Outcome:
    """What is known of a job now."""
    if state.planned.stored is not None:
        return state.planned.stored
    common: dict[str, Any] = {
        "job": state.job,
        "role": state.planned.role,
        "index": state.planned.index,
        "environment": state.planned.environment,
        "started_at": state.started_at or time.time(),
        "ended_at": state.ended_at or time.time(),
    }
    if state.planned.reason is not None:
        return Skipped(reason=state.planned.reason, **common)
    if state.failure is not None:
        broken = state.failure
        return Failure(
            stage=broken.stage,
            kind=broken.kind,
            reason=broken.reason,
            rounds=tuple(state.rounds),
            log="worker.log",
            **common,
        )
    short = len(state.rounds) < state.job.measure.rounds
    if not state.rounds:
        return Skipped(
            reason=state.stopped or ("interrupted before its turn" if interrupted else "not measured"), **common
        )
    stopped = state.stopped or ("interrupted" if interrupted and short else None)
    return Result(rounds=tuple(state.rounds), stopped=stopped, **common)


def _device_state(
    sampler: Sampler, measured: Round, asked_at: float, stages: Mapping[str, float]
) -> DeviceState | None:
    """What was seen of the device in a round. Until its model is built a worker runs nothing on the GPU."""
    if measured.timed_from is None or measured.timed_until is None:
        return None
    idle = ((asked_at, stages["build"]),) if "build" in stages else ()
    return sampler.state(Windows((measured.timed_from, measured.timed_until), idle))


def _with_memory(broken: Broken, sampler: Sampler) -> Broken:
    """Out of GPU memory, with what others held of it."""
    held = sampler.foreign_memory_mib() if broken.kind == "gpu-memory" else None
    if not held or held < FOREIGN_MIB:
        return broken
    return dataclasses.replace(broken, reason=f"{broken.reason}; others held {held / 1024:.1f} GiB")


def _holds_much(measured: Round, environment: Environment) -> bool:
    """Whether the worker leaves so much memory behind that the next one should not even start beside it."""
    return measured.reserved_memory_mib is not None and (
        measured.reserved_memory_mib > (environment.device_memory_mib or 0) / 2
    )


def _overrides(job: Job) -> str:
    return " ".join(f"{name}={value}" for name, value in job.axes.items())


def _lock_name(environment: Environment) -> str:
    return environment.gpu_uuid or environment.device.replace(":", "")


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Ctrl-C and SIGTERM as exceptions of the main thread, never inside an import."""

    def handler(number: int, frame: Any) -> None:
        if _is_importing(frame):
            again = threading.Timer(0.05, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted

    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller's handlers stay
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handler)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller ignores it
            before[signal.SIGINT] = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _is_importing(frame: Any) -> bool:
    """Whether a frame is inside an import. An exception there can be swallowed, and can leave the import lock taken,
    so that every other thread that imports waits for ever."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
