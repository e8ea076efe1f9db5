"""What is read from the machine: each reader with the text it would find there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tcsweep import devices
from tcsweep.devices import Resolved, cpu, cuda, jetson, probe
from tcsweep.job import Environment

EPYC = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9654 96-Core Processor
flags\t\t: fpu avx avx2 avx512f avx512_bf16 avx512_vnni
power management:

processor\t: 1
model name\t: another
"""
ORIN = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
Features\t: fp asimd evtstrm aes fphp asimdhp
CPU architecture: 8
"""


# cpu


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EPYC, ("AMD EPYC 9654 96-Core Processor", ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"))),
        (ORIN, ("ARMv8 Processor rev 1 (v8l)", ("asimd", "asimdhp", "fphp"))),
        ("Features\t: i8mm bf16\nModel\t\t: Raspberry Pi 5\n", ("Raspberry Pi 5", ("bf16", "i8mm"))),
        ("Hardware\t: a board\n", ("a board", ())),
        ("", (platform.machine(), ())),
    ],
    ids=["x86", "jetson", "model", "hardware", "unread"],
)
def test_the_processor_is_named_with_the_instructions_that_decide(text: str, expected: tuple[str, Any]) -> None:
    assert cpu.parse_cpuinfo(text) == {"cpu_model": expected[0], "cpu_features": expected[1]}


def test_an_empty_field_of_cpuinfo_is_no_value() -> None:
    text = "model name\t: \nstepping\t: 1\nflags\t\t: avx2\n"
    assert cpu.parse_cpuinfo(text) == {"cpu_model": platform.machine(), "cpu_features": ("avx2",)}


@pytest.mark.parametrize(
    ("text", "mib"),
    [("MemTotal:        7802360 kB\nMemFree:  1024 kB\n", 7619), ("SwapTotal: 1024 kB\n", None), ("", None)],
)
def test_memory_is_the_total_in_mib(text: str, mib: int | None) -> None:
    assert cpu.parse_meminfo(text) == mib


def test_the_facts_of_a_host_are_of_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name : a CPU\nflags : avx2\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\n")
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(tmp_path))
    assert cpu.facts() == {"cpu_model": "a CPU", "cpu_features": ("avx2",), "memory_mib": 2}


def test_a_file_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"model name : \xff\n")
    assert [cpu._read(str(tmp_path / name)) for name in ("absent", "cpuinfo")] == ["", "model name : \ufffd\n"]


# jetson

TAIL = "BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
VARIANT = "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
NANO_SUPER = f"# R36 (release), REVISION: 4.3, GCID: 38968081, {TAIL}{VARIANT}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"# R32 (release), REVISION: 4.3, GCID: 21589087, {TAIL}", {"l4t": "32.4.3", "jetpack": "4"}),
        (f"# R35 (release), REVISION: 3.1, GCID: 32790763, {TAIL}", {"l4t": "35.3.1", "jetpack": "5"}),
        (NANO_SUPER, {"l4t": "36.4.3", "jetpack": "6"}),
        (f"# R38 (release), REVISION: 2.2, GCID: 42205042, {TAIL}{VARIANT}", {"l4t": "38.2.2", "jetpack": "7"}),
        (f"# R99 (release), REVISION: 1.0, GCID: 1, {TAIL}", {"l4t": "99.1.0", "jetpack": None}),
        ("something else\n", {}),
        ("", {}),
    ],
)
def test_a_release_file_gives_jetson_linux_and_jetpack(text: str, expected: dict[str, str | None]) -> None:
    assert jetson.parse_release(text) == expected


ERRORS = (
    "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\nNVPM ERROR: failed to read PARAM EMC: 13\n"
)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN (0)"),
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER (2)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n2\n", "15W (2)"),
        (f"NV Power Mode: 5W\n1\n{ERRORS}", "5W (1)"),
        (f"{ERRORS}NV Power Mode: 5W\n1", "5W (1)"),
        ("NV Power Mode: my mode (10W)\n7\n", "my mode (10W) (7)"),
        ("NV Power Mode: 15W\n", "15W"),
        (f"NV Power Mode: 15W\n{ERRORS}", "15W"),
        ("NV Power Mode:\n", None),
        ("NVPM WARN: power mode is not set!\n", None),
        (ERRORS, None),
        ("", None),
    ],
)
def test_a_power_mode_is_its_name_and_number_as_printed(text: str, mode: str | None) -> None:
    assert jetson.parse_power_mode(text) == mode


def test_a_power_mode_is_found_in_verbose_output() -> None:
    text = "NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: 25W\n1\n"
    assert jetson.parse_power_mode(text) == "25W (1)"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a Jetson: its release file, and nothing but its own programs on the path."""
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(tmp_path))
    (tmp_path / "etc").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "etc/nv_tegra_release").write_text(NANO_SUPER)
    return tmp_path


