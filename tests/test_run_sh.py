"""run.sh: the docker command for each machine, shown by --dry-run; linted where the linters can be had."""

from __future__ import annotations

import ast
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_image import complaint, numbers

from . import boards

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def run_sh(cwd: Path, *argv: str, path: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """In a folder, with the programs of `path` before the system's, and no docker but one there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "TCSWEEP_", "SUDO_", "JUPYTER_"))}
    found = os.pathsep.join(filter(None, (str(path) if path else "", "/usr/bin", "/bin")))
    return subprocess.run(
        [str(ROOT / "run.sh"), *argv], cwd=cwd, env={**kept, "PATH": found, **env}, capture_output=True, text=True
    )


def words(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1])


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder


def pairs(command: list[str], flag: str) -> list[str]:
    return [value for name, value in itertools.pairwise(command) if name == flag]


def test_a_sweep_on_a_jetson_has_its_runtime_groups_and_files(tmp_path: Path) -> None:
    root = boards.board(tmp_path / "board", "agx_orin_r35")
    boards.write(root, {"run/jtop.sock": ""})
    done = run_sh(
        tmp_path, "--dry-run", "-m", "batch=1,8", TCSWEEP_BOARD_ROOT=str(root), SUDO_UID="1000", SUDO_GID="1001"
    )
    command = words(done)
    assert command[:2] == ["docker", "run"]
    assert pairs(command, "--runtime") == ["nvidia"]
    assert pairs(command, "--user") == ["1000:1001"]
    assert {"--rm", "--init", "--ipc=host"} <= set(command)
    assert pairs(command, "--network") == ["host"]  # one lock for all containers on the device
    assert pairs(command, "-v") == [
        f"{root}/etc/nv_tegra_release:/etc/nv_tegra_release:ro",
        f"{root}/etc/nvpmodel.conf:/etc/nvpmodel.conf:ro",
        f"{root}/var/lib/nvpmodel:/var/lib/nvpmodel:ro",
        f"{root}/run/jtop.sock:/run/jtop.sock",
        f"{tmp_path}/outputs/.board:/run/host/device-tree:ro",
        f"{tmp_path}/outputs:/home/tcsweep/outputs",
    ]
    assert command[-3:] == ["tcsweep", "-m", "batch=1,8"]
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_beside_an_nvidia_gpu_has_all_gpus_and_elsewhere_none(tmp_path: Path) -> None:
    bare = run_sh(tmp_path, "--dry-run", "doctor", TCSWEEP_BOARD_ROOT=str(tmp_path))
    if shutil.which("nvidia-smi", path="/usr/bin:/bin") is None:
        assert "--gpus" not in words(bare)
    gpu = program(tmp_path / "bin", "nvidia-smi", "exit 0")
    assert pairs(
        words(run_sh(tmp_path, "--dry-run", "doctor", path=gpu, TCSWEEP_BOARD_ROOT=str(tmp_path))), "--gpus"
    ) == ["all"]


@pytest.mark.parametrize(
    ("board", "base"),
    [("orin_nano_r36", "nvcr.io/nvidia/pytorch:24.12-py3-igpu"), ("thor_r38", "nvcr.io/nvidia/pytorch:25.08-py3")],
)
def test_build_takes_the_base_image_of_this_board(tmp_path: Path, board: str, base: str) -> None:
    root = boards.board(tmp_path / "board", board)
    command = words(run_sh(tmp_path, "--dry-run", "build", "--pull", TCSWEEP_BOARD_ROOT=str(root), SUDO_UID="1000"))
    assert command[:2] == ["docker", "build"]
    assert pairs(command, "--build-arg") == [f"BASE_IMAGE={base}", "UID=1000"]
    assert command[-2:] == ["--pull", str(ROOT)]


def test_build_on_x86_and_with_a_base_image_of_ones_own(tmp_path: Path) -> None:
    command = words(run_sh(tmp_path, "--dry-run", "build", TCSWEEP_BOARD_ROOT=str(tmp_path)))
    assert "BASE_IMAGE=nvcr.io/nvidia/pytorch:24.12-py3" in command
    root = boards.board(tmp_path / "board", "xavier_r35")
    command = words(
        run_sh(tmp_path, "--dry-run", "build", TCSWEEP_BOARD_ROOT=str(root), BASE_IMAGE="mine:1", IMAGE="other")
    )
    assert "BASE_IMAGE=mine:1" in command
    assert pairs(command, "-t") == ["other"]


def test_build_on_jetpack_5_asks_for_an_image_in_a_line(tmp_path: Path) -> None:
    root = boards.board(tmp_path / "board", "xavier_r35")
    done = run_sh(tmp_path, "--dry-run", "build", TCSWEEP_BOARD_ROOT=str(root))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "run.sh: no image is known for this Jetson's release with Python >= 3.10: "
        "set BASE_IMAGE, see docs/containers.md\n"
    )


def test_the_notebook_listens_at_loopback_with_a_token_that_no_argument_holds(tmp_path: Path) -> None:
    done = run_sh(tmp_path, "--dry-run", "notebook", TCSWEEP_BOARD_ROOT=str(tmp_path))
    address, other, command = done.stdout.splitlines()
    found = re.fullmatch(
        r"JupyterLab: http://127\.0\.0\.1:(\d+)/lab/tree/tcsweep\.ipynb\?token=([0-9a-f]{48})", address
    )
    assert found is not None, address
    port, token = found.groups()
    assert f"ssh -L {port}:127.0.0.1:{port} " in other
    assert token not in command
    assert {"JUPYTER_TOKEN", "--ip", "127.0.0.1"} <= set(shlex.split(command))
    assert f"{ROOT}/notebooks:/home/tcsweep/notebooks" in command


def test_the_notebook_takes_the_next_port_where_one_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_sh(tmp_path, "--dry-run", "notebook", TCSWEEP_BOARD_ROOT=str(tmp_path), PORT=str(port))
    assert f"http://127.0.0.1:{port}/" not in done.stdout
    assert "--port" in done.stdout


def test_a_login_goes_by_name_and_never_by_value(tmp_path: Path) -> None:
    done = run_sh(
        tmp_path, "--dry-run", "doctor", TCSWEEP_BOARD_ROOT=str(tmp_path),
        MLFLOW_TRACKING_URI="http://lab:5000", MLFLOW_TRACKING_PASSWORD="s3cret",
    )  # fmt: skip
    assert "s3cret" not in done.stdout
    assert {"MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"} <= set(pairs(words(done), "-e"))


@pytest.mark.parametrize(("version", "taken"), [("18.09.7", False), ("19.03.15", True), ("28.2.2", True), ("", True)])
def test_a_docker_that_is_too_old_is_refused_in_a_line(tmp_path: Path, version: str, taken: bool) -> None:
    folder = program(tmp_path / "bin", "docker", f'[ "$1" = version ] && echo "{version}" || echo "$@"')
    done = run_sh(tmp_path, "doctor", path=folder, TCSWEEP_BOARD_ROOT=str(tmp_path))
    if taken:
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("run --rm ")
        assert (tmp_path / "outputs").is_dir()
    else:
        assert (done.returncode, done.stderr) == (2, "run.sh: docker is 18.09.7, and 19.03 or newer is needed\n")


def test_on_a_jetson_the_device_tree_is_copied_to_where_the_container_finds_it(tmp_path: Path) -> None:
    root = boards.board(tmp_path / "board", "orin_nano_r36")
    folder = program(tmp_path / "bin", "docker", "exit 0")
    assert run_sh(tmp_path, "doctor", path=folder, TCSWEEP_BOARD_ROOT=str(root)).returncode == 0
    copied = (tmp_path / "outputs/.board/model").read_bytes()
    assert copied == (root / "proc/device-tree/model").read_bytes()


def test_help_says_every_command(tmp_path: Path) -> None:
    said = run_sh(tmp_path, "--help").stdout
    assert said == run_sh(tmp_path).stdout
    assert all(f"./run.sh {word}" in said for word in ("build", "notebook", "ui", "doctor", "--dry-run"))


# what the build refuses


@pytest.mark.parametrize(
    ("python", "torch", "said"),
    [
        ((3, 8), None, "error: this image's Python is 3.8, and tcsweep needs 3.10 or newer: "),
        ((3, 10), None, "error: this image has no torch: "),
        ((3, 10), "2.0.1+nv23.5", "error: this image's torch is 2.0.1+nv23.5, and tcsweep needs 2.1 or newer: "),
        ((3, 10), "2.1.0a0+41361538.nv23.06", None),
        ((3, 12), "2.11.0", None),
        ((3, 12), "10.0", None),
    ],
)
def test_an_image_is_refused_by_its_python_or_torch(
    python: tuple[int, int], torch: str | None, said: str | None
) -> None:
    found = complaint(python, torch)
    assert found == (said and said + "take another BASE_IMAGE, see docs/containers.md")


def test_the_refusal_can_be_said_by_every_python_3() -> None:
    ast.parse((ROOT / "scripts/check_image.py").read_text(), feature_version=(3, 4))
    assert numbers("2.11.0a0+nv") == (2, 11)


# linted


def linter(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(BIN), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"there is no {name} for this machine")
    return found


def test_the_dockerfile_is_clean_to_hadolint() -> None:
    done = subprocess.run([linter("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", ["run.sh", "tests/jetson/standin.sh"])
def test_the_scripts_are_clean_to_shellcheck(script: str) -> None:
    done = subprocess.run([linter("shellcheck"), str(ROOT / script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
