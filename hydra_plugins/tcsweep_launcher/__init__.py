"""Hydra launcher `local`: composes and checks every job of a sweep, then hands all of them to tcsweep at once.

Every Hydra app in this environment imports this module: nothing heavy here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from tcsweep.config import Loaded
    from tcsweep.job import Job

# A dictionary, not a dataclass: Hydra scans this file outside sys.modules, where a dataclass cannot be made.
_NODE = {"_target_": "hydra_plugins.tcsweep_launcher.LocalLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="local", node=_NODE, provider="tcsweep")


class LocalLauncher(Launcher):
    """Measures on this machine. Rounds interleave all jobs, so they start together or not at all."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        if "optuna" in sys.modules:  # it greets on standard error
            logging.getLogger("optuna").setLevel(logging.WARNING)
        # Hydra's sweeper composes every job to see that it can be, a tenth of a second each.
        self._loader = hydra_context.config_loader = _Keeping(hydra_context.config_loader)  # type: ignore[assignment]
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self._found: dict[Job, float] = {}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose all, measure all; each job's value is its objective, throughput unless told."""
        from tcsweep import app

        configs = [self._compose(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        HydraConfig.instance().set_config(self.config)
        folder = Path(str(self.config.hydra.sweep.dir)).resolve()
        loaded = app.load(configs)
        if str(self.config.hydra.sweeper._target_).endswith(".BasicSweeper"):
            values = app.measure(loaded, folder)
        else:
            values = self._search(loaded, job_overrides, folder, initial_job_idx)
        return [
            _returned(config, list(overrides), value)
            for config, overrides, value in zip(configs, job_overrides, values)
        ]

    def _search(
        self, loaded: Sequence[Loaded], job_overrides: Sequence[Sequence[str]], folder: Path, number: int
    ) -> list[float]:
        """The values of some trials of a search, each launch a sweep in a folder of its own. A point that the search
        comes back to is not measured again."""
        from tcsweep import app, session
        from tcsweep.mistakes import Mistake
        from tcsweep.objective import COMPARING

        objective = loaded[0].objective
        direction = OmegaConf.select(self.config, "hydra.sweeper.direction")
        direction = getattr(direction, "name", direction)
        if isinstance(direction, str) and direction != objective.direction:
            wanted = f"hydra.sweeper.direction={objective.direction}"
            raise Mistake(f"objective={objective.name} with direction={direction} looks for the worst: set {wanted}")
        session.STUDIES[:] = [(folder, objective)]
        new = list(
            {one.job: (one, words) for one, words in zip(loaded, job_overrides) if one.job not in self._found}.values()
        )
        if new:
            words = tuple(new[0][1]) if len(new) == 1 else ()
            trial = app.Trial(words, compare=objective.name in COMPARING)
            values = app.measure([one for one, _ in new], folder / str(number), trial)
            self._found |= {one.job: value for (one, _), value in zip(new, values)}
            if session.EXIT_STATUS[-1] > 128:  # a signal ends the search, too
                raise KeyboardInterrupt
        return [self._found[one.job] for one in loaded]

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        composed = self._loader.take(self.config, overrides)
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)  # so that ${hydra:...} resolves
        return composed


class _Keeping:
    """A config loader that keeps the jobs it composed for Hydra's check, so that none is composed again."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._kept: dict[tuple[str, ...], list[DictConfig]] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """What Hydra's own loader composes."""
        composed = self._loader.load_sweep_config(master_config, sweep_overrides)
        self._kept.setdefault(tuple(sweep_overrides), []).append(composed)
        return composed

    def take(self, master_config: DictConfig, overrides: list[str]) -> DictConfig:
        """A config of these overrides, each given once."""
        kept = self._kept.get(tuple(overrides))
        return kept.pop() if kept else self._loader.load_sweep_config(master_config, overrides)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _returned(config: DictConfig, overrides: list[str], value: float) -> JobReturn:
    returned = JobReturn(overrides=overrides, cfg=config, status=JobStatus.COMPLETED)
    result: Any = value
    returned.return_value = result
    return returned
