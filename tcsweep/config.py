"""The structured schema, and `load`: a composed config becomes a frozen Job. The only module that knows OmegaConf."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from tcsweep.catalog import check_device, classifiers, groups, options
from tcsweep.engines import ENGINES
from tcsweep.job import O_LEVELS, Job, Measure
from tcsweep.mistakes import Mistake, first_line, unknown
from tcsweep.objective import ENERGY, OBJECTIVES, Objective, named
from tcsweep.precision import PRECISIONS

AMP_BACKENDS = ("auto", "apex", "torch")
BASELINES = {"sweep": None, "store": Path("outputs")}  # by name; else the folder of saved sweeps
REPEATS_MAX = 100
BATCH_MAX = 2**40  # above any memory; sizes that only this machine cannot hold are Failures, not mistakes


@dataclass
class ModelConf:
    """conf/model: a torchvision classifier."""

    name: str = MISSING
    weights: Optional[str] = None
    image_size: Optional[int] = None


@dataclass
class NameConf:
    """A group that is chosen by name only."""

    name: str = MISSING


@dataclass
class BatchConf:
    """conf/batch: images a batch."""

    size: int = MISSING


@dataclass
class TrackingConf:
    """conf/tracking."""

    name: str = MISSING
    uri: Optional[str] = None
    experiment: str = "tcsweep"


def _structured(frozen: type) -> type:
    """A frozen dataclass as an OmegaConf schema: a frozen one would make its config read-only."""
    hints = typing.get_type_hints(frozen)
    fields = [(f.name, _optional(hints[f.name]), field(default=f.default)) for f in dataclasses.fields(frozen)]
    return dataclasses.make_dataclass(f"{frozen.__name__}Conf", fields)


def _optional(hint: Any) -> Any:
    """OmegaConf 2.3 reads Optional[X], not X | None."""
    if not isinstance(hint, types.UnionType):
        return hint
    return Optional[next(a for a in typing.get_args(hint) if a is not type(None))]


MeasureConf: Any = _structured(Measure)


@dataclass
class Config:
    """The root of conf/config.yaml."""

    model: ModelConf = field(default_factory=ModelConf)
    precision: NameConf = field(default_factory=NameConf)
    batch: BatchConf = field(default_factory=BatchConf)
    layout: NameConf = field(default_factory=NameConf)
    engine: NameConf = field(default_factory=NameConf)
    device: NameConf = field(default_factory=NameConf)
    power: NameConf = field(default_factory=NameConf)
    isolation: NameConf = field(default_factory=NameConf)
    measure: MeasureConf = field(default_factory=MeasureConf)
    tracking: TrackingConf = field(default_factory=TrackingConf)
    amp_backend: str = "auto"
    seed: int = 0
    name: Optional[str] = None
    repeat: int = 1
    baseline: str = "sweep"
    fit: str = "check"
    objective: str = "throughput_img_s"
    latency_ms_p50_max: Optional[float] = None


@dataclass(frozen=True)
class Tracking:
    """Where results go besides the folder."""

    name: str  # "mlflow" | "none"
    uri: str | None
    experiment: str


@dataclass(frozen=True)
class Loaded:
    """A composed config, checked: the job, and what is no part of its identity."""

    job: Job
    tracking: Tracking
    name: str | None
    composed: str  # the config as YAML, without Hydra's own node
    repeat: int = 1  # so many rows of it
    objective: Objective = OBJECTIVES["throughput_img_s"]
    latency_ms_p50_max: float | None = None  # over it a job gives back the worst value
    baselines: Path | None = None  # the folder of saved sweeps to take baselines from; None: they are measured
    check_fit: bool = True  # whether a job that cannot fit into a board's memory is skipped


def register() -> None:
    """Make the schema known to Hydra."""
    # Hydra copies the whole store, 12 ms, for each job that it composes and each group that --help lists; the store is
    # one for the process, and what is loaded from it is copied anyway.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    ConfigStore.instance().store(name="tcsweep_schema", node=Config, provider="tcsweep")
    # For --help: Hydra's own $APP_CONFIG_GROUPS takes half a second and sorts numbers as text.
    OmegaConf.register_new_resolver("tcsweep_options", _options_text, replace=True)


def _options_text() -> str:
    lines = (f"  {group:<11}{', '.join(options(group))}" for group in groups())
    return "\n".join(lines) + "\n"


def keys() -> list[str]:
    """Every key of the schema, groups first, then dotted: for the nearest match of a misspelt one."""
    top: list[str] = []
    dotted: list[str] = []
    for f in dataclasses.fields(Config):
        top.append(f.name)
        kind = f.default_factory if callable(f.default_factory) else None
        if kind is not None and dataclasses.is_dataclass(kind):
            dotted += [f"{f.name}.{g.name}" for g in dataclasses.fields(kind)]
    return top + dotted


def load(config: DictConfig) -> Loaded:
    """A composed config as a Job; raises Mistake, one line, for anything that can never be right."""
    try:
        values: dict[str, Any] = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except MissingMandatoryValue as error:
        raise Mistake(f"{error.full_key} is missing: give it a value") from None
    except OmegaConfBaseException as error:
        raise Mistake(first_line(str(error)) or type(error).__name__) from None
    for group in (
        "model",
        "precision",
        "batch",
        "layout",
        "engine",
        "device",
        "power",
        "isolation",
        "measure",
        "tracking",
    ):
        if not isinstance(values.get(group), dict):
            raise Mistake(f"{group} is missing: choose one of {', '.join(options(group))}")
    tracking = Tracking(**values["tracking"])
    _check_tracking(tracking)
    _at_least("repeat", values["repeat"], 1, REPEATS_MAX)
    _one_of("fit", values["fit"], ("check", "try"))
    bound = values["latency_ms_p50_max"]
    if bound is not None and not bound > 0:
        raise Mistake(f"latency_ms_p50_max={bound}: must be over 0 milliseconds")
    job, objective = _job(values), named(values["objective"])
    if objective.name == ENERGY and not job.measure.energy_s:
        raise Mistake(f"objective={ENERGY} needs measure.energy_s over 0 seconds, or measure=thorough")
    return Loaded(
        job=job,
        tracking=tracking,
        name=values["name"],
        composed=OmegaConf.to_yaml(OmegaConf.create(values)),
        repeat=values["repeat"],
        objective=objective,
        latency_ms_p50_max=bound,
        baselines=_baselines(values["baseline"]),
        check_fit=values["fit"] == "check",
    )


def _baselines(value: str) -> Path | None:
    if value in BASELINES:
        return BASELINES[value]
    if not Path(value).expanduser().is_dir():
        raise unknown("baseline", value, (*BASELINES, "FOLDER"))
    return Path(value).expanduser()


def _without_hydra(config: DictConfig) -> DictConfig:
    copy = config.copy()
    OmegaConf.set_struct(copy, False)
    OmegaConf.set_readonly(copy, False)
    copy.pop("hydra", None)
    return copy


def _job(values: dict[str, Any]) -> Job:
    model, precision = values["model"], values["precision"]["name"]
    _one_of("precision", precision, PRECISIONS)
    _one_of("layout", values["layout"]["name"], options("layout"))
    _one_of("engine", values["engine"]["name"], ENGINES)
    _one_of("isolation", values["isolation"]["name"], options("isolation"))
    _one_of("amp_backend", values["amp_backend"], AMP_BACKENDS)
    check_device(values["device"]["name"])
    _at_least("batch", values["batch"]["size"], 1, BATCH_MAX)
    _at_least("seed", values["seed"], 0, 2**62)
    weights, size = _weights(model["name"], model["weights"])
    if model["image_size"] is not None:
        _at_least("model.image_size", model["image_size"], 1, 2**20)
        size = model["image_size"]
    return Job(
        model=model["name"],
        weights=weights,
        image_size=size,
        precision=precision,
        amp_backend=values["amp_backend"] if precision in O_LEVELS else None,
        batch=values["batch"]["size"],
        layout=values["layout"]["name"],
        engine=values["engine"]["name"],
        device=values["device"]["name"],
        power=_power(values["power"]["name"]),
        isolation=values["isolation"]["name"],
        seed=values["seed"],
        measure=_measure(values["measure"]),
    )


def _power(name: str) -> str | None:
    """A power mode's name in one spelling; None: the mode that the board is in. Its table is asked when measuring."""
    return None if name == "current" else name.lower().removeprefix("mode_")


