"""The image: its install step in a virtual environment that, as NVIDIA's images, has a torch and a numpy of its own."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.install_in_image import canonical, pins

ROOT = Path(__file__).parents[1]
UV = Path(sys.prefix) / "bin" / "uv"
# As in NVIDIA's 24.12 image; the oldest numpy that has a wheel for Python 3.13 there.
NUMPY = "1.26.4" if sys.version_info < (3, 13) else "2.1.3"
TORCH, TORCHVISION = "2.6.0a0+df5bbc09d1.nv24.12", "0.20.0a0"
OLD_RICH, OTHER_PSUTIL = "12.6.0", "5.9.8"  # tcsweep needs rich>=13, and psutil>=5.9
UNREACHABLE = re.compile(r"error sending request|dns error|failed to fetch|connect|timed out", re.IGNORECASE)


class Image(NamedTuple):
    """The stand-in for an image: a Python with packages, and the files that the Dockerfile copies."""

    venv: Path
    context: Path
    wheels: Path

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def install(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """The Dockerfile's install step, with the image's own pip constraints in the way."""
        constraint = self.venv / "constraint.txt"
        constraint.write_text(f"numpy=={NUMPY}\nrich=={OLD_RICH}\nprotobuf==4.24.4\n")
        return subprocess.run(
            [self.python, self.context / "scripts" / "install_in_image.py", *options],
            env={**os.environ, "PIP_CONSTRAINT": str(constraint)},
            capture_output=True,
            text=True,
        )

    def put(self, *packages: str | Path) -> None:
        command = [UV, "pip", "install", "--quiet", "--no-deps", "--python", self.python, *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and UNREACHABLE.search(done.stderr):
            pytest.skip(f"packages cannot be downloaded here: {done.stderr.strip().splitlines()[-1].strip()}")
        assert done.returncode == 0, done.stderr

    def wheel(self, name: str, version: str) -> Path:
        """A package that is nothing but a version."""
        path, info = self.wheels / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{name}/__init__.py", f'__version__ = "{version}"\n')
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"{name}/__init__.py,,\n")
        return path

    def versions(self) -> dict[str, str]:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        found: dict[str, str] = json.loads(subprocess.check_output([self.python, "-c", code], text=True))
        return {canonical(name): version for name, version in found.items()}

    def files(self) -> dict[str, str]:
        """The image's own torch, torchvision and numpy, to the last byte."""
        packages = next((self.venv / "lib").glob("python*/site-packages"))
        return {
            str(path.relative_to(packages)): hashlib.sha256(path.read_bytes()).hexdigest()
            for top in packages.iterdir()
            if re.match(r"(torch|torchvision|numpy)([-.]|$)", top.name)
            for path in top.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }


def copy_context(to: Path) -> Path:
    """What `COPY . ` copies, by the rules of .dockerignore that are in use there: nothing, but for what has a `!`."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    again = {rule[1:] for rule in rules if rule.startswith("!")}
    hidden = {rule.removesuffix("/*") for rule in rules if rule.endswith("/*")}
    for name in again:
        source = ROOT / name
        if source.is_dir() and name not in hidden:
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to / name)
    return to


class Installed(NamedTuple):
    """The image after the install step, and what was there before it."""

    image: Image
    files: dict[str, str]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Image, subprocess.CompletedProcess[str], dict[str, str]]:
    """An image that is only a Python, and what the install step says of it."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "wheels").mkdir()
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    image = Image(folder / "venv", copy_context(folder / "context"), folder / "wheels")
    return image, image.install(), image.versions()


@pytest.fixture(scope="module")
def installed(bare: tuple[Image, subprocess.CompletedProcess[str], dict[str, str]]) -> Installed:
    image = bare[0]
    image.put(f"numpy=={NUMPY}", f"rich=={OLD_RICH}", f"psutil=={OTHER_PSUTIL}")
    image.put(image.wheel("torch", TORCH), image.wheel("torchvision", TORCHVISION))
    before = image.files()
    assert sum(name.startswith(("torch/", "torchvision/")) for name in before) == 2
    return Installed(image, before, image.install("--uv", UV))


def test_an_image_without_a_torch_is_refused_before_anything_is_installed(
    bare: tuple[Image, subprocess.CompletedProcess[str], dict[str, str]],
) -> None:
    _, done, versions = bare
    assert (done.returncode, done.stderr) == (
        1,
        "error: this image has no torch and no torchvision and no numpy: take one built for PyTorch as BASE_IMAGE\n",
    )
    assert versions.keys() <= {"pip", "setuptools"}


def test_the_install_step_leaves_torch_torchvision_and_numpy_as_the_image_has_them(
    installed: Installed,
) -> None:
    image, before, done = installed
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.files() == before
    assert done.stdout.splitlines()[1:] == [
        "replacing the image's rich",
        f"unchanged: torch {TORCH}, torchvision {TORCHVISION}, numpy {NUMPY}",
        "amp backend of this image: the torch-native twin (apex: none)",
    ]


