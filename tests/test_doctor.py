"""`doctor`: made-up facts judged, files of made-up machines read, and the real command run on this one."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import textwrap
import time
import types
import uuid
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tcsweep import doctor, doctor_facts, doctor_rows
from tcsweep.devices.apex import ApexFacts
from tcsweep.devices.board import Board
from tcsweep.doctor_facts import (
    Clock,
    DeviceFacts,
    Facts,
    Folder,
    Gpu,
    Imports,
    Lock,
    Nvml,
    NvmlGpu,
    Package,
    Share,
    Store,
    TorchFacts,
    User,
    bounded,
)
from tcsweep.doctor_rows import Row, rows
from tcsweep.report.doctor import render
from tcsweep.worker import Broken, Server

ROOT = Path(__file__).resolve().parent.parent
TORCH = TorchFacts("2.11.0+cu130", "13.0", "9.19.0", 16, "0.26.0+cu130")
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 81559, "GPU-3f5e")
ORIN = {"l4t": "36.4.3", "jetpack": "6", "power_mode": "15W (2)"}
IGPU = "docker build -t tcsweep --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:24.12-py3-igpu ."
NO_IMAGE = "CUDA error: no kernel image is available"
NO_KERNEL = f"cuda:0 is visible but no kernel runs on it: {NO_IMAGE}"
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_110", "sm_120", "compute_120")
CU118 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


# software


@pytest.mark.parametrize(
    ("found", "row"),
    [
        ((3, 9), Row("Python", "fail", "3.9: 3.10 or newer is needed", "python3.10 -m venv .venv")),
        ((3, 10), Row("Python", "ok", "3.10")),
        ((3, 13), Row("Python", "ok", "3.13")),
        ((3, 14), Row("Python", "warn", "3.14: not tried, 3.13 is", "python3.13 -m venv .venv")),
    ],
)
def test_python_is_judged_by_the_versions_that_work_and_were_tried(found: tuple[int, int], row: Row) -> None:
    assert doctor_rows.python(found) == row


HYDRA = "'hydra-core>=1.3.2,<1.4'"


@pytest.mark.parametrize(
    ("name", "found", "row"),
    [
        ("hydra-core", Package("1.3.2"), Row("hydra-core", "ok", "1.3.2")),
        (
            "hydra-core",
            Package("1.1.0"),
            Row("hydra-core", "fail", "1.1.0: hydra-core>=1.3.2,<1.4 is needed", f"pip install {HYDRA}"),
        ),
        (
            "hydra-core",
            Package(None, "ModuleNotFoundError: No module named 'hydra.core'", "2.5"),
            Row(
                "hydra-core",
                "fail",
                "another project's `hydra` 2.5 is installed, not hydra-core",
                f"pip uninstall -y hydra && pip install --force-reinstall {HYDRA}",
            ),
        ),
        (
            "hydra-core",
            Package("1.3.8", None, "2.5"),
            Row(
                "hydra-core",
                "warn",
                "1.3.8, and another project's `hydra` 2.5 beside it",
                f"pip uninstall -y hydra && pip install --force-reinstall {HYDRA}",
            ),
        ),
        (
            "omegaconf",
            Package("2.3.1", "ImportError: no antlr4"),
            Row(
                "omegaconf",
                "fail",
                "2.3.1 cannot be imported: ImportError: no antlr4",
                "pip install --force-reinstall 'omegaconf>=2.3,<2.4'",
            ),
        ),
        (
            "mlflow",
            Package(None, "ModuleNotFoundError: No module named 'mlflow'"),
            Row("mlflow", "warn", "not installed", "pip install 'mlflow>=3.1,<4'"),
        ),
        (
            "mlflow",
            Package("2.17.2"),
            Row("mlflow", "warn", "2.17.2: mlflow>=3.1,<4 is needed", "pip install 'mlflow>=3.1,<4'"),
        ),
    ],
)
def test_a_package_is_missing_broken_of_another_project_or_of_a_wrong_version(
    name: str, found: Package, row: Row
) -> None:
    assert doctor_rows.package(name, found) == row


def test_the_versions_asked_for_are_those_of_the_project_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, (least, before) in doctor_rows.NEEDED.items():
        least_text, before_text = (".".join(map(str, v)) for v in (least, before))
        assert f'"{name}>={least_text},<{before_text}"' in text
    assert f'"torch>={".".join(map(str, doctor_rows.TORCH_LEAST))}"' in text


CURAND = "OSError: libcurand.so.10: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("found", "reason", "board", "row"),
    [
        (TORCH, None, {}, Row("torch", "ok", "2.11.0+cu130, built for CUDA 13.0")),
        (TorchFacts("2.14.1+cpu", None, None, 2, None), None, {}, Row("torch", "ok", "2.14.1+cpu, built without CUDA")),
        (
            TorchFacts("1.13.0", "11.7", None, 2, None),
            None,
            {},
            Row("torch", "fail", "1.13.0: 2.1 or newer is needed", "pip install --upgrade torch torchvision"),
        ),
        (
            None,
            CURAND,
            {},
            Row(
                "torch",
                "fail",
                f"{CURAND}; it was built for another JetPack or CUDA",
                "pip install --force-reinstall torch torchvision",
            ),
        ),
        (None, CURAND, ORIN, Row("torch", "fail", f"{CURAND}; it was built for another JetPack or CUDA", IGPU)),
        (
            None,
            "ModuleNotFoundError: No module named 'torch'",
            {},
            Row("torch", "fail", "ModuleNotFoundError: No module named 'torch'", "pip install torch torchvision"),
        ),
        (
            None,
            "worker killed by SIGILL",
            {"l4t": "35.3.1", "jetpack": "5"},
            Row(
                "torch",
                "fail",
                "worker killed by SIGILL",
                "update to JetPack 6: this one's images have no Python 3.10; for the CPU: "
                "pip install torch torchvision",
            ),
        ),
    ],
)
def test_a_torch_that_cannot_be_imported_says_why_and_what_to_take_instead(
    found: TorchFacts | None, reason: str | None, board: dict[str, str | None], row: Row
) -> None:
    assert doctor_rows.torch(found, reason, board) == row


@pytest.mark.parametrize(
    ("torch", "vision", "error", "status", "said"),
    [
        ("2.1.0", "0.16.0", None, "ok", "0.16.0"),
        ("2.14.1+cu130", "0.29.1+cu130", None, "ok", "0.29.1+cu130"),
        ("2.9.1", "0.23.0", None, "warn", "0.23.0, of another release than torch 2.9.1 (0.24 is its pair)"),
        ("2.6.0a0+df5bbc09d1.nv24.12", "0.20.0a0", None, "ok", "0.20.0a0"),
        ("2.9.1", None, "ImportError: no torchvision", "fail", "none: ImportError: no torchvision"),
        ("3.0.0", "1.0.0", None, "ok", "1.0.0"),
    ],
)
def test_torchvision_is_of_the_release_of_torch_where_both_are_releases(
    torch: str, vision: str | None, error: str | None, status: str, said: str
) -> None:
    row = doctor_rows.torchvision(TorchFacts(torch, None, None, 1, vision, error), {})
    assert (row.status, row.found) == (status, said)
    mend = f"pip install torch=={torch} torchvision==0.24.*"
    assert row.mend == ("" if status == "ok" else mend)


@pytest.mark.parametrize(
    ("found", "status", "said", "mend"),
    [
        (ApexFacts("none"), "ok", "none: the torch-native twin is used for o0-o3", ""),
        (
            ApexFacts("not-nvidia", "0.9.10"),
            "warn",
            "another project's apex 0.9.10: the torch-native twin is used for o0-o3",
            "pip uninstall -y apex",
        ),
        (
            ApexFacts("without-amp", "0.1", "full"),
            "ok",
            "NVIDIA's 0.1 (full) without amp: the torch-native twin is used for o0-o3",
            "",
        ),
        (ApexFacts("amp", "0.1", "python-only"), "ok", "NVIDIA's 0.1 (python-only) with amp", ""),
    ],
)
def test_each_apex_is_named_and_only_the_namesake_is_a_warning(
    found: ApexFacts, status: str, said: str, mend: str
) -> None:
    assert doctor_rows.apex(found) == Row("apex", status, said, mend)  # type: ignore[arg-type]


# devices


@pytest.mark.parametrize(
    ("capability", "archs", "by"),
    [
        ((9, 0), CU130, "sm_90"),
        ((8, 9), CU130, "sm_86"),
        ((7, 5), CU130, "sm_75"),
        ((7, 0), CU130, None),
        ((7, 2), ("sm_72", "sm_87"), "sm_72"),
        ((7, 2), ("sm_75", "sm_87"), None),
        ((12, 1), CU130, "sm_120"),
        ((11, 0), CU130, "sm_110"),
        ((12, 0), CU118, None),
        ((12, 0), (*CU118, "compute_90"), "compute_90"),
        ((8, 0), ("sm_86", "compute_90"), None),
        ((8, 9), ("sm_80", "compute_86"), "sm_80"),
        ((9, 0), ("sm_90a",), "sm_90a"),
        ((10, 3), ("sm_100a",), None),
        ((10, 3), ("sm_100f",), "sm_100f"),
        ((12, 0), ("compute_90a",), None),
        ((12, 0), ("compute_100f",), None),
        ((9, 0), ("gfx90a", ""), None),
    ],
)
def test_machine_code_serves_its_major_version_and_ptx_every_later_gpu(
    capability: tuple[int, int], archs: tuple[str, ...], by: str | None
) -> None:
    assert doctor_rows.built_for(capability, archs) == by


def test_ptx_is_only_taken_where_no_machine_code_fits() -> None:
    assert doctor_rows.built_for((9, 0), ("sm_80", "sm_90", "compute_80", "compute_90")) == "sm_90"


def gpu(name: str, capability: tuple[int, int], error: str | None = None) -> Gpu:
    return Gpu(0, name, capability, error=error)


@pytest.mark.parametrize(
    ("found", "archs", "board", "row"),
    [
        (H100, CU130, {}, Row("kernels", "ok", "run on sm_90, built for sm_90")),
        (
            gpu("NVIDIA GeForce RTX 5090", (12, 0)),
            ("sm_90", "compute_90"),
            {},
            Row("kernels", "ok", "run on sm_120, built for compute_90, compiled by the driver at first use"),
        ),
        (gpu("Orin", (8, 7)), ("sm_80",), ORIN, Row("kernels", "ok", "run on sm_87")),
        (
            gpu("Orin", (8, 7), NO_KERNEL),
            ("sm_80", "sm_90"),
            ORIN,
            Row("kernels", "fail", f"none runs on sm_87: {NO_IMAGE}; this torch was built for sm_80, sm_90", IGPU),
        ),
        (
            gpu("Xavier", (7, 2), NO_KERNEL),
            ("sm_87",),
            {"l4t": "35.3.1", "jetpack": "5"},
            Row(
                "kernels",
                "fail",
                f"none runs on sm_72: {NO_IMAGE}; this torch was built for sm_87",
                "update to JetPack 6: this one's images have no Python 3.10; for the CPU: "
                "pip install torch torchvision",
            ),
        ),
        (
            gpu("NVIDIA Thor", (11, 0), NO_KERNEL),
            (),
            {"l4t": "38.2.2", "jetpack": "7"},
            Row(
                "kernels",
                "fail",
                f"none runs on sm_110: {NO_IMAGE}",
                "docker build -t tcsweep --build-arg BASE_IMAGE=nvcr.io/nvidia/pytorch:25.08-py3 .",
            ),
        ),
        (
            gpu("Tesla V100", (7, 0), NO_KERNEL),
            ("sm_75", "sm_90"),
            {},
            Row(
                "kernels",
                "fail",
                f"none runs on sm_70: {NO_IMAGE}; this torch was built for sm_75, sm_90",
                "pip install 'torch<2.8' 'torchvision<0.23'",
            ),
        ),
        (
            gpu("NVIDIA B200", (10, 0), NO_KERNEL),
            ("sm_90",),
            {},
            Row(
                "kernels",
                "fail",
                f"none runs on sm_100: {NO_IMAGE}; this torch was built for sm_90",
                "pip install --upgrade torch torchvision",
            ),
        ),
        (
            gpu("NVIDIA H100", (9, 0), "CUDA-capable device(s) is/are busy"),
            CU130,
            {},
            Row(
                "kernels",
                "fail",
                "none runs on sm_90: CUDA-capable device(s) is/are busy; this torch was built for sm_90",
                "nvidia-smi",
            ),
        ),
    ],
    ids=["h100", "jit", "orin", "orin-desktop-torch", "xavier", "thor", "v100", "b200", "busy"],
)
def test_a_kernel_that_ran_is_the_proof_and_the_list_says_what_to_take(
    found: Gpu, archs: tuple[str, ...], board: dict[str, str | None], row: Row
) -> None:
    assert doctor_rows.kernels(found, archs, board) == row


@pytest.mark.parametrize(
    ("name", "capability", "dtypes"),
    [
        ("NVIDIA Tegra X1", (5, 3), None),
        ("Tesla V100-SXM2-16GB", (7, 0), "fp16 (sm_70)"),
        ("Xavier", (7, 2), "fp16, int8 (sm_72)"),
        ("Tesla T4", (7, 5), "fp16, int8 (sm_75)"),
        ("NVIDIA GeForce GTX 1650", (7, 5), None),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), None),
        ("NVIDIA T1000 8GB", (7, 5), None),
        ("Quadro RTX 4000", (7, 5), "fp16, int8 (sm_75)"),
        ("Orin", (8, 7), "fp16, int8, bf16, tf32 (sm_87)"),
        ("NVIDIA L4", (8, 9), "fp16, int8, bf16, tf32, fp8 (sm_89)"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "fp16, int8, bf16, tf32, fp8 (sm_90)"),
        ("NVIDIA Thor", (11, 0), "fp16, int8, bf16, tf32, fp8 (sm_110)"),
    ],
)
def test_tensor_cores_are_told_by_compute_capability_and_for_turing_by_name(
    name: str, capability: tuple[int, int], dtypes: str | None
) -> None:
    row = doctor_rows.tensor_cores(name, capability)
    assert (row.status, row.found) == (
        ("ok", dtypes)
        if dtypes
        else ("warn", f"none (sm_{capability[0]}{capability[1]}): half precision saves memory traffic at most")
    )


def test_gpus_that_are_alike_are_judged_once_and_others_by_their_number() -> None:
    two = (H100, Gpu(1, H100.name, (9, 0)))
    assert [r.what for r in doctor_rows.gpus(DeviceFacts(two, CU130), {})] == ["kernels", "tensor cores"]
    three = (*two, Gpu(2, "NVIDIA T400", (7, 5)))
    assert [r.what for r in doctor_rows.gpus(DeviceFacts(three, CU130), {})] == [
        "kernels cuda:0",
        "tensor cores cuda:0",
        "kernels cuda:2",
        "tensor cores cuda:2",
    ]


NONE_VISIBLE = DeviceFacts(reason="no CUDA device is visible")
WITH_H100 = Nvml("580.159.04", "13.0", (NvmlGpu("NVIDIA H100", "GPU-3f5e", (), 0.0),))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(device=DeviceFacts((H100,))), [Row("device", "ok", "NVIDIA H100 80GB HBM3, 80 GiB")]),
        (
            Facts(device=DeviceFacts((H100, H100))),
            [Row("device", "ok", "NVIDIA H100 80GB HBM3, 80 GiB; 1 more")],
        ),
        (
            Facts(device=NONE_VISIBLE),
            [
                Row(
                    "device",
                    "warn",
                    "no CUDA device is visible: a sweep takes the CPU",
                    "docker run --gpus all, in a container; else nvidia-smi",
                )
            ],
        ),
        (
            Facts(device=NONE_VISIBLE, nvml=WITH_H100, torch=TORCH),
            [
                Row(
                    "device",
                    "fail",
                    "NVIDIA H100 is there, but no CUDA device is visible: a sweep takes the CPU",
                    "nvidia-smi",
                )
            ],
        ),
        (
            Facts(device=NONE_VISIBLE, nvml=WITH_H100, variables={"CUDA_VISIBLE_DEVICES": ""}),
            [
                Row(
                    "device",
                    "warn",
                    "no CUDA device is visible: a sweep takes the CPU",
                    "unset CUDA_VISIBLE_DEVICES",
                )
            ],
        ),
        (
            Facts(device=DeviceFacts(reason="torch 2.14.1 is built without CUDA"), jetson=Board(ORIN)),
            [
                Row(
                    "device",
                    "fail",
                    "the GPU of this board (L4T 36.4.3) is there, but torch 2.14.1 is built without CUDA: "
                    "a sweep takes the CPU",
                    IGPU,
                )
            ],
        ),
        (
            Facts(nvml=WITH_H100, unknown={"torch": CURAND}),
            [Row("device", "warn", "NVIDIA H100: not tried without torch")],
        ),
        (Facts(unknown={"torch": CURAND}), []),
        (
            Facts(nvml=WITH_H100, unknown={"device": "worker killed by SIGSEGV"}),
            [Row("device", "fail", "worker killed by SIGSEGV", "nvidia-smi")],
        ),
    ],
    ids=["gpu", "two", "cpu", "hidden", "hidden-on-purpose", "cpu-torch-on-orin", "no-torch", "nothing", "killed"],
)
def test_a_gpu_that_is_there_and_cannot_be_used_fails_and_a_machine_without_one_is_warned(
    facts: Facts, expected: list[Row]
) -> None:
    assert doctor_rows.device(facts.device, facts.unknown.get("device"), facts.nvml, facts) == expected


def test_a_gpus_facts_are_plain_data_with_what_its_kernels_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Text(str):
        """As torch's version is: a class of its own."""

    properties = types.SimpleNamespace(
        name=Text("Orin"), major=8, minor=7, total_memory=7 * 2**30, uuid=Text("f00"), multi_processor_count=8
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [Text("sm_87")])
    monkeypatch.setattr(doctor_facts.cuda, "unusable", lambda index: NO_KERNEL if index == 0 else None)
    monkeypatch.setattr(doctor_facts, "_convolution", lambda device: f"no cuDNN on {device}")
    found = doctor_facts.look_at_device(None, None)
    assert found == DeviceFacts(
        (
            Gpu(0, "Orin", (8, 7), 7168, "GPU-f00", NO_KERNEL),
            Gpu(1, "Orin", (8, 7), 7168, "GPU-f00", "no cuDNN on cuda:1"),
        ),
        ("sm_87",),
    )
    assert {type(text) for text in (found.gpus[0].name, found.gpus[0].uuid, *found.archs)} == {str}


