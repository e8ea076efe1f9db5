"""The wheel as a person installs it: built, put into an environment of its own, and run far away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["device=cpu", "model=resnet18", "model.image_size=32", "batch=1", "measure=quick"]
FAST = ["measure.timed_s_min=0.02", "measure.timed_s_max=0.1", "measure.warmup_s_max=0.2", "measure.latency_s_max=0.05"]
# SQLAlchemy before 2.1 cannot open a path with a question mark.
MARKS = "e?f#g" if tuple(map(int, metadata.version("sqlalchemy").split(".")[:2])) >= (2, 1) else "e#g"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, the heavy packages borrowed from the one that runs the tests."""

    wheel: Path
    python: Path

    def command(self, *argv: str) -> list[str]:
        """The console script's command line."""
        return [str(self.python.with_name("tcsweep")), *argv]

    def module(self, *argv: str) -> list[str]:
        """The same by `python -m`."""
        return [str(self.python), "-m", "tcsweep", *argv]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        pytest.skip("no uv to build the wheel with")
    if not _has("hatchling"):
        pytest.skip("no hatchling to build the wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", "dist"]
    _run([uv, *build, str(ROOT)], folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    _run([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    _run([uv, "pip", "install", "--offline", "--no-deps", "--python", str(python), str(wheel)], folder)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    heavy = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "heavy.pth").write_text("\n".join(heavy))
    return Installed(wheel, python)


def _has(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _run(command: list[str], cwd: Path, umask: int = -1, **env: str) -> subprocess.CompletedProcess[str]:
    """Run to its end, without anything of this checkout in the environment; raises where it fails."""
    done = ended(command, cwd, umask, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def ended(command: list[str], cwd: Path, umask: int = -1, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("MLFLOW_")}
    # Two threads that wait for each other on a busy machine take a hundred times as long.
    env = {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False, umask=umask
    )


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    return folder


@pytest.fixture
def bound(closed: Path) -> list[str]:
    """What has to go before a command so that a folder's mode binds root, too."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv to give its rights away")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--"]
    if ended([*prefix, "test", "!", "-w", str(closed)], closed).returncode != 0:
        pytest.skip("a read-only folder can be written here")
    return prefix


def sweeps(folder: Path) -> list[Path]:
    return [p.parent for p in folder.glob("outputs/*/*/sweep.json")]


def test_the_wheel_holds_every_option_the_launcher_and_the_list_of_models(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    options = {f"tcsweep/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*.yaml")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "tcsweep").rglob("*.py")}
    assert len(options) > 30
    assert options | modules <= names
    assert {"hydra_plugins/tcsweep_launcher/__init__.py", "tcsweep/data/torchvision.json", "tcsweep/py.typed"} <= names
    assert not [n for n in names if n.startswith(("tests/", "scripts/", "outputs/")) or n.endswith(".pyc")]


def test_help_and_configuration_are_the_same_by_both_ways_and_leave_nothing_behind(
    installed: Installed, tmp_path: Path
) -> None:
    said = [_run(way("--help"), tmp_path).stdout for way in (installed.command, installed.module)]
    assert said[0] == said[1]
    assert "precision  bf16, fp16, fp32, o0, o1, o2, o3, tf32" in said[0]
    shown = _run(installed.command("--cfg", "job", "batch=48"), tmp_path, HOME="/proc/none").stdout
    assert "batch:\n  size: 48\n" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_odd_signs_gets_the_results_a_store_that_opens_and_its_artifacts(
    installed: Installed, tmp_path: Path
) -> None:
    folder = tmp_path / "a b" / "c%20d" / MARKS
    folder.mkdir(parents=True)
    done = _run(installed.command("-m", *SMALL, *FAST), folder, umask=0o077, HOME="/proc/none")
    (sweep,) = sweeps(folder)
    assert f"Results: {sweep}\n" in done.stdout
    assert {p.stat().st_mode & 0o077 for p in folder.rglob("*")} == {0}
    script = (
        "import sys, pathlib, mlflow, tcsweep\n"
        "from tcsweep.tracking_uri import sqlite_uri\n"
        "assert pathlib.Path(tcsweep.__file__).is_relative_to(sys.prefix), tcsweep.__file__\n"
        "mlflow.set_tracking_uri(sqlite_uri(pathlib.Path('outputs/mlflow.db')))\n"
        "for run in mlflow.search_runs(experiment_names=['tcsweep'], output_format='list'):\n"
        "    to = pathlib.Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, dst_path=run.info.run_id))\n"
        "    print(sorted(p.name for p in to.iterdir()))\n"
    )
    (tmp_path / "read.py").write_text(script)
    found = _run([str(installed.python), str(tmp_path / "read.py")], folder).stdout.splitlines()
    assert sorted(found) == [
        "['config.yaml', 'result.json', 'samples.csv']",
        "['report.html', 'report.md', 'summary.csv', 'sweep.json', 'throughput.png']",
    ]


@pytest.mark.parametrize(("words", "option"), [([], "hydra.run.dir"), (["-m"], "hydra.sweep.dir")])
def test_a_read_only_folder_is_refused_in_one_line_that_names_the_option(
    installed: Installed, closed: Path, bound: list[str], words: list[str], option: str
) -> None:
    done = ended([*bound, *installed.command(*words, *SMALL)], closed)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tcsweep: cannot write in ")
    assert option in done.stderr
    assert done.stderr.count("\n") == 1


def test_in_a_read_only_folder_the_named_options_take_results_and_store_elsewhere(
    installed: Installed, closed: Path, bound: list[str], tmp_path: Path
) -> None:
    words = [f"hydra.sweep.dir={tmp_path / 'x'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    done = _run([*bound, *installed.module("-m", *SMALL, *FAST, *words)], closed)
    assert f"Results: {tmp_path / 'x'}\n" in done.stdout
    assert f"python -m tcsweep ui {tmp_path}" in done.stdout
    assert (tmp_path / "mlflow.db").exists()
    assert list(closed.iterdir()) == []


def test_a_store_that_cannot_be_written_is_said_first_and_costs_no_result(
    installed: Installed, closed: Path, bound: list[str], tmp_path: Path
) -> None:
    done = _run([*bound, *installed.command(*SMALL, *FAST, f"hydra.run.dir={tmp_path / 'x'}")], closed)
    assert done.stderr.startswith(f"MLflow: cannot write MLflow's store {closed}/outputs/mlflow.db: ")
    assert "results go to the folder only" in done.stderr.splitlines()[0]
    assert (tmp_path / "x" / "summary.csv").exists()


def test_the_results_of_another_user_are_left_alone(installed: Installed, tmp_path: Path, bound: list[str]) -> None:
    theirs = tmp_path / "outputs" / "x"
    theirs.mkdir(parents=True)
    (theirs / "sweep.json").write_text("{}")
    for folder in (theirs, theirs.parent):
        folder.chmod(0o500)
    holds = f"tcsweep: {theirs} holds a sweep already"
    for words, said in (([], "tcsweep: cannot write in "), (["-m", "hydra.sweep.dir=outputs/x"], holds)):
        done = ended([*bound, *installed.command(*SMALL, *words)], tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(said)
    assert [(p.name, p.read_text()) for p in theirs.iterdir()] == [("sweep.json", "{}")]


def test_the_command_can_be_installed_for_work_on_the_sources(tmp_path: Path) -> None:
    if not _has("hatchling"):
        pytest.skip("no hatchling to build the wheel with")
    # `make install` builds this without isolation: the environment must hold all that the build wants.
    done = ended([sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable", "-d", str(tmp_path)], ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert (
        "tcsweep = tcsweep.__main__:main"
        in zipfile.ZipFile(wheel).read("tcsweep-0.1.0.dist-info/entry_points.txt").decode()
    )