# What the release file alone tells.
BARE = {
    "l4t": "36.4.3", "jetpack": "6", "shared_memory": True,
    **dict.fromkeys(("module", "soc", "clocks_locked", "cpu_mhz_max", "gpu_mhz_max", "emc_mhz_max")),
}  # fmt: skip


def nvpmodel(board: Path, script: str, mode: int = 0o755) -> None:
    (board / "nvpmodel").write_text(f"#!/bin/sh\n{script}\n")
    (board / "nvpmodel").chmod(mode)


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ('test "$*" = -q && echo "NV Power Mode: 15W" && echo 2', "15W (2)"),
        ('echo "NVPM ERROR: 13" >&2; echo "NV Power Mode: 5W"; echo 1; exit 255', "5W (1)"),
        ('echo "NVPM ERROR: 13"; exit 255', None),
        ("", None),
    ],
    ids=["plain", "status-255", "only-errors", "mute"],
)
def test_the_facts_of_a_jetson_have_its_mode_whatever_the_exit_status(
    board: Path, script: str, mode: str | None
) -> None:
    nvpmodel(board, script)
    assert jetson.facts() == {**BARE, "power_mode": mode}


def test_without_nvpmodel_the_mode_is_unknown(board: Path) -> None:
    assert jetson.facts() == {**BARE, "power_mode": None}


def test_an_nvpmodel_that_cannot_be_run_is_no_error(board: Path) -> None:
    nvpmodel(board, "echo 'NV Power Mode: 15W'", mode=0o644)
    assert jetson.facts()["power_mode"] is None


def test_an_nvpmodel_that_hangs_is_given_up(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, waits = jetson.subprocess.run, []

    def impatient(*arguments: Any, timeout: float, **options: Any) -> Any:
        waits.append(timeout)
        return run(*arguments, timeout=0.1, **options)

    nvpmodel(board, "while :; do :; done")
    monkeypatch.setattr(jetson.subprocess, "run", impatient)
    assert (jetson.facts()["power_mode"], waits) == (None, [5])


def test_bytes_that_are_no_text_do_not_stop_the_probe(board: Path) -> None:
    nvpmodel(board, r"printf 'NV Power Mode: 15W \377\n2\n'")
    assert jetson.facts()["power_mode"] == "15W \ufffd (2)"


def test_off_a_jetson_every_fact_is_absent(board: Path) -> None:
    (board / "etc/nv_tegra_release").unlink()
    nvpmodel(board, "echo 'NV Power Mode: 15W'")
    assert jetson.facts() == {}


# cuda


@pytest.mark.parametrize(
    ("number", "version"),
    [(7605, "7.6.5"), (8005, "8.0.5"), (8902, "8.9.2"), (90100, "9.1.0"), (90701, "9.7.1"), (92400, "9.24.0")],
)
def test_cudnns_number_is_a_version(number: int, version: str) -> None:
    assert cuda.cudnn_version(number) == version


class FakeNvml(types.ModuleType):
    """NVML that initialises and gives `answer`, or raises it."""

    def __init__(self, answer: Any) -> None:
        super().__init__("pynvml")
        self.answer = answer

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's name

    def nvmlSystemGetDriverVersion(self) -> Any:  # noqa: N802 - NVML's name
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (buildbrain@mobile-u64)\n"
    "GCC version:  collect2: error: ld returned 1 exit status\n"
)


