import contextlib
import ctypes
import shutil
import statistics
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tcsweep.evidence import clock


def test_the_clock_is_cycles_over_nanoseconds() -> None:
    assert clock.mhz([1_000, 5_000_000, 397_000, 5_200_000]) == 1980.0


@pytest.mark.parametrize(
    "counters",
    [
        pytest.param([0, 7_000, 4_000_000, 7_000], id="the timer stands"),
        pytest.param([0, 7_000, 4_000_000, 206_999], id="the spin was cut short"),
        pytest.param([0, 0, 0, 0], id="nothing was written"),
        pytest.param([400_000, 0, 0, 200_000], id="cycles run backwards"),
        pytest.param([0, 200_000, 400_000, 0], id="time runs backwards"),
    ],
)
def test_counters_that_do_not_advance_give_no_clock(counters: list[int]) -> None:
    assert clock.mhz(counters) is None


class FakeDriver:
    """Takes what the real one takes, and as its kernel would, writes the counters to the address in its arguments."""

    def __init__(self, **errors: int) -> None:
        self.errors = errors
        self.launched: list[Any] = []

    def cuModuleLoadData(self, module: Any, image: Any) -> int:  # noqa: N802
        self.image = image.value
        module._obj.value = 11
        return self.errors.get("load", 0)

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:  # noqa: N802
        self.name = (module.value, name.value)
        function._obj.value = 22
        return self.errors.get("find", 0)

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:  # noqa: N802
        *sizes, shared, stream, pointers, extra = rest
        address, spin_ns, most = (ctypes.c_uint64.from_address(pointer).value for pointer in pointers)
        self.launched.append(
            (function.value, [s.value for s in sizes], shared.value, stream.value, spin_ns, most, extra)
        )
        (ctypes.c_int64 * 4).from_address(address)[:] = [100, 1_000, 282_100, 201_000]
        return self.errors.get("launch", 0)


def test_the_kernel_gets_one_thread_on_the_stream_and_the_address_it_writes_to() -> None:
    driver, counters = FakeDriver(), torch.zeros(4, dtype=torch.int64)
    clock.load(driver)(33, counters.data_ptr())
    assert driver.image == clock.PTX.encode()
    assert driver.name == (11, b"tcsweep_clock")
    assert driver.launched == [(22, [1, 1, 1, 1, 1, 1], 0, 33, clock.SPIN_NS, clock.CYCLES_MOST, None)]
    assert clock.mhz(counters.tolist()) == 1410.0


@pytest.mark.parametrize("step", ["load", "find", "launch"])
def test_a_step_that_the_driver_refuses_raises_its_error(step: str) -> None:
    counters = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="CUDA driver error 218"):
        clock.load(FakeDriver(**{step: 218}))(0, counters.data_ptr())


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("without_gpu")
def test_without_a_gpu_there_is_no_clock() -> None:
    assert clock.sm_clock() is None


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A GPU whose memory is the host's."""
    driver, zeros = FakeDriver(), torch.zeros
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: driver)
    return driver


def test_each_call_launches_and_returns_megahertz(fake_gpu: FakeDriver) -> None:
    measure = clock.sm_clock()
    assert measure is not None
    assert [measure(), measure()] == [1410.0, 1410.0]
    assert len(fake_gpu.launched) == 3  # the first is the trial


@pytest.mark.parametrize("step", ["load", "find", "launch"])
def test_a_driver_that_refuses_a_step_means_no_clock(fake_gpu: FakeDriver, step: str) -> None:
    fake_gpu.errors = {step: 222}
    assert clock.sm_clock() is None


def test_a_launch_that_fails_later_is_none_and_raises_nothing(fake_gpu: FakeDriver) -> None:
    measure = clock.sm_clock()
    assert measure is not None
    fake_gpu.errors = {"launch": 700}
    assert measure() is None


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_87", "sm_90", "sm_100"])
def test_the_ptx_is_assembled_for_each_architecture(arch: str, tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas")
    (tmp_path / "clock.ptx").write_text(clock.PTX)
    done = subprocess.run(
        [ptxas, f"-arch={arch}", "clock.ptx", "-o", "clock.cubin"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.gpu
def test_the_clock_under_load_is_near_what_nvml_says() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    from tcsweep.devices.telemetry import Absent, open_reader

    reader = open_reader(str(getattr(torch.cuda.get_device_properties(0), "uuid", "")) or None)
    if isinstance(reader, Absent) or reader.sample()["sm_mhz"] is None:
        pytest.skip("NVML tells no clock")
    measure = clock.sm_clock()
    assert measure is not None
    matrix = torch.ones(4096, 4096, device="cuda")
    in_band, told = [], []
    for _ in range(30):
        for _ in range(8):
            matrix @ matrix
        told.append(reader.sample()["sm_mhz"])  # the products are still queued
        in_band.append(measure())
    assert all(one is not None and 200 < one < 4000 for one in in_band)
    assert statistics.median(in_band[10:]) == pytest.approx(statistics.median(told[10:]), rel=0.15)
