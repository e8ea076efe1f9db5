import csv
import subprocess
import sys
from pathlib import Path

import pytest

from tcsweep.devices.peaks import PER_SM, fastest_flops, peak_flops

DATA = Path(__file__).parent / "data"
# Datasheets round to two or three digits; neighbouring rates differ by 2.
ROUNDING = 0.025
# On tensor cores, as the datasheets of GeForce cards give them: with float32 accumulation, fp8 included.
ACCUMULATED_IN_FLOAT32 = ("tf32", "bfloat16", "fp8")


def rows(name):
    with open(DATA / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def discrete_figures():
    columns = {
        "float32": "fp32_tflops",
        "tf32": "tf32_tflops",
        "float16": "fp16_tflops",
        "bfloat16": "bf16_tflops",
        "int8": "int8_tops",
        "fp8": "fp8_tflops",
    }
    for row in rows("peaks_discrete.csv"):
        for unit, column in columns.items():
            if row[column]:
                yield pytest.param(row, unit, float(row[column]), id=f"{row['gpu']}-{unit}-verified={row['verified']}")


def jetson_figures():
    columns = {
        "float32": "fp32_tflops",
        "float16 on CUDA cores": "fp16_cuda_tflops",
        "float16": "fp16_tflops",
        "tf32": "tf32_tflops",
        "int8": "int8_tops",
    }
    for row in rows("peaks_jetson.csv"):
        for unit, column in columns.items():
            if row[column]:
                yield pytest.param(row, unit, float(row[column]), id=f"{row['module']}-{unit}")


@pytest.mark.parametrize(("row", "unit", "tflops"), list(discrete_figures()))
def test_the_formula_gives_the_datasheet_figures_of_discrete_gpus(row, unit, tflops):
    mhz = float(row["cuda_core_mhz"] if unit == "float32" else row["tensor_core_mhz"])
    slowed = row["float32_accumulation"] == "half" and unit in ACCUMULATED_IN_FLOAT32

    peak = peak_flops(row["compute_capability"], int(row["sms"]), mhz, unit)

    assert peak * (0.5 if slowed else 1) == pytest.approx(tflops * 1e12, rel=ROUNDING)


@pytest.mark.parametrize(("row", "unit", "tflops"), list(jetson_figures()))
def test_the_formula_gives_the_datasheet_figures_of_jetsons(row, unit, tflops):
    peak = peak_flops(row["compute_capability"], int(row["sms"]), float(row["mhz"]), unit)

    assert peak == pytest.approx(tflops * 1e12, rel=ROUNDING)


def test_rows_with_recalled_figures_are_named_unverified_and_no_others():
    assert {row["gpu"]: row["verified"] for row in rows("peaks_discrete.csv")} == {
        row["gpu"]: "no" if row["provenance"].startswith("recalled") else "yes" for row in rows("peaks_discrete.csv")
    }


def test_a_peak_is_sms_times_flop_per_clock_times_clock():
    assert peak_flops("9.0", 132, 1980, "float16") == 132 * 4096 * 1980e6


def test_half_runs_on_cuda_cores_where_there_are_no_tensor_cores():
    assert peak_flops("6.2", 2, 1000, "float16") == 2 * 512 * 1e9
    assert peak_flops("6.2", 2, 1000, "float16 on CUDA cores") == 2 * 512 * 1e9
    assert peak_flops("7.0", 2, 1000, "float16 on CUDA cores") == 2 * 256 * 1e9


@pytest.mark.parametrize(
    ("compute_capability", "unit"),
    [
        ("3.5", "float32"),
        ("13.0", "float16"),
        ("6.2", "bfloat16"),
        ("7.0", "int8"),
        ("7.5", "tf32"),
        ("8.6", "fp8"),
        ("8.6", "float16 on CUDA cores"),
        ("10.3", "int8"),
        ("", "float32"),
    ],
)
def test_what_is_not_known_is_none(compute_capability, unit):
    assert peak_flops(compute_capability, 10, 1000, unit) is None


def test_an_unknown_arithmetic_is_an_error():
    with pytest.raises(ValueError, match="'fp16' is no arithmetic of float32, float16, bfloat16, tf32, int8, fp8, "):
        peak_flops("9.0", 1, 1000, "fp16")


@pytest.mark.parametrize(
    ("compute_capability", "dtype", "per_sm"),
    [
        ("9.0", "float32", 256),
        ("9.0", "tf32", 2048),
        ("9.0", "float16", 4096),
        ("9.0", "bfloat16", 4096),
        ("9.0", "int8", 8192),
        ("9.0", "fp8", 8192),
        ("9.0", "float8_e4m3fn", 8192),
        ("9.0", "float8_e5m2", 8192),
        ("7.5", "tf32", 128),  # the switch does nothing
        ("7.5", "bfloat16", 128),  # multiplied in float32
        ("6.2", "float16", 512),
        ("6.1", "float16", 256),  # packed halves take 1/64 of float32's rate: float32 it is
        ("8.6", "float16", 1024),
    ],
)
def test_the_fastest_unit_that_could_run_a_dtype_bounds_it(compute_capability, dtype, per_sm):
    assert fastest_flops(compute_capability, 4, 500, dtype) == 4 * per_sm * 500e6


@pytest.mark.parametrize(
    ("compute_capability", "dtype"), [("9.9", "float32"), ("7.0", "int8"), ("8.0", "fp8"), ("9.0", "complex64")]
)
def test_a_dtype_without_a_known_unit_has_no_bound(compute_capability, dtype):
    assert fastest_flops(compute_capability, 4, 500, dtype) is None


def test_every_row_has_a_source_and_only_known_arithmetic():
    assert {
        cc: (bool(r.source), set(r.tensor) <= {"float16", "bfloat16", "tf32", "int8", "fp8"})
        for cc, r in PER_SM.items()
    } == dict.fromkeys(PER_SM, (True, True))


def test_peaks_need_no_torch():
    script = "import sys, tcsweep.devices.peaks, tcsweep.evidence.physics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