def _one_of(what: str, value: str, allowed: typing.Iterable[str]) -> None:
    if value not in allowed:
        raise unknown(what, value, allowed)


def _at_least(what: str, value: float, least: float, most: float = float("inf")) -> None:
    if not least <= value <= most:
        raise Mistake(f"{what}={value}: must be {least} or more" + (f", at most {most}" if most < float("inf") else ""))


def _weights(model: str, weights: str | None) -> tuple[str | None, int]:
    """The weights, a path made absolute, and the input size that the model as built expects."""
    known = classifiers()
    _one_of("model", model, known)
    entry = known[model]
    if weights in (None, "null", "random"):
        return None, entry.image_size
    assert weights is not None
    if weights in entry.weights:
        return weights, entry.weights[weights]
    path = Path(weights).expanduser()
    if path.is_file():
        return str(path.resolve()), entry.image_size
    if os.sep in weights or path.suffix in (".pt", ".pth", ".bin"):
        raise Mistake(f"model.weights={weights}: no such file")
    raise unknown("model.weights", weights, ["null", *entry.weights, "PATH"])


def _measure(values: dict[str, Any]) -> Measure:
    measure = Measure(**values)
    _at_least("measure.rounds", measure.rounds, 1)
    _at_least("measure.rounds_max", measure.rounds_max, measure.rounds)
    if measure.iterations is not None:
        _at_least("measure.iterations", measure.iterations, 2)
    for name in ("rounds_ci", "within_ci", "timed_s_max", "budget_s", "timeout_s"):
        if not getattr(measure, name) > 0:
            raise Mistake(f"measure.{name}={getattr(measure, name)}: must be over 0")
    for name in ("timed_s_min", "warmup_s_min", "warmup_s_max", "latency_s_max", "energy_s", "warmup_iterations_min"):
        _at_least(f"measure.{name}", getattr(measure, name), 0)
    _at_least("measure.timed_s_max", measure.timed_s_max, measure.timed_s_min)
    return measure


def _check_tracking(tracking: Tracking) -> None:
    _one_of("tracking", tracking.name, options("tracking"))
    if tracking.uri and urlsplit(tracking.uri).password:
        raise Mistake(
            "tracking.uri in a config file holds a password: put the address into MLFLOW_TRACKING_URI, "
            "or the password into MLFLOW_TRACKING_PASSWORD"
        )
