"""Install tcsweep into a Python that has its own torch, torchvision and numpy (an NVIDIA image), and leave those alone.

    python scripts/install_in_image.py [--uv PATH] [--apex TAG] [--jupyter VERSION]

What the image has stays, wherever that meets what tcsweep and its requirements ask for; what is missing or won't do
comes from requirements-image.txt, by hash. The image's own pip constraints don't apply (from 25.03 on they may refuse
what MLflow needs): what must not change is checked at the end instead, and any change is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pip._vendor.packaging.requirements import (
    Requirement,
)  # every image with pip has it; packaging itself may be absent
from pip._vendor.packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("torch", "torchvision", "numpy")
APEX = "https://github.com/NVIDIA/apex/archive/refs/tags/{}.tar.gz"  # its Python files alone are installed
IMPORTS = "import tcsweep, mlflow, hydra, matplotlib.pyplot, pandas, scipy.stats, pyarrow"  # the latter: built on numpy
BACKEND = """
from tcsweep.devices.apex import find_apex
apex = find_apex()
if apex.state == "amp":
    print(f"amp backend of this image: apex.amp (NVIDIA's apex {apex.version}, {apex.build}) on a GPU")
else:
    print(f"amp backend of this image: the torch-native twin (apex: {apex.state})")
"""

HAS_AMP = """
import sys
from tcsweep.devices.apex import find_apex
sys.exit(find_apex().state != "amp")
"""


class Fact(NamedTuple):
    """What must be the same afterwards."""

    version: str
    folder: str
    files: str  # a hash of the list of installed files, with their hashes


class Unmet(NamedTuple):
    """A package's requirement that is not installed, or in another version."""

    package: str
    needs: str
    text: str


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, importlib.metadata.Distribution]:
    """What is installed, by name; the first on the path where there are several, as for an import."""
    importlib.invalidate_caches()
    found: dict[str, importlib.metadata.Distribution] = {}
    for one in importlib.metadata.distributions():
        if one.metadata["Name"]:
            found.setdefault(canonical(one.metadata["Name"]), one)
    return found


def kept() -> dict[str, Fact]:
    have = installed()
    missing = [name for name in KEPT if name not in have]
    if missing:
        sys.exit(f"error: this image has no {' and no '.join(missing)}: take one built for PyTorch as BASE_IMAGE")
    return {name: _fact(have[name]) for name in KEPT}


def _fact(one: importlib.metadata.Distribution) -> Fact:
    record = one.read_text("RECORD") or one.read_text("installed-files.txt") or ""
    listed = "\n".join(sorted(line for line in record.splitlines() if ".pyc" not in line))
    return Fact(one.version, str(one.locate_file("")), hashlib.sha256(listed.encode()).hexdigest())


def pins(text: str) -> dict[str, str]:
    """The lines of each package of a hashed requirements file (several where versions differ by Python), by name."""
    found: dict[str, str] = {}
    for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE):
        if name := re.match(r"[\w.-]+", block):
            found[canonical(name[0])] = found.get(canonical(name[0]), "") + block
    return found


def unmet() -> set[Unmet]:
    have = installed()
    return {
        Unmet(name, canonical(need.name), f"{name} {one.version} needs {need}, and there is {_version(have, need)}")
        for name, one in have.items()
        for need in map(Requirement, one.requires or ())
        if (need.marker is None or need.marker.evaluate({"extra": ""})) and not _met(have, need)
    }


def _version(have: dict[str, importlib.metadata.Distribution], need: Requirement) -> str:
    one = have.get(canonical(need.name))
    return one.version if one else "none"


def _met(have: dict[str, importlib.metadata.Distribution], need: Requirement) -> bool:
    one = have.get(canonical(need.name))
    try:
        return one is not None and need.specifier.contains(one.version, prereleases=True)
    except InvalidVersion:
        return False