def test_a_convolution_runs_on_this_cpu_and_an_absent_device_says_so() -> None:
    assert doctor_facts._convolution("cpu") is None
    assert doctor_facts._convolution("cuda:99")


@pytest.mark.parametrize(
    ("nvml", "device", "expected"),
    [
        (Nvml(), None, []),
        (Nvml("580.1", "13.0"), None, [Row("driver", "ok", "580.1, serves CUDA up to 13.0")]),
        (Nvml("540.4.0"), None, [Row("driver", "ok", "540.4.0")]),
        (Nvml("535.1", "12.2"), DeviceFacts((H100,)), [Row("driver", "ok", "535.1, serves CUDA up to 12.2")]),
        (
            Nvml("535.1", "12.2"),
            NONE_VISIBLE,
            [
                Row(
                    "driver",
                    "fail",
                    "535.1, serves CUDA up to 12.2: torch wants 13.0",
                    "update the driver, or take a torch that was built for CUDA 12",
                )
            ],
        ),
    ],
)
def test_a_driver_is_too_old_where_its_cuda_is_and_nothing_ran(
    nvml: Nvml, device: DeviceFacts | None, expected: list[Row]
) -> None:
    assert doctor_rows.driver(nvml, "13.0", device) == expected


def test_libraries_are_shown_where_there_is_a_gpu_and_a_missing_cudnn_is_a_warning() -> None:
    there = DeviceFacts((H100,))
    assert doctor_rows.libraries(TORCH, there) == [Row("CUDA", "ok", "13.0"), Row("cuDNN", "ok", "9.19.0")]
    assert doctor_rows.libraries(TORCH, NONE_VISIBLE) == []
    without = TorchFacts("2.11.0", "13.0", None, 1, None)
    assert [r.status for r in doctor_rows.libraries(without, there)] == ["ok", "warn"]


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [
        (Nvml("540.4.0"), None),
        (Nvml(gpus=(NvmlGpu("Orin"),)), None),
        (WITH_H100, ("ok", "none")),
        (
            Nvml(gpus=(NvmlGpu("a", "GPU-3f5e", (User(7, "python"), User(8)), 90.0),)),
            ("warn", "process 7 (python), 8"),
        ),
        (Nvml(gpus=(NvmlGpu("a", "GPU-other", (User(7),), 90.0), WITH_H100.gpus[0])), ("ok", "none")),
        (Nvml(gpus=(NvmlGpu("a", "GPU-3f5e", (), 37.0),)), ("warn", "none visible from here, yet a load of 37%")),
        (Nvml(gpus=(NvmlGpu(load_percent=62.0),)), ("warn", "none visible from here, yet a load of 62%")),
        (Nvml(gpus=(NvmlGpu("a", None, None, 4.9),)), ("ok", "none")),
    ],
    ids=["no-gpus", "mute", "idle", "used", "another-gpu", "hidden", "jetson", "little"],
)
def test_others_on_the_gpu_are_processes_or_where_none_is_visible_a_load(
    nvml: Nvml, expected: tuple[str, str] | None
) -> None:
    made = doctor_rows.users(nvml, DeviceFacts((H100,)))
    assert [(row.status, row.found) for row in made] == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("features", "device", "status", "said"),
    [
        (("avx512f", "avx512_bf16", "amx_bf16"), NONE_VISIBLE, "ok", "a CPU, amx_bf16, avx512_bf16"),
        (("avx2",), NONE_VISIBLE, "warn", "a CPU, no bfloat16 unit: o1-o3 gain little"),
        (("avx2",), DeviceFacts((H100,)), "ok", "a CPU, no bfloat16 unit"),
        (("bf16",), DeviceFacts(cpu_error="illegal"), "fail", "a CPU: no kernel runs: illegal"),
    ],
)
def test_a_cpu_without_bfloat16_is_a_warning_where_a_sweep_takes_it(
    features: tuple[str, ...], device: DeviceFacts, status: str, said: str
) -> None:
    row = doctor_rows.cpu({"cpu_model": "a CPU", "cpu_features": features}, device)
    assert (row.status, row.found) == (status, said)


