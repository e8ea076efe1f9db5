"""`python -m tcsweep doctor`: what this machine has, what is wrong with it, and the command that mends it.

Exit status 0 where nothing fails, 1 where something does, 2 for a word that it does not know."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcsweep import doctor_facts as look
from tcsweep.devices import board
from tcsweep.devices.apex import find_apex
from tcsweep.doctor_facts import Facts, Imports, bounded
from tcsweep.doctor_rows import exit_status, rows
from tcsweep.mistakes import first_line
from tcsweep.worker import Broken, Server

USAGE = "python -m tcsweep doctor"
LOCAL_S = 12.0  # a driver or a dead file system may never answer; a board is asked twice for up to 5 s
IMPORT_S = 60.0  # a board that reads mlflow or torch from an SD card for the first time
WORKER_S = 60.0

PACKAGES = {"hydra": ("hydra-core", "omegaconf"), "mlflow": ("mlflow",)}  # imported together

# Field of the facts to what fills it. None of these imports torch or asks CUDA.
PROBES: dict[str, Callable[[], Any]] = {
    "nvml": look.look_at_nvml,  # before our own worker is on the GPU
    "jetson": board.look,
    "cpu": look.look_at_cpu,
    "share": look.look_at_share,
    "apex": find_apex,
    "locks": look.look_at_locks,
    "variables": look.variables,
    "clock": look.look_at_clock,
    "outputs": lambda: look.look_at_folder(Path("outputs").absolute()),
    "caches": lambda: look.look_at_folder(look.caches()),
    "store": look.look_at_store,
}


def main(arguments: list[str]) -> int:
    """Look, print the table, and return the exit status."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\n{first_line(__doc__ or '')}")
        return 0
    if arguments:
        print(f"tcsweep: doctor takes no arguments, not {arguments[0]!r}: {USAGE}", file=sys.stderr)
        return 2
    from rich.console import Console

    from tcsweep.report.doctor import render
    from tcsweep.report.progress import redraws

    console = Console()
    with console.status("looking at this machine") if redraws(console) else contextlib.nullcontext():
        judged = rows(gather())
    render(judged, console)
    return exit_status(judged)


def gather() -> Facts:
    """All facts. What cannot be found out is a reason in `unknown`, by field."""
    found: dict[str, Any] = {"python": sys.version_info[:2], "packages": {}}
    unknown: dict[str, str] = {}
    server, imports = _begin(unknown)
    for field, probe in PROBES.items():
        _try(found, unknown, field, probe, LOCAL_S)
    # Now: a worker's start changes our environment for a moment, which the probes above read.
    for field, task in (("torch", "look_at_torch"), ("device", "look_at_device")):
        if "torch" in unknown:
            break
        value = look.ask(server, task, WORKER_S)
        if isinstance(value, Broken):
            unknown[field] = value.reason
        else:
            found[field] = value
    for field, importing in imports.items():
        packages: dict[str, Any] = {}
        _try(packages, unknown, field, functools.partial(importing.end, IMPORT_S), IMPORT_S + 5)
        found["packages"] |= packages.get(field, {})
    return Facts(**found, unknown=unknown)


def _begin(unknown: dict[str, str]) -> tuple[Server, dict[str, Imports]]:
    """Begin what takes seconds: torch is imported by the fork server, the others by processes of their own."""
    server = Server()
    imports: dict[str, Any] = {}
    # From this thread, not by `_try`: the fork server ends with the thread that starts it.
    try:
        server.start()
    except OSError as error:
        unknown["torch"] = f"no worker can be started: {error}"
    for field, names in PACKAGES.items():
        _try(imports, unknown, field, functools.partial(Imports, *names), LOCAL_S)
    return server, imports


def _try(found: dict[str, Any], unknown: dict[str, str], field: str, probe: Callable[[], Any], limit_s: float) -> None:
    try:
        found[field] = bounded(probe, limit_s)
    except Exception as error:
        unknown[field] = first_line(str(error)) or type(error).__name__