class Installer:
    """pip, or uv where it is given, under constraints made of what the image has."""

    def __init__(self, wanted: dict[str, str], uv: str | None) -> None:
        self.wanted = wanted
        self.command = (
            [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
        )
        self.uv = uv
        # Empty: the image's own constraints don't apply. Debian's and Ubuntu's Python ask for the next two.
        self.environ = {
            **os.environ,
            "PIP_CONSTRAINT": "",
            "PIP_BREAK_SYSTEM_PACKAGES": "1",
            "UV_BREAK_SYSTEM_PACKAGES": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def pinned(self, names: Iterable[str]) -> None:
        """Install these of the hashed requirements, and nothing else."""
        chosen = sorted(names)
        have = installed()
        # Debian's packages have no list of files, so pip can't remove them: the new one goes before them on the path.
        foreign = [name for name in chosen if name in have and have[name].read_text("RECORD") is None]
        self._pinned([name for name in chosen if name not in foreign], ())
        self._pinned(foreign, () if self.uv else ("--ignore-installed",))

    def _pinned(self, names: list[str], options: tuple[str, ...]) -> None:
        if not names:
            return
        with tempfile.TemporaryDirectory() as folder:
            constraints, requirements = Path(folder, "constraints.txt"), Path(folder, "requirements.txt")
            constraints.write_text(_constraints(names))
            requirements.write_text("".join(self.wanted[name] for name in names))
            self._run(
                "--require-hashes", "--constraint", str(constraints), "--requirement", str(requirements), *options
            )

    def source(self, place: str) -> None:
        """A folder or an archive with a package's source, built with what is installed, as apex is with torch."""
        self._run("--no-build-isolation", place)

    def with_needs(self, *packages: str) -> None:
        """Packages by name and what they need, beside all that is there."""
        with tempfile.TemporaryDirectory() as folder:
            constraints = Path(folder, "constraints.txt")
            constraints.write_text(_constraints(()))
            command = [*self.command, "--quiet", "--constraint", str(constraints), *packages]
            subprocess.run(command, env=self.environ, check=True)

    def _run(self, *arguments: str) -> None:
        subprocess.run([*self.command, "--quiet", "--no-deps", *arguments], env=self.environ, check=True)


def _constraints(but: Iterable[str]) -> str:
    """What the image has, as `pip freeze` would say it, but for URLs and what is to be replaced."""
    lines = []
    for name, one in installed().items():
        try:
            if name not in but:
                lines.append(f"{name}=={Version(one.version)}\n")
        except InvalidVersion:
            pass
    return "".join(lines)


def settle(installer: Installer) -> None:
    """Replace what the image has in a version that won't do, until nothing is left that can be."""
    ours = {"tcsweep", *installer.wanted}
    replaced: set[str] = set()
    while wrong := {one.needs for one in unmet() if one.package in ours} & set(installer.wanted) - replaced:
        print(f"replacing the image's {', '.join(sorted(wrong))}", flush=True)
        installer.pinned(wrong)
        replaced |= wrong


def check(facts: dict[str, Fact], before: set[Unmet], ours: set[str]) -> None:
    """An error where what must stay has changed or tcsweep lacks something, a note where another package now does."""
    now = kept()
    changed = [f"{name} was {facts[name]}, is {now[name]}" for name in KEPT if now[name] != facts[name]]
    left = sorted(unmet())
    if wrong := [*changed, *(one.text for one in left if one.package in ours)]:
        sys.exit("error: " + "\nerror: ".join(wrong))
    for one in left:
        if one not in before:
            print(f"note: tcsweep doesn't need it, but it may no longer work: {one.text}")


def elsewhere(code: str) -> None:
    """Run it as `holds` does; an error where it fails."""
    if not holds(code):
        sys.exit(f"error: this failed: {code.strip()}")


def holds(code: str) -> bool:
    """Whether it runs in a fresh interpreter, in a folder without a checkout: it imports what was installed."""
    environ = {**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, check=False).returncode == 0


def add_apex(installer: Installer, apex: str) -> None:
    """NVIDIA's apex of a tag, or from a folder with its source, where the image has none with apex.amp."""
    if holds(HAS_AMP):
        print("apex: this image has its own, with apex.amp")
        return
    installer.source(apex if Path(apex).is_dir() else APEX.format(apex))
    if not holds(HAS_AMP):
        sys.exit(f"error: apex {apex} has no apex.amp: 25.05 is the last tag that has it")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uv", metavar="PATH", help="install with this uv instead of the image's pip")
    parser.add_argument("--apex", metavar="TAG", help="NVIDIA's apex of this tag where the image has no apex.amp")
    parser.add_argument("--jupyter", metavar="VERSION", help="JupyterLab of this version")
    arguments = parser.parse_args()
    wanted = pins((ROOT / "requirements-image.txt").read_text())
    installer = Installer({name: lines for name, lines in wanted.items() if name not in KEPT}, arguments.uv)
    facts, before = kept(), unmet()
    print("before:", ", ".join(f"{name} {facts[name].version} in {facts[name].folder}" for name in KEPT), flush=True)
    installer.pinned(installer.wanted.keys() - installed().keys())
    settle(installer)
    installer.source(str(ROOT))
    settle(installer)
    if arguments.apex:
        add_apex(installer, arguments.apex)
    if arguments.jupyter:
        installer.with_needs(f"jupyterlab=={arguments.jupyter}", "ipykernel")
    check(facts, before, {"tcsweep", *installer.wanted})
    elsewhere(IMPORTS)
    print("unchanged:", ", ".join(f"{name} {facts[name].version}" for name in KEPT), flush=True)
    elsewhere(BACKEND)


if __name__ == "__main__":
    main()