@pytest.mark.parametrize(
    ("nvml", "module", "version"),
    [
        ("570.86.15", CLOSED, "570.86.15"),
        (b"535.54.03", None, "535.54.03"),
        (RuntimeError("Not Supported"), CLOSED, "535.129.03"),
        (RuntimeError("Driver/library version mismatch"), OPEN, "540.4.0"),
        (None, OPEN, "540.4.0"),
        (None, "no version here\n", None),
        (None, None, None),
    ],
    ids=["text", "bytes", "mute", "mismatch", "absent", "unread", "nothing"],
)
def test_the_driver_is_told_by_nvml_or_else_by_its_kernel_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: Any, module: str | None, version: str | None
) -> None:
    # None in sys.modules makes an import fail
    monkeypatch.setitem(sys.modules, "pynvml", None if nvml is None else FakeNvml(nvml))
    paths = {"/proc/driver/nvidia/version": tmp_path / "version"}
    monkeypatch.setattr(cuda, "Path", paths.__getitem__)
    if module is not None:
        (tmp_path / "version").write_text(module)
    assert cuda.driver() == version


@pytest.mark.parametrize(
    ("uuid", "gpu_uuid"), [("3f5e", "GPU-3f5e"), ("GPU-3f5e", "GPU-3f5e"), (None, None)], ids=["bare", "full", "old"]
)
def test_the_facts_of_a_gpu_are_torchs(monkeypatch: pytest.MonkeyPatch, uuid: str | None, gpu_uuid: str | None) -> None:
    properties = types.SimpleNamespace(
        name="Orin", major=8, minor=7, multi_processor_count=8, total_memory=7619 * 2**20
    )
    if uuid is not None:
        properties.uuid = uuid
    monkeypatch.setattr(torch.cuda, "get_device_properties", {3: properties}.__getitem__)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90300)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(cuda, "driver", lambda: "540.4.0")
    assert cuda.facts(3) == {
        "device_name": "Orin",
        "gpu_uuid": gpu_uuid,
        "compute_capability": "8.7",
        "sm_count": 8,
        "device_memory_mib": 7619,
        "driver": "540.4.0",
        "cuda": "12.6",
        "cudnn": "9.3.0",
    }


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch see so many GPUs, or say `warning` and see none; kernels fail with `error`."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    def make(count: int, warning: str | None = None, error: str | None = None) -> None:
        def available() -> bool:
            if warning is not None:
                warnings.warn(warning, stacklevel=2)
            return count > 0

        def zeros(*_: Any, device: str) -> torch.Tensor:
            if error is not None:
                raise RuntimeError(error)
            assert device == f"cuda:{count - 1}"
            return torch.ones(1)

        monkeypatch.setattr(torch.cuda, "is_available", available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch, "zeros", zeros)

    return make


def test_a_gpu_on_which_a_kernel_runs_is_usable(gpus: Any) -> None:
    gpus(2)
    assert cuda.unusable(1) is None


def test_a_torch_without_cuda_is_said_first(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(1)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.unusable(0) == f"torch {torch.__version__} is built without CUDA"


@pytest.mark.parametrize("visible", [None, "", "7"])
@pytest.mark.parametrize(
    ("made", "index", "reason"),
    [
        ({"count": 0}, 0, "no CUDA device is visible"),
        ({"count": 0, "warning": "something else"}, 0, "no CUDA device is visible"),
        (
            {"count": 0, "warning": "\nCUDA initialization: The NVIDIA driver is too old\nmore"},
            0,
            "CUDA initialization: The NVIDIA driver is too old",
        ),
        ({"count": 2}, 2, "cuda:2 does not exist: 2 visible, cuda:0 to cuda:1"),
        (
            {"count": 1, "error": "CUDA error: no kernel image is available\nmore"},
            0,
            "cuda:0 is visible but no kernel runs on it: CUDA error: no kernel image is available",
        ),
    ],
    ids=["none", "other-warning", "old-driver", "index", "no-kernel"],
)
def test_a_gpu_that_cannot_be_used_has_its_reason_and_the_variable_that_hides_gpus(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, made: Any, index: int, reason: str, visible: str | None
) -> None:
    gpus(**made)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible!r})"
    assert cuda.unusable(index) == reason + hint


