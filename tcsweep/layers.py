"""`python -m tcsweep layers model=resnet50 precision=o1`: each convolution and linear layer with its channels, whether
it can use tensor cores, the kernel that ran, and the reason.

A job is measured as `python -m tcsweep` measures it, briefly, unless a saved sweep's folder is given. Exit status 0; 1
where the job failed; 2 for a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tcsweep.devices.tensor_cores import SHORT, Eligible, eligible, multiplied
from tcsweep.evidence.facts import MULTIPLYING, Evidence, Kernel, LayerTime, LayerWork
from tcsweep.evidence.kernels import arithmetic
from tcsweep.explain import HALF, half_of
from tcsweep.job import Result
from tcsweep.mistakes import Mistake
from tcsweep.precision import PRECISIONS
from tcsweep.speedup import Row

USAGE = "python -m tcsweep layers model=resnet50 precision=o1 [arch=7.2], or layers FOLDER [arch=7.2]"
HELP = """Each convolution and linear layer: channels, whether it can use tensor cores, the kernel that ran, and why.
The job is measured briefly; of a saved sweep's folder nothing is. arch: whether it could on another GPU, by its
compute capability (5.3 Nano, 6.2 TX2, 7.2 Xavier, 8.7 Orin, 9.0 H100)."""
KINDS = ("convolution", "linear")
UNIT = {"tensor-core": "tensor cores", "cuda-core": "CUDA cores", "unknown": "not told by its name"}
NAME_LONGEST = 44


@dataclass(frozen=True)
class Line:
    """A layer, as listed."""

    work: LayerWork
    able: tuple[str, ...]  # dtypes in which the architecture's tensor cores could run it
    ms: float | None  # of an iteration; None: not seen, or told with another layer
    within: str | None  # the layer whose time holds this one's
    kernel: Kernel | None  # the longest that multiplies
    reason: str

    @property
    def shape(self) -> str:
        """ "64 → 256, 1x1", "32 → 32, 3x3, 32 groups"."""
        filter = "x".join(map(str, self.work.kernel))
        groups = f"{self.work.groups} groups" if self.work.groups > 1 else ""
        return ", ".join(p for p in (f"{self.work.channels_in} → {self.work.channels_out}", filter, groups) if p)


def listed(result: Result, arch: str | None = None) -> list[Line]:
    """Every convolution and linear layer of a measured job, in the order of their calls. `arch`: a compute capability
    other than the device's. Raises Mistake where the layers were not counted."""
    evidence = result.evidence
    if evidence is None or not evidence.work.layers:
        missing = evidence.work.missing if evidence else "the result is of an older version"
        raise Mistake(f"{result.job.label}: its layers were not counted ({missing})")
    return [_line(layer, result, evidence, arch) for layer in evidence.work.layers if layer.kind in KINDS]


def _line(layer: LayerWork, result: Result, evidence: Evidence, arch: str | None) -> Line:
    own = result.environment.compute_capability
    capability = arch or own or "8.0"
    name = None if arch else result.environment.device_name
    able = tuple(d for d in multiplied(capability, name) if eligible(layer, d, capability, name).can)
    seen = ran(layer.name, evidence)
    kernel = multiplying(seen) if seen else None
    within = seen.name if seen and seen.name != layer.name else None
    found = eligible(layer, dtype_of(result, arch), capability, name)
    reason = found.reason if arch or not own else _reason(found, kernel, dtype_of(result))
    return Line(layer, able, None if within or not seen else seen.ms, within, kernel, reason)


def ran(name: str, evidence: Evidence) -> LayerTime | None:
    """The times of a layer, or of the nearest module around it that computes for it; None where none were seen."""
    by_name = {layer.name: layer for layer in (evidence.layers.layers if evidence.layers else ())}
    while name not in by_name and name:
        name = name.rpartition(".")[0]
    return by_name.get(name) if name else None


def multiplying(layer: LayerTime) -> Kernel | None:
    """The longest of a layer's kernels that multiplies matrices."""
    return next((k for k in layer.kernels if k.kind in MULTIPLYING), None)


def dtype_of(result: Result, arch: str | None = None) -> str:
    """What a job's label promises to multiply in on its device, or on a GPU; "tf32" too."""
    precision = PRECISIONS[result.job.precision]
    half = HALF.get(precision.name, "float16") if arch else half_of(result)
    return "tf32" if precision.tf32 else precision.promise.name(half)


def _reason(found: Eligible, kernel: Kernel | None, dtype: str) -> str:
    """Why a layer ran where it did."""
    if kernel is None or not found.can:
        return found.reason
    used = arithmetic(kernel.name)
    if used and used != dtype:
        return f"ran in {used}"
    if kernel.unit == "cuda-core":
        return "eligible; the library chose CUDA cores" + ("" if found.reason == "yes" else f" ({found.reason})")
    return found.reason