# surroundings


@pytest.mark.parametrize(
    ("share", "threads", "omp", "row"),
    [
        (Share(2), 2, None, Row("threads", "ok", "2 on 2 CPUs, no quota")),
        (Share(1), None, None, Row("threads", "ok", "1 CPU, no quota")),
        (Share(64, 4.0), 4, "4", Row("threads", "ok", "4 on 64 CPUs, a quota of 4")),
        (Share(64, 2.5), 3, None, Row("threads", "ok", "3 on 64 CPUs, a quota of 2.5")),
        (
            Share(64, 2.5),
            32,
            None,
            Row(
                "threads",
                "warn",
                "32 on 64 CPUs, a quota of 2.5: they will wait for each other",
                "export OMP_NUM_THREADS=2",
            ),
        ),
        (
            Share(2),
            16,
            "16",
            Row("threads", "warn", "16 on 2 CPUs, no quota: they will wait for each other", "export OMP_NUM_THREADS=2"),
        ),
        (
            Share(8),
            1,
            "1",
            Row(
                "threads",
                "warn",
                "1 on 8 CPUs, no quota: OMP_NUM_THREADS=1 holds the CPU back",
                "unset OMP_NUM_THREADS",
            ),
        ),
        (Share(16), 8, None, Row("threads", "ok", "8 on 16 CPUs, no quota")),  # torch's own choice: no hyper-threads
    ],
)
def test_threads_are_held_against_affinity_and_quota(
    share: Share, threads: int | None, omp: str | None, row: Row
) -> None:
    assert doctor_rows.share(share, threads, omp) == row


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/docker/1f\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:memory:/\n", {"cpu/cpu.cfs_quota_us": "1000\n", "cpu/cpu.cfs_period_us": "1000\n"}, None),
        ("", {}, None),
    ],
    ids=["v2", "v2-max", "v2-parent", "v2-tightest", "v1-container", "v1-none", "v1-other", "nothing"],
)
def test_the_tightest_quota_of_either_version_of_control_groups_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in {f"sys/fs/cgroup/{name}": text for name, text in files.items()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert doctor_facts.quota(tmp_path, cgroup) == cpus


@pytest.mark.parametrize(
    ("now", "newest", "status"),
    [
        (0.0, 0.0, "fail"),
        (doctor_rows.RELEASED - 1, 0.0, "fail"),
        (doctor_rows.RELEASED, 0.0, "ok"),
        (doctor_rows.RELEASED, doctor_rows.RELEASED + 7200, "ok"),
        (doctor_rows.RELEASED, doctor_rows.RELEASED + 90_000, "warn"),
    ],
)
def test_a_clock_behind_the_release_fails_and_one_behind_the_installation_is_a_warning(
    now: float, newest: float, status: str
) -> None:
    row = doctor_rows.clock(Clock(now, newest))
    assert (row.status, "sudo timedatectl set-ntp true" in row.mend) == (status, status != "ok")


def test_variables_that_change_arithmetic_or_timing_are_named_with_the_command_that_unsets_them() -> None:
    assert doctor_rows.environment({"OMP_NUM_THREADS": "1", "CUDA_LAUNCH_BLOCKING": "0"}).status == "ok"
    assert doctor_rows.environment({"NVIDIA_TF32_OVERRIDE": "0"}) == Row(
        "environment",
        "warn",
        "NVIDIA_TF32_OVERRIDE=0: a sweep takes it out for its workers",
        "unset NVIDIA_TF32_OVERRIDE",
    )
    assert doctor_rows.environment({"CUDA_LAUNCH_BLOCKING": "1"}) == Row(
        "environment", "warn", "CUDA_LAUNCH_BLOCKING=1: every launch waits", "unset CUDA_LAUNCH_BLOCKING"
    )


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (Folder("/d/outputs", None, 5 * 10**9), Row("outputs", "ok", "5 GB free")),
        (
            Folder("/d/outputs", None, 20_000_000),
            Row("outputs", "warn", "20 MB free for /d/outputs", "df -h . && du -sh outputs"),
        ),
        (
            Folder("/d e/outputs", "Permission denied"),
            Row(
                "outputs",
                "fail",
                "cannot write in /d e/outputs: Permission denied",
                "sudo chown -R \"$(id -u)\" '/d e/outputs'",
            ),
        ),
        (
            Folder("/d/outputs", "Permission denied", exists=False),
            Row(
                "outputs",
                "fail",
                "cannot write in /d/outputs: Permission denied",
                'sudo install -d -o "$(id -u)" /d/outputs',
            ),
        ),
        (
            Folder("/d/outputs", "Read-only file system"),
            Row(
                "outputs",
                "fail",
                "cannot write in /d/outputs: Read-only file system",
                "set hydra.sweep.dir=FOLDER, and hydra.run.dir=FOLDER for one job",
            ),
        ),
    ],
)
def test_outputs_must_be_writable_and_should_have_room(found: Folder, row: Row) -> None:
    assert doctor_rows.outputs(found) == row