def test_what_the_image_has_stays_where_it_will_do_and_the_rest_is_as_pinned(
    installed: Installed,
) -> None:
    versions = installed.image.versions()
    pinned = {
        name: {line.split()[0].split("==")[1] for line in lines.splitlines() if "==" in line}
        for name, lines in pins((ROOT / "requirements-image.txt").read_text()).items()
    }
    assert versions["psutil"] == OTHER_PSUTIL
    other = {"psutil", "torch", "torchvision", "numpy", "tcsweep", "pip", "setuptools"}
    assert {
        name: v for name, v in versions.items() if canonical(name) not in other and v not in pinned[canonical(name)]
    } == {}
    assert {"mlflow", "hydra-core", "rich", "tcsweep"} <= versions.keys()


def test_the_installed_tcsweep_runs_with_its_own_configuration_outside_any_checkout(
    installed: Installed, tmp_path: Path
) -> None:
    done = subprocess.run(
        [installed.image.python, "-m", "tcsweep", "--cfg", "job", "precision=o2", "batch=8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "o2" in done.stdout


def test_the_install_step_with_pip_mends_what_is_missing_or_too_old(
    installed: Installed,
) -> None:
    image, before, _ = installed
    image.put(f"rich=={OLD_RICH}")
    subprocess.run([UV, "pip", "uninstall", "--quiet", "--python", image.python, "omegaconf", "tcsweep"], check=True)
    done = image.install()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replacing the image's rich\n" in done.stdout
    assert {"omegaconf", "tcsweep"} <= image.versions().keys()
    assert image.files() == before


def an_apex(folder: Path, amp: bool) -> Path:
    """The source of a package as NVIDIA's is, with or without apex.amp."""
    (folder / "apex/amp").mkdir(parents=True)
    (folder / "apex/__init__.py").write_text("from . import amp\n" if amp else "")
    (folder / "apex/amp/__init__.py").write_text("")
    if amp:
        (folder / "apex/amp/frontend.py").write_text("def initialize(): ...\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "apex"\nversion = "0.1"\n'
    )
    return folder


def test_an_apex_with_amp_is_added_on_request_and_one_without_is_an_error(installed: Installed, tmp_path: Path) -> None:
    image, before, _ = installed
    done = image.install("--uv", UV, "--apex", an_apex(tmp_path / "new", amp=False))
    assert done.returncode == 1
    assert "has no apex.amp: 25.05 is the last tag that has it" in done.stderr
    subprocess.run([UV, "pip", "uninstall", "--quiet", "--python", image.python, "apex"], check=True)
    done = image.install("--uv", UV, "--apex", an_apex(tmp_path / "old", amp=True))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "amp backend of this image: apex.amp (NVIDIA's apex" in done.stdout
    subprocess.run([UV, "pip", "uninstall", "--quiet", "--python", image.python, "apex"], check=True)
    assert image.files() == before


def test_an_image_with_a_torch_that_is_too_old_is_refused_and_keeps_it(
    installed: Installed,
) -> None:
    image = installed.image
    image.put(image.wheel("torch", "1.13.0"))
    done = image.install("--uv", UV)
    image.put(image.wheel("torch", TORCH))
    assert done.returncode == 1
    assert done.stderr == "error: tcsweep 0.1.0 needs torch>=2.1, and there is 1.13.0\n"


def test_a_torch_that_changes_in_the_install_step_is_an_error(
    installed: Installed,
) -> None:
    image = installed.image
    code = f"""
import runpy, subprocess, sys
step = runpy.run_path({str(image.context / "scripts" / "install_in_image.py")!r})
facts = step["kept"]()
subprocess.run([{str(UV)!r}, "pip", "install", "-q", "--no-deps", "--python", sys.executable, sys.argv[1]], check=True)
step["check"](facts, step["unmet"](), set())
"""
    done = subprocess.run(
        [image.python, "-c", code, image.wheel("torch", "2.9.0")], capture_output=True, text=True, timeout=60
    )
    image.put(image.wheel("torch", TORCH))
    assert done.returncode == 1
    assert re.match(rf"error: torch was .*{re.escape(TORCH)}.*, is .*2\.9\.0", done.stderr), done.stderr


def test_the_image_s_requirements_have_all_that_tcsweep_asks_for_but_what_the_image_brings() -> None:
    listed = pins((ROOT / "requirements-image.txt").read_text())
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    asked = {canonical(name) for name in re.findall(r'"([A-Za-z0-9-]+)', block[1])}
    assert asked - listed.keys() == {"torch", "torchvision"}
    assert {name for name in listed if name.startswith(("torch", "numpy", "triton", "nvidia-", "cuda"))} == {
        "nvidia-ml-py"
    }
    assert all("--hash=sha256:" in lines for lines in listed.values())


def test_the_image_is_nvidia_s_for_jetson_and_runs_tcsweep_as_a_normal_user() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    steps = [line for line in lines if re.match(r"[A-Z]+ ", line)]
    assert steps[:2] == ["ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:24.12-py3-igpu", "FROM ${BASE_IMAGE}"]
    assert steps[-4:] == [
        "USER tcsweep",
        "WORKDIR /home/tcsweep",
        'VOLUME ["/home/tcsweep/outputs"]',
        'ENTRYPOINT ["python3", "-m", "tcsweep"]',
    ]
