"""Every torchvision classifier: whether it composes, whether it runs here, and the table of docs/models.md.

PYTHONPATH=. python scripts/models_table.py --compose [MODEL ...]
PYTHONPATH=. python scripts/models_table.py --forward [MODEL ...] [--precision bf16,o1]
PYTHONPATH=. python scripts/models_table.py --write FOLDER [FOLDER ...]

--compose   the command line `model=NAME` becomes a job
--forward   a worker builds it as a sweep does and runs a batch of one on the CPU; all 80 in bf16: some minutes
--write     docs/models.md from finished sweeps of one device, later folders over earlier ones

The sweeps that fill the table, in parts of 20 models, so that what goes wrong costs a part only; --parts prints them
with the names filled in. Ten models get the other levels and a batch of one as well:

python -m tcsweep -m model=A,B,C precision=fp32,o1,fp16 batch=8 measure=quick tracking=none hydra.sweep.dir=DIR/1
python -m tcsweep -m model=D,E,F precision=fp32,o1,fp16 batch=8 measure=quick tracking=none hydra.sweep.dir=DIR/2
python -m tcsweep -m model=TEN precision=fp32,o1,o2,o3,fp16 batch=1,8 measure=quick tracking=none hydra.sweep.dir=DIR/5
PYTHONPATH=. python scripts/models_table.py --write DIR/*
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir

from tcsweep import catalog, config, overrides
from tcsweep.job import O_LEVELS, Failure, Job, Result, Skipped
from tcsweep.measure import RoundRequest
from tcsweep.mistakes import Mistake
from tcsweep.report.frame import failure_words
from tcsweep.report.words import MISSING, amp_titles, device_title, number, one_line, times
from tcsweep.speedup import Row, rows
from tcsweep.store import load_sweep, write_file
from tcsweep.worker import Broken, Server

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
MARK = "<!-- scripts/models_table.py writes what follows -->\n"
BATCH, PRECISIONS = 8, ("fp32", "o1", "fp16")
PART = 20  # models a sweep
# A kind of network each, small ones and large ones.
TEN = (
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mobilenet_v3_large",
    "regnet_y_8gf",
    "resnet50",
    "swin_t",
    "vgg16",
    "vit_b_16",
)
# As few iterations as a round can have.
BRIEF = ("measure.iterations=2", "measure.warmup_s_min=0", "measure.warmup_s_max=0", "measure.latency_s_max=0")

Key = tuple[str, str, int]  # model, precision, batch


# --- on this machine ---


def composed(*words: str) -> Job:
    """The job of a command line; raises Mistake."""
    config.register()
    with initialize_config_dir(config_dir=str(catalog.conf_dir()), version_base="1.3"):
        return config.load(compose("config", overrides=overrides.rewrite(words, config.keys()))).job


def forward(server: Server, name: str, precision: str) -> str | None:
    """Build the model in a worker and run it on the CPU, as a sweep does; why that failed, None if it did not."""
    job = composed(f"model={name}", f"precision={precision}", "batch=1", "device=cpu", "measure=quick", *BRIEF)
    if precision in O_LEVELS:
        job = dataclasses.replace(job, amp_backend="torch")
    now = time.monotonic()
    value = server.run("tcsweep.task:measure_round", RoundRequest(job, 1, now, now))
    return f"{value.stage}: {value.reason}" if isinstance(value, Broken) else None


def report_compose(names: Sequence[str]) -> int:
    failed = 0
    for name in names:
        try:
            job = composed(f"model={name}")
            print(f"{name}: {job.image_size} pixels")
        except Mistake as error:
            failed += 1
            print(f"{name}: {error}")
    return failed


def report_forward(names: Sequence[str], precisions: Sequence[str]) -> int:
    failed, server = 0, Server()
    server.start()
    for name, precision in itertools.product(names, precisions):
        start = time.monotonic()
        reason = forward(server, name, precision)
        failed += reason is not None
        print(f"{name} {precision}: {reason or 'runs'} ({time.monotonic() - start:.1f} s)", flush=True)
    server.join()
    return failed


# --- from finished sweeps ---


def measured(folders: Sequence[Path]) -> dict[Key, Row]:
    """The rows of the sweeps that are about a model as torchvision builds it. Speed-ups are of one sweep each."""
    found: dict[Key, Row] = {}
    for folder in folders:
        for row in rows(load_sweep(folder)[1]):
            key = (row.job.model, row.job.precision, row.job.batch)
            plain = row.job.layout == "nchw" and row.job.engine == "eager" and row.job.weights is None
            built_for = catalog.classifiers().get(row.job.model)
            if not plain or built_for is None or row.job.image_size != built_for.image_size:
                continue
            if not (isinstance(row.outcome, Skipped) and key in found):  # cut short, it was not measured better
                found[key] = row
    devices = sorted({device_title(row.outcome.environment) for row in found.values()})
    if len(devices) > 1:
        raise Mistake(f"a table is of one device, these sweeps are of {' and '.join(devices)}")
    return found


def cell(row: Row | None) -> str:
    """`1258, 0.80x`, or why there is no figure, in a word or two."""
    if row is None:
        return "not measured"
    if isinstance(row.outcome, Failure):
        return failure_words(row.outcome)
    if isinstance(row.outcome, Skipped) or row.figures is None:
        return "skipped"
    rate = number(row.figures.throughput_img_s)
    ratio = times(row.speedup.value)
    return rate if row.job.is_baseline or ratio == MISSING else f"{rate}, {ratio}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    rule = ["---" if n == 0 else "--:" for n in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def page(found: dict[Key, Row]) -> str:
    """What stands below the mark: all classifiers, the ones that were measured further, and why some failed."""
    names = sorted(catalog.classifiers())
    done = sum(isinstance(row.outcome, Result) for row in found.values())
    parts = [
        f"{_device(found)}Images a second, and the speed-up over fp32. {len(names)} classifiers, {done} jobs measured."
    ]
    heads = [f"{p}, batch {BATCH}" for p in PRECISIONS]
    lines = [
        [n, str(catalog.classifiers()[n].image_size), *(cell(found.get((n, p, BATCH))) for p in PRECISIONS)]
        for n in names
    ]
    parts.append(table(["model", "pixels", *heads], lines))
    further = sorted({(k[0], k[2]) for k in found if k[1] not in PRECISIONS or k[2] != BATCH})
    if further:
        columns = list(
            dict.fromkeys([*("fp32", "o0", "o1", "o2", "o3", "fp16", "bf16", "tf32"), *(k[1] for k in found)])
        )
        columns = [c for c in columns if any((n, c, b) in found for n, b in further)]
        lines = [[n, str(b), *(cell(found.get((n, c, b))) for c in columns)] for n, b in further]
        parts += ["## Further precisions and batches", table(["model", "batch", *columns], lines)]
    reasons = list(_reasons(found))
    return "\n\n".join([*parts, *(["## Failed or skipped", "\n".join(reasons)] if reasons else [])]) + "\n"


def _device(found: dict[Key, Row]) -> str:
    """Where and with what the figures were measured; empty without figures."""
    if not found:
        return ""
    shown = list(found.values())
    environment = shown[0].outcome.environment
    amp = amp_titles(shown)
    software = [
        f"torch {environment.torch}",
        f"torchvision {environment.torchvision}",
        *(f"o levels by {a}" for a in amp),
    ]
    return f"{device_title(environment)}, {', '.join(software)}. "


def _reasons(found: dict[Key, Row]) -> Iterator[str]:
    for (name, precision, batch), row in sorted(found.items()):
        if isinstance(row.outcome, (Failure, Skipped)):
            where = f"{row.outcome.stage}: " if isinstance(row.outcome, Failure) else ""
            yield f"- {name}, {precision}, batch {batch}: {where}{one_line(row.outcome.reason)}"


def write(path: Path, folders: Sequence[Path]) -> None:
    """Put the tables below the mark; what stands above it is written by hand and stays."""
    above = path.read_text(encoding="utf-8").partition(MARK)[0] if path.exists() else "# Models\n\n"
    write_file(path, f"{above}{MARK}\n{page(measured(folders))}")


def commands() -> Iterator[str]:
    """The sweeps that fill the table."""
    names = sorted(catalog.classifiers())
    common = "measure=quick tracking=none hydra.sweep.dir=outputs/models"
    for number_, start in enumerate(range(0, len(names), PART), 1):
        models = ",".join(names[start : start + PART])
        yield f"python -m tcsweep -m model={models} precision={','.join(PRECISIONS)} batch={BATCH} {common}/{number_}"
    further = f"model={','.join(TEN)} precision=fp32,o1,o2,o3,fp16 batch=1,{BATCH}"
    yield f"python -m tcsweep -m {further} {common}/{-(-len(names) // PART) + 1}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--compose", action="store_true", help="compose the job of each model")
    what.add_argument("--forward", action="store_true", help="run each model once on the CPU")
    what.add_argument("--write", action="store_true", help="write the page from the sweeps' folders")
    what.add_argument("--parts", action="store_true", help="print the sweeps that fill the table")
    parser.add_argument("--precision", default="bf16", help="of --forward; several with commas")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("names", nargs="*", metavar="MODEL|FOLDER")
    asked = parser.parse_args(argv)
    names = asked.names or sorted(catalog.classifiers())
    try:
        if asked.parts:
            print("\n".join(commands()))
            return 0
        if asked.write:
            write(asked.to, [Path(n) for n in asked.names])
            return 0
        failed = report_compose(names) if asked.compose else report_forward(names, asked.precision.split(","))
    except (Mistake, OSError) as error:
        print(f"models_table: {error}", file=sys.stderr)
        return 2
    print(f"{len(names)} models, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