def test_a_folder_is_looked_at_without_leaving_anything_behind(tmp_path: Path) -> None:
    found = doctor_facts.look_at_folder(tmp_path / "outputs" / "deep")
    assert (found.error, found.free_bytes is not None, found.exists) == (None, True, False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "outputs").touch()
    assert doctor_facts.look_at_folder(tmp_path / "outputs" / "deep").error == "Not a directory"


@pytest.mark.parametrize(
    ("variables", "path"),
    [
        ({"TORCH_HOME": "/t"}, "/t"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/torch"),
        ({"HOME": "/h"}, "/h/.cache/torch"),
    ],
)
def test_caches_are_where_torch_keeps_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], path: str
) -> None:
    import torch

    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(doctor_facts.caches()) == path
    assert torch.hub._get_torch_home() == path


@pytest.mark.parametrize(
    ("found", "asked", "row"),
    [
        (Store("sqlite:////d/mlflow.db"), False, Row("MLflow store", "ok", "sqlite:////d/mlflow.db")),
        (Store("http://h", None, True), True, Row("MLflow store", "ok", "http://h (behind a proxy: not tried)")),
        (
            Store("http://h:1", "MLflow at http://h:1 does not answer (refused)"),
            True,
            Row(
                "MLflow store",
                "warn",
                "MLflow at http://h:1 does not answer (refused); results stay on disk",
                "unset MLFLOW_TRACKING_URI",
            ),
        ),
        (
            Store("sqlite:////d/mlflow.db", "mlflow is not installed: `pip install mlflow`, or turn tracking off"),
            False,
            Row(
                "MLflow store",
                "warn",
                "mlflow is not installed: `pip install mlflow`, or turn tracking off; results stay on disk",
                "pip install mlflow",
            ),
        ),
    ],
)
def test_a_store_that_would_not_work_is_a_warning(found: Store, asked: bool, row: Row) -> None:
    assert doctor_rows.store(found, asked) == row


