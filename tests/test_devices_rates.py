import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tcsweep.devices.rates import Rates, RatesKey, _switches, cached_rates, largest_product, measure_rates
from tcsweep.precision import set_tf32

KEY = RatesKey("GPU-1", "580.1", None, "2.14.1")
RATES = Rates({"float32": 50.0, "float16": 760.0}, 3020.0)


class Measure:
    """Gives one of the rates after another."""

    def __init__(self, *rates):
        self.rates = list(rates)

    def __call__(self):
        return self.rates.pop(0)


def never():
    raise AssertionError("measured again")


def test_what_was_measured_is_read_again(tmp_path):
    folder = tmp_path / "not" / "there"

    assert cached_rates(KEY, folder, Measure(RATES)) == RATES
    assert cached_rates(KEY, folder, never) == RATES
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == {
        "key": {"uuid_or_cpu": "GPU-1", "driver": "580.1", "power_mode": None, "torch": "2.14.1"},
        "rates": {"gemm_tflops": {"float32": 50.0, "float16": 760.0}, "copy_gb_s": 3020.0},
    }


@pytest.mark.parametrize(
    "change", [{"uuid_or_cpu": "cpu"}, {"driver": None}, {"power_mode": "MAXN (0)"}, {"torch": "2.15.0"}]
)
def test_another_key_is_measured_for_itself(tmp_path, change):
    other = Rates({"float32": 1.0}, 2.0)
    cached_rates(KEY, tmp_path, Measure(RATES))

    assert cached_rates(replace(KEY, **change), tmp_path, Measure(other)) == other
    assert cached_rates(KEY, tmp_path, never) == RATES


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{}",
        '"key"',
        {"rates": {"gemm_tflops": {}}},
        {"rates": {"gemm_tflops": [], "copy_gb_s": 1.0}},
        {"rates": {"gemm_tflops": {"float32": "fast"}, "copy_gb_s": 1.0}},
        {"rates": {"gemm_tflops": {"float32": 0.0}, "copy_gb_s": 1.0}},
        {"rates": {"gemm_tflops": {"float32": 1.0}, "copy_gb_s": float("nan")}},
        {"key": {"uuid_or_cpu": "GPU-2"}},
    ],
)
def test_a_file_that_cannot_be_understood_is_measured_anew(tmp_path, content):
    cached_rates(KEY, tmp_path, Measure(RATES))
    (file,) = tmp_path.iterdir()
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    again = Rates({"float32": 1.0}, 2.0)

    assert cached_rates(KEY, tmp_path, Measure(again)) == again
    assert cached_rates(KEY, tmp_path, never) == again


def test_a_folder_that_cannot_be_written_keeps_nothing_and_the_rates_are_given(tmp_path):
    (tmp_path / "file").write_text("in the way")

    assert cached_rates(KEY, tmp_path / "file", Measure(RATES)) == RATES


def test_a_failed_measurement_is_raised_and_not_kept(tmp_path):
    with pytest.raises(AssertionError, match="measured again"):
        cached_rates(KEY, tmp_path, never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flops_s", "most_rows", "rows"),
    [
        (50e12, 8192, 8192),  # 1 / 400 s at 4096
        (1e12, 8192, 2048),  # 17 ms
        (0.2e12, 8192, 1024),  # 11 ms
        (1e9, 8192, 512),  # 0.3 s: the first is long enough
        (1e15, 8192, 8192),
        (1e15, 5000, 4096),
        (1e15, 100, 512),
    ],
)
def test_a_product_grows_until_it_takes_long_enough(flops_s, most_rows, rows):
    assert largest_product(lambda n: 2 * n**3 / flops_s, 512, most_rows) == rows


def test_waiting_that_is_the_same_for_all_sizes_does_not_end_the_growth():
    assert largest_product(lambda n: 0.02 + 2 * n**3 / 1e11, 256, 8192) == 1024


def test_a_cpus_rates_are_of_float32_and_bfloat16():
    rates = measure_rates("cpu")

    assert list(rates.gemm_tflops) == ["float32", "bfloat16"]
    assert all(1e-4 < rate < 1e3 for rate in rates.gemm_tflops.values())
    assert 0.05 < rates.copy_gb_s < 5000


@pytest.mark.parametrize(
    ("prepare", "autocast"),
    [(lambda: None, False), (lambda: set_tf32(True), True), (lambda: set_tf32(False), False)],
    ids=["untouched", "tf32 and autocast", "float32"],
)
def test_measuring_leaves_switches_and_random_numbers_as_they_were(prepare, autocast):
    prepare()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    before = (_switches(), torch.get_float32_matmul_precision())

    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        measure_rates("cpu")
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype is (torch.bfloat16 if autocast else torch.float32)

    assert (_switches(), torch.get_float32_matmul_precision()) == before
    assert torch.equal(torch.rand(2), expected)


def test_switches_are_put_back_after_an_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory left")

    monkeypatch.setattr("tcsweep.devices.rates._copy_gb_s", fail)
    set_tf32(True)
    before = _switches()

    with pytest.raises(RuntimeError, match="no memory left"):
        measure_rates("cpu")
    assert _switches() == before


def test_reading_kept_rates_needs_no_torch():
    script = "import sys, tcsweep.devices.rates; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpus_rates_are_measured_in_a_second_and_a_half():
    torch.zeros(1, device="cuda")
    began = time.perf_counter()
    rates = measure_rates("cuda:0")

    assert time.perf_counter() - began < 1.5
    tf32 = ["tf32"] if torch.cuda.get_device_capability() >= (8, 0) else []
    assert list(rates.gemm_tflops)[: 2 + len(tf32)] == ["float32", *tf32, "float16"]
    assert rates.copy_gb_s > 10
