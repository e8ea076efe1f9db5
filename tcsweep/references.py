"""The sweep's side of references: one worker for each model, whose outcome all jobs of that model share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tcsweep.devices.rates import RatesKey
from tcsweep.evidence.facts import Work
from tcsweep.evidence.reference import ReferenceRequest, model_of
from tcsweep.job import Environment, Job
from tcsweep.measure import Reference
from tcsweep.store import REFERENCES
from tcsweep.worker import Broken, Server

TIMEOUT_S = 300.0


class References:
    """Made when first asked for. What cannot be made is missing evidence, never a failed job."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder / REFERENCES
        self._made: dict[tuple[object, ...], Reference] = {}
        self._rates: dict[str, dict[str, float]] = {}

    def of(self, job: Job, environment: Environment, listen: Callable[[str, object], None]) -> Reference:
        """The reference of a job's model on its device."""
        key = model_of(job)
        if key not in self._made:
            self._made[key] = made = self._make(job, environment, listen)
            self._rates[job.device] = made.rates
        return self._made[key]

    def _make(self, job: Job, environment: Environment, listen: Callable[[str, object], None]) -> Reference:
        try:
            self._folder.mkdir(exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self._folder, suffix=".pt")
            os.close(handle)
        except OSError as error:
            return Reference(None, Work(missing="not counted"), missing=f"no room for the reference: {error}")
        request = ReferenceRequest(
            job, path, rates_key(environment), str(cache_folder()), self._rates.get(job.device, {})
        )
        value = self._server.run(
            "tcsweep.evidence.reference:make", request, timeout_s=min(TIMEOUT_S, job.measure.timeout_s), listen=listen
        )
        self._server.join()
        if isinstance(value, Broken):
            return Reference(None, Work(missing="not counted"), missing=f"{value.stage}: {value.reason}")
        assert isinstance(value, Reference)
        return value

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)


def rates_key(environment: Environment) -> RatesKey:
    """What a device's measured rates depend on."""
    return RatesKey(
        environment.gpu_uuid or environment.cpu_model or environment.device,
        environment.driver,
        environment.power_mode,
        str(environment.torch),
    )


def cache_folder() -> Path:
    """Where rates are kept between sweeps."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tcsweep"