def test_a_store_is_knocked_at_and_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        shown = f"http://me@127.0.0.1:{port}"
        expected = Store(shown, f"MLflow at {shown} does not answer (connection refused)")
        assert doctor_facts.look_at_store() == expected


def test_a_server_behind_a_proxy_is_not_knocked_at_and_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking.invalid")
    assert doctor_facts.look_at_store() == Store("http://me@tracking.invalid", None, True)
    monkeypatch.setenv("no_proxy", "tracking.invalid")
    assert not doctor_facts.look_at_store().proxied


SOCKETS = """\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 20873 @tcsweep/GPU-3f5e
0000000000000000: 00000003 00000000 00000000 0001 03 20874 @tcsweep/GPU-3f5e
0000000000000000: 00000002 00000000 00010000 0001 01 20875 @tcsweep/folder/ab12
0000000000000000: 00000002 00000000 00010000 0001 01 20876 /run/@tcsweep/x
0000000000000000: 00000003 00000000 00000000 0001 03 20877
"""


def test_locks_are_read_from_the_kernels_table_once_each() -> None:
    assert doctor_facts.lock_names(SOCKETS) == ["GPU-3f5e", "folder/ab12"]
    assert doctor_rows.locks([]) == Row("locks", "ok", "free")
    held = [
        Lock("GPU-3f5e", "another sweep"),
        Lock("cpu", "process 7 (python)"),
        Lock("folder/ab", "process 7 (python)"),
    ]
    assert doctor_rows.locks(held) == Row(
        "locks",
        "warn",
        "device GPU-3f5e: another sweep; device cpu, a sweep's folder: process 7 (python)",
        "let it end: another sweep waits for it",
    )


