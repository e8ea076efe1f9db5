"""What the tests let workers do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any


def echo(request: Any, tell: Any) -> Any:
    tell.stage("thinking")
    tell.estimate(12.5, None)
    print("a line for the log")
    return request


def facts(request: Any, tell: Any) -> dict[str, Any]:
    main = sys.modules["__main__"]
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "torch": "torch" in sys.modules,
        "main": getattr(main, "__file__", None),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("NVIDIA_", "TORCH_ALLOW", "MLFLOW_"))},
        "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
    }


def fail(request: Any, tell: Any) -> None:
    tell.stage("build")
    raise RuntimeError(request)


def die(request: int, tell: Any) -> None:
    tell.stage("throughput")
    os.kill(os.getpid(), request)


def leave(request: int, tell: Any) -> None:
    os._exit(request)


def hang(request: Any, tell: Any) -> None:
    tell.stage("building model")
    time.sleep(1000)


def hang_with_child(request: str, tell: Any) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    with open(request, "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    hang(None, tell)


def ignore_signals(request: Any, tell: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    hang(None, tell)


def dtype_after_autocast(request: bool, tell: Any) -> str:
    """Patch torch for the life of this process, as apex does; what does the next worker see?"""
    import torch

    if request:
        original = torch.add
        torch.add = lambda a, b: original(a.half(), b.half())  # type: ignore[assignment]
    return str(torch.add(torch.ones(1), torch.ones(1)).dtype)