def summary(lines: Sequence[Line], result: Result, arch: str | None) -> str:
    """All of them in a line."""
    dtype, capability = dtype_of(result, arch), arch or result.environment.compute_capability
    where = f"sm_{capability.replace('.', '')}" if capability else "a GPU of sm_80 or newer"
    flops = sum(line.work.flops for line in lines)
    can = [line for line in lines if dtype in line.able]
    share = sum(line.work.flops for line in can) / flops if flops else 0.0
    text = f"{len(can)} of {len(lines)} layers, {share:.0%} of their operations, could use {where}'s tensor cores"
    text += f" in {dtype}"
    told = [line for line in lines if line.kernel is not None and line.ms is not None]
    if told:
        on = [line for line in told if line.kernel and line.kernel.unit == "tensor-core"]
        time = sum(line.ms or 0.0 for line in on) / sum(line.ms or 0.0 for line in told)
        text += f"; {len(on)} of {len(told)} did, {time:.0%} of their time"
    return text


# --- the command ---


def main(arguments: list[str]) -> int:
    """Print the table of each job. Raises Mistake."""
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\n{HELP}")
        return 0
    arch = _arch([word for word in arguments if word.startswith("arch=")])
    words = [word for word in arguments if not word.startswith("arch=") and word not in ("-m", "--multirun")]
    if not words or any(word.startswith("-") for word in words):
        raise Mistake(f"layers takes overrides or a sweep's folder: {USAGE}")
    folder, status = (Path(words[0]), 0) if len(words) == 1 and "=" not in words[0] else _measured(words)
    if status:
        return status
    from rich.console import Console

    from tcsweep.api import load_results

    results = load_results(folder)
    told = [row for row in results.rows if row.outcome.role == "asked" and isinstance(row.outcome, Result)]
    if not told:
        raise Mistake(f"{results.folder}: no job of it was measured")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for row in told:
        _print(row, results.rows, arch, console)
    console.print(f"Results: {results.folder}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _arch(words: Sequence[str]) -> str | None:
    if not words:
        return None
    text = words[-1].removeprefix("arch=").removeprefix("sm_")
    if re.fullmatch(r"\d{2,3}", text):
        text = f"{text[:-1]}.{text[-1]}"
    if not re.fullmatch(r"\d{1,2}\.\d", text):
        raise Mistake(
            f"{words[-1]}: not a compute capability, such as 5.3 (Nano), 7.2 (Xavier), 8.7 (Orin), 9.0 (H100)"
        )
    return text


def _measured(words: Sequence[str]) -> tuple[Path, int]:
    """Where the words' sweep is, and its exit status. Its table is not printed: this command prints another."""
    folder = Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S-layers")
    given = {word.partition("=")[0].lstrip("+") for word in words}
    words = [*words, *(d for d in ("measure=quick", "tracking=none") if d.partition("=")[0] not in given)]
    command = [sys.executable, "-m", "tcsweep", "-m", *words, f"hydra.sweep.dir={folder}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace")
    if done.returncode == 1:
        print(done.stdout, end="")
    return folder, done.returncode


def _print(row: Row, rows: Sequence[Row], arch: str | None, console: Any) -> None:
    from rich.table import Table

    from tcsweep.report.words import device_title, number

    result = row.outcome
    assert isinstance(result, Result)
    lines = listed(result, arch)
    evidence = result.evidence
    assert evidence is not None
    job = result.job
    title = f"{job.model} · {job.precision} · batch {job.batch} · {job.layout} · {job.engine}"

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    say(f"{title} · {device_title(result.environment)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "channels, filter"):
        table.add_column(heading, overflow="fold")
    for heading in ("MFLOP/img", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("could in", "ran on", "kernel", "reason"):
        table.add_column(heading, overflow="fold")
    for line in lines:
        time = f"in {line.within}" if line.within else number(line.ms)
        unit = UNIT[line.kernel.unit] if line.kernel else "CPU" if job.device == "cpu" else "—"
        table.add_row(
            *(line.work.name, line.shape, number(line.work.flops / 1e6), time),
            *(" ".join(SHORT.get(d, d) for d in line.able) or "—", unit),
            *(short(line.kernel.name) if line.kernel else "—", line.reason or "—"),
        )
    console.print(table, highlight=False, markup=False)
    say(summary(lines, result, arch))
    if evidence.layers is None or evidence.layers.missing:
        say(f"times by layer: {evidence.layers.missing if evidence.layers else 'the result is of an older version'}")
    if job.device == "cpu" and not arch:
        say("kernels: a CPU runs no GPU kernels; arch=7.2 tells what a Xavier's tensor cores could do")


def short(kernel: str, longest: int = NAME_LONGEST) -> str:
    """A kernel's name without its arguments, cut to a length."""
    name = re.sub(r"^void ", "", kernel).partition("<")[0].partition("(")[0]
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