def test_a_lock_that_is_held_is_found_with_its_holder() -> None:
    name = f"test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(f"\0tcsweep/{name}")
        held.listen()
        (found,) = (lock for lock in doctor_facts.look_at_locks() if lock.name == name)
    assert found.holder.startswith(f"process {os.getpid()} (")
    assert name not in [lock.name for lock in doctor_facts.look_at_locks()]


# NVML


class MuteNvml(types.ModuleType):
    """As on a Jetson: it initialises, counts and names, and answers nothing else."""

    def __getattr__(self, name: str) -> Any:
        if name in ("nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetCount"):
            return lambda *about: 1
        raise AttributeError(name)


class FullNvml(MuteNvml):
    """As on a workstation."""

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlSystemGetDriverVersion": b"580.1",
            "nvmlSystemGetCudaDriverVersion_v2": 13020,
            "nvmlDeviceGetName": "NVIDIA H100",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetComputeRunningProcesses": [types.SimpleNamespace(pid=7)],
            "nvmlSystemGetProcessName": b"python",
            "nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=12),
        }
        return (lambda *about: answers[name]) if name in answers else super().__getattr__(name)


def test_nvml_that_answers_nothing_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", MuteNvml("pynvml"))
    monkeypatch.setattr(doctor_facts.cuda, "driver", lambda: None)
    assert doctor_facts.look_at_nvml() == Nvml()