# probe


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU, cuda:0; environments have nothing but the device."""
    monkeypatch.setattr(cuda, "unusable", lambda index: None if index == 0 else f"cuda:{index} does not exist")
    monkeypatch.setattr(devices, "_environment", lambda device: Environment(device=device))


@pytest.mark.usefixtures("machine")
def test_each_device_asked_for_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, host, resolved, resolve = Environment(device="cuda:0"), Environment(device="cpu"), [], devices._resolve
    monkeypatch.setattr(devices, "_resolve", lambda asked: (resolved.append(asked), resolve(asked))[1])
    assert probe(("auto", "cuda", "cuda:0", "cuda:1", "cpu", "auto"), None) == {
        "auto": Resolved("auto", gpu),
        "cuda": Resolved("cuda", gpu),
        "cuda:0": Resolved("cuda:0", gpu),
        "cuda:1": Resolved("cuda:1", None, "cuda:1 does not exist"),
        "cpu": Resolved("cpu", host),
    }
    assert resolved == ["auto", "cuda", "cuda:0", "cuda:1", "cpu"]


@pytest.mark.usefixtures("machine")
def test_the_automatic_choice_falls_on_the_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "unusable", lambda index: "no CUDA device is visible")
    assert probe(("auto", "cuda"), None) == {
        "auto": Resolved("auto", Environment(device="cpu"), "no usable GPU: no CUDA device is visible"),
        "cuda": Resolved("cuda", None, "no CUDA device is visible"),
    }


@pytest.mark.usefixtures("machine")
def test_a_cpu_is_resolved_without_asking_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "unusable", pytest.fail)
    assert probe(("cpu",), None) == {"cpu": Resolved("cpu", Environment(device="cpu"))}


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that find a small machine."""
    monkeypatch.setattr(cpu, "facts", lambda: {"cpu_model": "a CPU", "cpu_features": ("avx2",), "memory_mib": 2048})
    monkeypatch.setattr(jetson, "facts", lambda: {"l4t": "36.4.3", "jetpack": "6", "power_mode": "15W (2)"})
    monkeypatch.setattr(cuda, "facts", lambda index: {"device_name": f"GPU {index}", "compute_capability": "8.7"})
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)


def expected(device: str, **fields: Any) -> Environment:
    import torchvision

    apex = devices.find_apex()
    return Environment(
        device=device,
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        apex=apex.state,
        apex_version=apex.version,
        apex_build=apex.build,
        python=platform.python_version(),
        host=os.uname().nodename,
        os=platform.platform(),
        cpu_model="a CPU",
        cpu_features=("avx2",),
        cpu_threads=torch.get_num_threads(),
        memory_mib=2048,
        l4t="36.4.3",
        jetpack="6",
        power_mode="15W (2)",
        tcsweep=devices.__version__,
        git_commit=devices.git_commit(Path(devices.__file__).parent),
        **fields,
    )


@pytest.mark.usefixtures("readers")
def test_a_cpus_environment_is_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "facts", pytest.fail)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")  # says nothing of a CPU
    assert devices._environment("cpu") == expected("cpu", device_name="a CPU")


@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize(("blocking", "notes"), [("0", ()), ("1", ("CUDA_LAUNCH_BLOCKING=1 makes every launch wait",))])
def test_a_gpus_environment_is_of_the_host_and_the_gpu(
    monkeypatch: pytest.MonkeyPatch, blocking: str, notes: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", blocking)
    gpu = {"device_name": "GPU 1", "compute_capability": "8.7"}
    assert devices._environment("cuda:1") == expected("cuda:1", notes=notes, **gpu)


def test_every_fact_read_here_is_a_field_of_the_environment() -> None:
    found = probe(("cpu",), None)["cpu"].environment
    assert found is not None
    assert (found.device, found.device_name) == ("cpu", found.cpu_model)
    assert (found.memory_mib or 0) > 0


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_the_package_is_in(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    assert devices.git_commit(tmp_path / "package") is None  # not of this checkout: not tracked
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    assert devices.git_commit(tmp_path / "package") == git(tmp_path, "rev-parse", "HEAD")


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert devices.git_commit(tmp_path) is None
