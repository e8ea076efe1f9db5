"""How figures and names are written, the same in every table, line and plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tcsweep.job import Environment, Job, Round
from tcsweep.speedup import Row
from tcsweep.stats import Figures, Interval

MISSING = "—"
IMAGES = 3000  # the number of images that the published benchmark timed
# One colour a precision. Paul Tol's "muted" scheme, made for colour-blind readers, with a dark grey for the baseline.
COLOURS = {
    "fp32": "#555555",
    "tf32": "#88CCEE",
    "o0": "#DDCC77",
    "o1": "#CC6677",
    "o2": "#AA4499",
    "o3": "#882255",
    "fp16": "#117733",
    "bf16": "#332288",
    "int8": "#999933",
    "fp8": "#44AA99",
}
OTHER_COLOUR = "#BBBBBB"
_ASCII = str.maketrans("—–─━│±×·…≥≤•", "---" + "-|~x|.><*")  # one sign for one, so that columns stay aligned


def number(value: float | None) -> str:
    """Three or more significant digits, never an exponent: 0.0421, 9.72, 308.4, 12345."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value >= 999.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.995 or value <= 0:
        return f"{value:.2f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


def ratio(value: float | None) -> str:
    """A speed-up without its unit: 2.86, 0.042, 12.3."""
    if value is None or not math.isfinite(value):
        return MISSING
    if 0.0995 <= value < 0.995:
        return f"{value:.2f}"
    return number(value)


def times(value: float | None) -> str:
    """A speed-up with its unit: 2.86x."""
    text = ratio(value)
    return text if text == MISSING else f"{text}x"


def percent(share: float | None) -> str:
    """A share as a percentage of two digits or so: 0.04%, 3.4%, 19%."""
    if share is None or not math.isfinite(share):
        return MISSING
    value = share * 100
    if value >= 9.95:
        return f"{value:.0f}%"
    return f"{value:.1f}%" if value >= 0.095 or value == 0 else f"{value:.2f}%"


def span(interval: Interval | None) -> str:
    """An interval of speed-ups: 2.81–2.91."""
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return MISSING
    return f"{ratio(interval.low)}–{ratio(interval.high)}"


def duration(seconds: float) -> str:
    """Seconds for a person: 42 s, 12 min 30 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 600:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(n: int, noun: str) -> str:
    """A number with its noun: 1 job, 15 jobs."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def one_line(text: str) -> str:
    """The text with its line ends and runs of spaces made single spaces."""
    return " ".join(text.split())


def encodable(text: str, encoding: str | None) -> str:
    """The text in signs that the encoding has, a sign for a sign: an old terminal may know ASCII only."""
    encoding = encoding or "utf-8"
    if encoding.lower().startswith("utf"):
        return text
    return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)


def seconds_for_images(figures: Figures) -> float:
    """Seconds for `IMAGES` images at the measured throughput."""
    return IMAGES / figures.throughput_img_s


def precision_labels(jobs: Sequence[Job]) -> list[str]:
    """The jobs' precisions, with the amp backend or the repeat where the precision alone leaves two alike."""
    alike = Counter((j.cell, j.precision) for j in jobs)
    backends = {key: {j.amp_backend for j in jobs if (j.cell, j.precision) == key} for key, n in alike.items() if n > 1}
    return [_precision_label(j, len(backends.get((j.cell, j.precision), ())) > 1) for j in jobs]


def _precision_label(job: Job, with_backend: bool) -> str:
    parts = [job.precision]
    if with_backend and job.amp_backend:
        parts.append(job.amp_backend)
    if job.repeat:
        parts.append(f"r{job.repeat + 1}")
    return " ".join(parts)


def group_title(job: Job, others: Sequence[Job] = ()) -> str:
    """What the jobs of a cell have in common; weights, isolation, seed and measure where they tell cells apart."""
    parts = [job.model, f"{job.image_size}×{job.image_size}", f"batch {job.batch}", job.layout, job.engine, job.device]
    if job.weights or any(o.weights != job.weights for o in others):
        parts.insert(1, job.weights or "random weights")
    if job.power is not None or any(o.power != job.power for o in others):
        parts.append(f"power mode {job.power or 'as found'}")
    if any(o.isolation != job.isolation for o in others):
        parts.append("a process each" if job.isolation == "process" else "one process")
    if any(o.seed != job.seed for o in others):
        parts.append(f"seed {job.seed}")
    if any(o.measure != job.measure for o in others):
        parts.append(f"measure {job.measure.name}")
    return " · ".join(parts)


def device_title(environment: Environment) -> str:
    """The device's name, a CPU's model where it has no other."""
    return environment.device_name or environment.cpu_model or environment.device


def amp_titles(rows: Sequence[Row]) -> list[str]:
    """The amp backends that ran the O levels, with the version that matters."""
    found: dict[str, None] = {}
    for row in rows:
        for one in row.outcome.rounds:
            if one.amp_backend:
                found[_amp_title(one, row.outcome.environment)] = None
    return list(found)


def _amp_title(one: Round, environment: Environment) -> str:
    if one.amp_backend != "apex":
        return "torch-native twin"
    version, build = one.amp_version or environment.apex_version, environment.apex_build
    said = "NVIDIA apex" + (f" {version}" if version and version != build else "")
    return said if not build or build in said else f"{said} ({build})"


def half_dtypes(rows: Sequence[Row]) -> list[str]:
    """What "half" meant in the O levels: float16, bfloat16."""
    levels = [one for row in rows for one in row.outcome.rounds if one.amp_backend and one.half_dtype]
    return list(dict.fromkeys(str(one.half_dtype) for one in levels))