def test_nvml_that_answers_gives_users_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FullNvml("pynvml"))
    gpu = NvmlGpu("NVIDIA H100", "GPU-1", (User(7, "python"),), 12.0)
    assert doctor_facts.look_at_nvml() == Nvml("580.1", "13.2", (gpu,))


def test_a_jetsons_gpu_load_is_per_mille_in_its_file(tmp_path: Path) -> None:
    assert doctor_facts._gpu_load(tmp_path) is None
    file = tmp_path / "sys/devices/platform/gpu.0/load"
    file.parent.mkdir(parents=True)
    file.write_text("621\n")
    assert doctor_facts._gpu_load(tmp_path) == 62.1


# whole


def test_a_probe_that_fails_or_hangs_costs_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError, match=r"no answer after 0\.05 s"):
        bounded(lambda: time.sleep(30), 0.05)
    found: dict[str, Any] = {}
    unknown: dict[str, str] = {}
    doctor._try(found, unknown, "clock", lambda: 1 // 0, 5)  # type: ignore[arg-type]
    doctor._try(found, unknown, "share", lambda: Share(4), 5)
    made = rows(Facts(python=(3, 11), unknown=unknown, **found))
    assert Row("clock", "warn", "could not be looked at: integer division or modulo by zero") in made
    assert Row("threads", "ok", "4 CPUs, no quota") in made


def test_a_judge_that_fails_costs_its_own_row_only() -> None:
    made = rows(Facts(python=(3, 11), packages={}))
    assert [row for row in made if row.what in ("Python", "mlflow")] == [
        Row("Python", "ok", "3.11"),
        Row("mlflow", "warn", "could not be judged: KeyError: 'mlflow'"),
    ]


def test_a_machine_on_which_no_process_can_be_started_still_has_its_other_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*words: Any, **settings: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Server, "start", refuse)
    monkeypatch.setattr(doctor_facts.subprocess, "Popen", refuse)
    monkeypatch.setattr(doctor_facts, "REACH_S", 0.1)
    made = {row.what: row for row in rows(doctor.gather())}
    reason = "[Errno 13] Permission denied"
    assert made["torch"].found == f"no worker can be started: {reason}"
    assert made["mlflow"] == Row("mlflow", "warn", f"could not be looked at: {reason}")
    assert {"Python", "CPU", "threads", "clock", "outputs"} <= set(made)


