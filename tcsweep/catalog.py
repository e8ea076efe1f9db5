"""What can be chosen by name, as data: torchvision's classifiers and the option files of conf/. Needs no torch."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tcsweep.mistakes import Mistake, unknown

PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Classifier:
    """A torchvision classifier: the input size (pixels) it expects as built, and with each of its weights."""

    image_size: int
    weights: Mapping[str, int]


@functools.cache
def classifiers() -> Mapping[str, Classifier]:
    """Every torchvision classifier by name (`scripts/list_models.py` writes the list)."""
    data = json.loads((PACKAGE / "data" / "torchvision.json").read_text(encoding="utf-8"))
    return {name: Classifier(**entry) for name, entry in data["models"].items()}


def conf_dir() -> Path:
    """The folder of config groups: inside the package when installed, beside it in a checkout. Raises Mistake."""
    for path in (PACKAGE / "conf", PACKAGE.parent / "conf"):
        if path.is_dir():
            return path
    raise Mistake(f"tcsweep's conf folder is neither in {PACKAGE} nor beside it: install again, a zip will not do")


def options(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The option names of a config group, numbers in order of size; `folders` are searched as well."""
    names = {f.stem for d in (conf_dir(), *folders) for f in (d / group).glob("*.yaml")}
    return sorted(names, key=lambda n: (0, int(n), "") if n.isdecimal() else (1, 0, n))


def groups(folders: Sequence[Path] = ()) -> list[str]:
    """The names of the config groups."""
    return sorted({d.name for root in (conf_dir(), *folders) for d in root.iterdir() if d.is_dir()})


def check_device(name: str) -> None:
    """Raises Mistake for what is neither auto, cpu, cuda nor cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "cuda:1"])
