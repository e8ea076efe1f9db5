"""What the machine is and can do. `probe` runs in a worker: the sweep itself never asks CUDA anything."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcsweep import __version__
from tcsweep.devices import cpu, jetson
from tcsweep.devices.apex import find_apex
from tcsweep.job import Environment


@dataclass(frozen=True)
class Resolved:
    """What a `device=` came to: an environment, or the reason why there is none."""

    asked: str
    environment: Environment | None
    reason: str | None = None  # why it cannot be used; with an environment, why the automatic choice fell on it


def probe(asked: tuple[str, ...], tell: Any) -> dict[str, Resolved]:
    """Each device asked for, as resolved on this machine. Call it in a worker: it initialises CUDA."""
    return {name: _resolve(name) for name in dict.fromkeys(asked)}


def _resolve(asked: str) -> Resolved:
    from tcsweep.devices import cuda

    if asked == "cpu":
        return Resolved(asked, _environment("cpu"))
    index = int(asked.partition(":")[2] or 0)
    reason = cuda.unusable(index)
    if reason is None:
        return Resolved(asked, _environment(f"cuda:{index}"))
    if asked == "auto":
        return Resolved(asked, _environment("cpu"), f"no usable GPU: {reason}")
    return Resolved(asked, None, reason)


def git_commit(folder: Path) -> str | None:
    """The commit of the checkout that a folder is in; None outside one, as in an installed package."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True,
            timeout=5,
            check=False,
        )
        if done.returncode:  # a package installed below some other project's checkout is not of that commit
            return None
        head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _environment(device: str) -> Environment:
    import torch
    import torchvision

    from tcsweep.devices import cuda

    apex = find_apex()
    facts: dict[str, Any] = {
        "device": device,
        "torch": str(torch.__version__),  # a class of torch's own: the sweep would import torch to read it
        "torchvision": str(torchvision.__version__),
        "apex": apex.state,
        "apex_version": apex.version,
        "apex_build": apex.build,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "tcsweep": __version__,
        "git_commit": git_commit(Path(__file__).parent),
    }
    readers: list[Callable[[], dict[str, Any]]] = [cpu.facts, jetson.facts]
    if device != "cpu":
        readers.append(lambda: cuda.facts(int(device.partition(":")[2])))
    for read in readers:
        facts |= read()
    if device == "cpu":
        facts["device_name"] = facts["cpu_model"]
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1" and device != "cpu":
        facts["notes"] = ("CUDA_LAUNCH_BLOCKING=1 makes every launch wait",)
    return Environment(**facts)
