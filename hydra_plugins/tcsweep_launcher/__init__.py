"""Hydra launcher `local`: composes and checks every job of a sweep, then hands all of them to tcsweep at once.

Every Hydra app in this environment imports this module: nothing heavy here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

# A dictionary, not a dataclass: Hydra scans this file outside sys.modules, where a dataclass cannot be made.
_NODE = {"_target_": "hydra_plugins.tcsweep_launcher.LocalLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="local", node=_NODE, provider="tcsweep")


class LocalLauncher(Launcher):
    """Measures on this machine. Rounds interleave all jobs, so they start together or not at all."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over. Raises Mistake for what its sweeper must not do."""
        from tcsweep.search import check

        if "optuna" in sys.modules:  # it greets on standard error
            logging.getLogger("optuna").setLevel(logging.WARNING)
        # Hydra's sweeper composes every job to see that it can be, a tenth of a second each.
        self._loader = hydra_context.config_loader = _Keeping(hydra_context.config_loader)  # type: ignore[assignment]
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self._sweeper: dict[str, Any] = OmegaConf.to_container(config.hydra.sweeper, resolve=True)  # type: ignore[assignment]
        check(self._sweeper)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose all, measure all; each job's value is its objective, throughput unless told. Of a search these are
        the next trials."""
        from tcsweep import app, session
        from tcsweep.search import Search, is_search

        configs = [self._compose(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        HydraConfig.instance().set_config(self.config)
        folder = Path(str(self.config.hydra.sweep.dir)).resolve()
        loaded = app.load(configs)
        if is_search(self._sweeper):
            if not session.SEARCHES:
                session.SEARCHES.append(Search(folder, loaded[0], self._sweeper))
            trials = zip(loaded, job_overrides, range(initial_job_idx, initial_job_idx + len(loaded)))
            values = [session.SEARCHES[0].value(one, words, number) for one, words, number in trials]
        else:
            values = app.measure(loaded, folder)
        return [
            _returned(config, list(overrides), value)
            for config, overrides, value in zip(configs, job_overrides, values)
        ]

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
