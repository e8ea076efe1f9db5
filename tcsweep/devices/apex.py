"""Which `apex` is installed, told from its files alone. It is never imported: another project has the name on PyPI, an
import may raise, exit or hang, and NVIDIA's own costs a tenth of a second and a CUDA check."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["none", "not-nvidia", "without-amp", "amp"]

# Folders of NVIDIA's apex before and after amp was removed (tags 24.10 to 25.09).
NVIDIA_FOLDERS = frozenset({"contrib", "multi_tensor_apply", "normalization", "optimizers", "transformer"})
# PyPI's apex is a toolkit for the Pyramid web framework; its import dies on this name (NVIDIA/apex#1063).
PYPI_TEXT = re.compile(r"\bpyramid\b|UnencryptedCookieSessionFactoryConfig", re.IGNORECASE)
PYPI_VERSION = re.compile(r"0\.9(\.|$)")  # its only releases; NVIDIA's has said 0.1 ever since
VERSION_TEXT = re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE)
TEXT_LIMIT = 100_000  # bytes of __init__.py that are looked at


@dataclass(frozen=True)
class ApexFacts:
    """What was found under the name `apex`."""

    state: State
    version: str | None = None
    build: str | None = None  # of NVIDIA's: "full" with its CUDA extensions, else "python-only"
    path: str | None = None  # the package's folder, or the file of a single module


def find_apex() -> ApexFacts:
    """The facts of the `apex` that this interpreter would import."""
    origin = _origin("apex")
    if origin is None:
        return ApexFacts("none")
    text = _text(origin)
    version = _version(origin, text)
    state = _state(origin, text, version)
    path = origin.parent if origin.name == "__init__.py" else origin
    return ApexFacts(state, version, _build() if state in ("amp", "without-amp") else None, str(path))


def _origin(name: str) -> Path | None:
    """The file that importing a top-level name would run. A bare folder (no `__init__.py`: a checkout beside us) is
    nothing that can be used."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # whatever a broken finder raises, it gives no apex
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _state(origin: Path, text: str, version: str | None) -> State:
    folder = origin.parent
    if origin.name != "__init__.py":
        return "not-nvidia"
    if (folder / "amp" / "frontend.py").is_file():
        return "amp"
    names = {entry.name for entry in folder.iterdir()} - {"__pycache__"} if folder.is_dir() else set()
    if len(names & NVIDIA_FOLDERS) >= 2:
        return "without-amp"
    if PYPI_TEXT.search(text) or (version is not None and PYPI_VERSION.match(version)):
        return "not-nvidia"
    return "without-amp" if names == {"__init__.py"} else "not-nvidia"


def _text(origin: Path) -> str:
    try:
        with origin.open("rb") as file:
            return file.read(TEXT_LIMIT).decode(errors="replace")
    except OSError:
        return ""


def _version(origin: Path, text: str) -> str | None:
    try:
        distribution = importlib.metadata.distribution("apex")
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is not None and _is_of(distribution, origin):
        return distribution.version
    found = VERSION_TEXT.search(text)
    return found.group(1) if found else None


def _is_of(distribution: importlib.metadata.Distribution, origin: Path) -> bool:
    """Whether the metadata is of the package found, and not of one that it hides. An editable install has no package
    beside its metadata."""
    beside = Path(str(distribution.locate_file("apex"))) / "__init__.py"
    return not beside.is_file() or beside.resolve() == origin.resolve()


def _build() -> str:
    return "python-only" if _origin("amp_C") is None else "full"