def test_a_fork_server_that_dies_of_an_import_is_told_by_the_import_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Server):
        def run(self, *words: Any, **settings: Any) -> Any:
            raise EOFError

    monkeypatch.setattr(doctor_facts, "_import_alone", lambda module, limit_s: f"{module}: illegal instruction")
    assert doctor_facts.ask(Dead(), "look_at_torch", 1.0) == Broken("start", "killed", "torch: illegal instruction")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "worker killed by SIGILL"),
        ("raise OSError('libx.so: no')", "OSError: libx.so: no"),
        ("import time; time.sleep(60)", "`import broken_module` has not ended after 2 s"),
    ],
)
def test_an_import_that_ends_a_process_is_told_by_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    (tmp_path / "broken_module.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor_facts._import_alone("broken_module", 2) == said


def test_an_import_that_crashes_or_hangs_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "omegaconf.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    crashed, hangs = Imports("mlflow"), Imports("omegaconf")
    assert crashed.end(20)["mlflow"].error == "import killed by SIGSEGV"
    assert hangs.end(0.5)["omegaconf"].error == "import has not ended after 0.5 s"


def printed(made: list[Row], width: int, **settings: Any) -> list[str]:
    file = io.StringIO()
    render(made, Console(file=file, width=width, **settings))
    return [line.rstrip() for line in file.getvalue().splitlines()]


LONG = Row("torch", "fail", "OSError: libcurand.so.10: no", "pip install --force-reinstall torch torchvision")


def test_a_command_stands_on_one_line_below_its_finding_or_further_left_where_the_terminal_is_narrow() -> None:
    made = [Row("Python", "ok", "3.11"), LONG]
    assert printed(made, 120) == [
        "Python  ok    3.11",
        "torch   fail  OSError: libcurand.so.10: no",
        "              → pip install --force-reinstall torch torchvision",
        "",
        "1 failure, 0 warnings: mend the failures first",
    ]
    assert printed(made, 34)[1:4] == [
        "torch   fail  OSError:",
        "              libcurand.so.10: no",
        "  → pip install --force-reinstall torch torchvision",
    ]


def test_a_terminal_that_knows_ascii_only_gets_no_other_sign() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    render([Row("a", "warn", "b…", "c")], Console(file=file, width=80))
    file.seek(0)
    assert [line.rstrip() for line in file.read().splitlines()[:2]] == ["a  warn  b.", "         -> c"]


def test_the_sum_says_whether_a_sweep_can_run() -> None:
    assert printed([Row("a", "ok", "b")], 80)[-1] == "all is well: a sweep can run"
    assert printed([Row("a", "warn", "b")], 80)[-1] == "0 failures, 1 warning: a sweep can run"


def test_markup_in_what_was_found_is_shown_as_it_is() -> None:
    assert printed([Row("a", "ok", "[red]x[/red]")], 80)[0] == "a  ok    [red]x[/red]"


# real runs


def run(folder: Path, *words: str, path: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, this checkout importable, `path` before everything else."""
    paths = [str(p) for p in (path, ROOT) if p is not None]
    paths += filter(None, [os.environ.get("PYTHONPATH")])  # where this interpreter gets its packages by it
    dropped = ("MLFLOW_TRACKING_URI", "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    code = "import sys; from tcsweep import doctor; s = doctor.main(sys.argv[1:]); print(sorted({'torch', 'mlflow', "
    code += "'hydra'} & set(sys.modules)), file=sys.stderr); sys.exit(s)"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def table(output: str) -> dict[str, tuple[str, str]]:
    """What, to state and finding."""
    found = re.findall(r"^(\S(?:.*?\S)?) {2,}(ok|warn|fail) +(.*?)\s*$", output, re.MULTILINE)
    return {what: (status, said) for what, status, said in found}


def test_this_machine_can_run_a_sweep_and_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(tmp_path)
    seen = table(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {status for status, _ in seen.values()} <= {"ok", "warn"}
    expected = "Python hydra-core omegaconf mlflow torch torchvision apex device CPU threads locks environment clock"
    assert set(expected.split()) | {"outputs", "caches", "MLflow store"} <= set(seen)
    assert seen["MLflow store"] == ("ok", f"sqlite:///{tmp_path}/mlflow.db".replace("/mlflow", "/outputs/mlflow"))
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == "[]\n"  # neither torch nor mlflow nor hydra is imported here


def stub(folder: Path, name: str, text: str, distribution: str | None = None, version: str = "1.0") -> Path:
    """A package to be put first on the path, with the metadata of a distribution."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(textwrap.dedent(text))
    if distribution is not None:
        info = folder / f"{distribution}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    return folder


def test_a_torch_whose_library_is_missing_is_one_failed_row_and_the_others_stay(tmp_path: Path) -> None:
    error = "libcurand.so.10: cannot open shared object file: No such file or directory"
    done = run(tmp_path, path=stub(tmp_path / "stubs", "torch", f"raise OSError({error!r})"))
    seen = table(done.stdout)
    assert done.returncode == 1
    assert [what for what, (status, _) in seen.items() if status == "fail"] == ["torch"]
    assert seen["torch"] == ("fail", f"OSError: {error}; it was built for another JetPack or CUDA")
    assert "→ pip install --force-reinstall torch torchvision" in done.stdout
    assert {"Python", "mlflow", "CPU", "outputs", "MLflow store"} <= set(seen)


def test_a_torch_that_ends_the_process_is_one_failed_row(tmp_path: Path) -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    done = run(tmp_path, path=stub(tmp_path / "stubs", "torch", body))
    seen = table(done.stdout)
    assert (done.returncode, seen["torch"]) == (1, ("fail", "worker killed by SIGILL")), done.stdout + done.stderr


def test_namesakes_from_the_index_and_a_broken_torchvision_are_named(tmp_path: Path) -> None:
    stubs = tmp_path / "stubs"
    stub(stubs, "apex", "from pyramid.session import UnencryptedCookieSessionFactoryConfig", "apex", "0.9.10.dev0")
    stub(stubs, "hydra", "from _hydra import BloomFilter", "hydra", "2.5")
    stub(stubs, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    done = run(tmp_path, path=stubs)
    seen = table(done.stdout)
    twin = "the torch-native twin is used for o0-o3"
    assert seen["apex"] == ("warn", f"another project's apex 0.9.10.dev0: {twin}")
    assert "→ pip uninstall -y apex" in done.stdout
    assert seen["hydra-core"] == ("fail", "another project's `hydra` 2.5 is installed")
    assert seen["torchvision"] == ("fail", "none: RuntimeError: operator torchvision::nms does not exist")
    assert (seen["torch"][0], done.returncode) == ("ok", 1)


def test_outputs_that_are_a_file_fail_and_variables_and_a_dead_server_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "outputs").touch()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        uri = f"http://me:secret@127.0.0.1:{port}"
        done = run(tmp_path, MLFLOW_TRACKING_URI=uri, NVIDIA_TF32_OVERRIDE="1")
    seen = table(done.stdout)
    assert done.returncode == 1
    assert seen["outputs"] == ("fail", f"cannot write in {tmp_path}/outputs: Not a directory")
    assert f"→ mv {tmp_path}/outputs {tmp_path}/outputs.old" in done.stdout
    assert seen["MLflow store"][0] == "warn"
    assert "secret" not in done.stdout + done.stderr
    assert seen["environment"][0] == "warn"


@pytest.mark.parametrize("words", [["--fast"], ["device=cpu"], ["--help", "x"]])
def test_a_word_that_it_does_not_know_is_one_line_and_exit_status_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(words) == 2
    said = capsys.readouterr()
    expected = f"tcsweep: doctor takes no arguments, not {words[0]!r}: python -m tcsweep doctor\n"
    assert (said.out, said.err) == ("", expected)


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m tcsweep doctor\n")


@pytest.mark.gpu
def test_a_gpu_is_named_its_kernels_run_and_its_tensor_cores_are_told(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    done = run(tmp_path)
    seen = table(done.stdout)
    assert seen["device"][1].startswith(torch.cuda.get_device_name(0))
    assert {"driver", "CUDA", "cuDNN", "kernels", "tensor cores", "GPU users"} <= set(seen)
    assert (seen["kernels"][0], done.returncode) == ("ok", 0), done.stdout
