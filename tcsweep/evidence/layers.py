"""How long each layer of one iteration took, and with which kernels. Modules are followed by torch's global hooks: the
measured model is not touched. Torch is imported when asked."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tcsweep.evidence.facts import Kernel, Layers, LayerTime
from tcsweep.evidence.kernels import classify
from tcsweep.mistakes import first_line

ON_GPU = "device time of the kernels launched in each module's forward"
ON_CPU = "wall time in each module's forward, of its own"
MARK = "tcsweep layer "  # before a module's path, in a profile
ITERATION = "tcsweep iteration"
CPU_S = 0.5  # of iterations, whose median is kept
CPU_ITERATIONS = 5

Launch = tuple[str, str, float]  # path of a module, "layer1.0.conv1"; a kernel's name; its milliseconds


def layers(iteration: Callable[[], Any], iteration_ms: float, on_gpu: bool) -> Layers:
    """The layers of one iteration, in the order of their calls. What fails is said."""
    source = ON_GPU if on_gpu else ON_CPU
    try:
        found = _on_gpu(iteration) if on_gpu else _on_cpu(iteration, iteration_ms)
    except Exception as error:
        return Layers(source, missing=f"{type(error).__name__}: {first_line(str(error))}")
    return Layers(source, found) if found else Layers(source, missing="no module's forward was seen")


@contextlib.contextmanager
def followed(enter: Callable[[str, str], None], leave: Callable[[], None]) -> Iterator[None]:
    """Call `enter` with path and class, and `leave`, around every module's forward. Paths are those below the outermost
    module, whose own is empty."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    paths: dict[int, str] = {}
    depth = 0

    def before(module: Any, args: Any) -> None:
        nonlocal depth
        if not depth:
            paths.update((id(one), path) for path, one in module.named_modules())
        depth += 1
        enter(paths.get(id(module), ""), type(module).__name__)

    def after(module: Any, args: Any, output: Any) -> None:  # returns None: anything else would replace the output
        nonlocal depth
        depth -= 1
        leave()

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- on a CPU ---


class Clock:
    """Adds up the time in each module's forward that is not in a module within it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.ms: dict[tuple[str, str], float] = {}
        self._now, self._stack = now, [("", "")]
        self._since = now()

    def enter(self, path: str, kind: str) -> None:
        """A module begins."""
        self._account()
        self._stack.append((path, kind))
        self.ms.setdefault((path, kind), 0.0)

    def leave(self) -> None:
        """It ends."""
        self._account()
        self._stack.pop()

    def _account(self) -> None:
        now = self._now()
        if len(self._stack) > 1:
            self.ms[self._stack[-1]] += (now - self._since) * 1e3
        self._since = now


def _on_cpu(iteration: Callable[[], Any], iteration_ms: float) -> tuple[LayerTime, ...]:
    clocks = []
    for _ in range(max(1, min(CPU_ITERATIONS, int(CPU_S * 1e3 / max(iteration_ms, 1e-3))))):
        clock = Clock()
        with followed(clock.enter, clock.leave):
            iteration()
        clocks.append(clock.ms)
    return tuple(
        LayerTime(path, kind, statistics.median(ms[path, kind] for ms in clocks if (path, kind) in ms))
        for path, kind in clocks[0]
    )


# --- on a GPU ---


def _on_gpu(iteration: Callable[[], Any]) -> tuple[LayerTime, ...]:
    import torch
    from torch.autograd.profiler import record_function
    from torch.profiler import ProfilerActivity, profile

    order: dict[str, str] = {}
    open_marks: list[Any] = []

    def enter(path: str, kind: str) -> None:
        order.setdefault(path, kind)
        mark = record_function(f"{MARK}{path}")
        mark.__enter__()
        open_marks.append(mark)

    def leave() -> None:
        open_marks.pop().__exit__(None, None, None)

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        iteration()  # pays for the profiler's own start
        torch.cuda.synchronize()
        with followed(enter, leave), record_function(ITERATION):
            iteration()
        torch.cuda.synchronize()
    return added_up(launches(profiler.events()), order)


def launches(events: Sequence[Any]) -> Iterator[Launch]:
    """Each kernel of the marked iteration, among a profile's events: the path of the innermost module whose forward
    launched it (of no module's: empty), its name, its milliseconds."""
    for event in events:
        kernels = [k for k in event.kernels if not k.name.startswith((MARK, ITERATION))]
        if kernels and (path := _path(event)) is not None:
            yield from ((path, kernel.name, kernel.duration / 1e3) for kernel in kernels)


def _path(event: Any) -> str | None:
    """None: outside of the marked iteration."""
    path = None
    while event is not None:
        if event.name == ITERATION:
            return path or ""
        if path is None and event.name.startswith(MARK):
            path = event.name.removeprefix(MARK)
        event = event.cpu_parent
    return None


def added_up(found: Iterable[Launch], order: dict[str, str]) -> tuple[LayerTime, ...]:
    """Layers in this order, each with its kernels by name, longest first; those without a kernel are left out."""
    by_path: dict[str, dict[str, list[float]]] = {}
    for path, name, ms in found:
        by_path.setdefault(path, {}).setdefault(name, []).append(ms)
    kinds = {"": "", **order}
    return tuple(_layer(path, kind, by_path[path]) for path, kind in kinds.items() if path in by_path)


def _layer(path: str, kind: str, times: dict[str, list[float]]) -> LayerTime:
    kernels = [Kernel(name, len(ms), sum(ms), *classify(name)) for name, ms in times.items()]
    kernels.sort(key=lambda kernel: -kernel.device_ms)
    return LayerTime(path, kind, sum(k.device_ms for k in kernels), tuple(kernels))
