from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tcsweep.evidence.facts import DeviceSample, DeviceState, Dtypes, Kernels, LayerWork, Numerics, OperatorCount, Work
from tcsweep.evidence.figures import Seen, dtypes_seen, flops_least, peak_flops_s, seen, timed, timed_samples
from tcsweep.job import Result
from tcsweep.stats import figures

from .evident import (
    FP32_CONVOLUTION,
    HALF_CONVOLUTION,
    RATES,
    RELU,
    STATE,
    clean,
    evidence,
    in_round,
    kernels,
    on_cpu,
    operators,
)
from .sweeps import ENVIRONMENT

SAID = "ATen operators of one call"
SMS_CLOCK = 132 * 1980e6  # H100: multiprocessors times the highest clock
LAYERS = Work(
    (
        LayerWork("conv1", "convolution", 6e9, 1000, 2000, 8000, winograd=True),
        LayerWork("fc", "linear", 2e9, 100, 10, 4000),
    )
)


def of(result: Result) -> Seen:
    return seen(result, figures(result.job, result.rounds))


def test_every_figure_of_a_job_on_a_gpu() -> None:
    shown = kernels(HALF_CONVOLUTION, RELU, "who_knows", RELU + "6", union_ms=6.4, span_ms=7.0)
    states = [
        DeviceSample(0.1 * n, sm_mhz=1900.0 + n, power_w=500.0 + n, temperature_c=60.0 + n) for n in (1, 2, 3, 4, 5)
    ]
    result = clean("fp16", kernels=shown, work=LAYERS, round_changes={"device_state": None})
    result = in_round(result, 2, device_state=dataclasses.replace(STATE, samples=tuple(states)))
    got = of(result)
    traffic = [2000 + 1000 + 8000 / 8, 10 + 100 + 4000 / 8]  # elements of 2 bytes
    seconds = sum(max(2 * t / RATES["copy"], f / RATES["float16"]) for t, f in zip(traffic, (6e9, 2e9)))
    assert dataclasses.replace(got, layerwise_roof_img_s=None, roof_fraction=None) == Seen(
        dtypes=("float16",),
        tensor_core_time_fraction=pytest.approx(0.25),
        unknown_time_fraction=pytest.approx(0.25),
        gpu_busy_fraction=pytest.approx(6.4 / 8, rel=1e-4),
        ms_by_kind=pytest.approx({"elementwise": 3.2, "convolution/GEMM": 1.6, "other": 1.6}),
        flops_per_img=8e9,
        achieved_tflop_s=pytest.approx(8.0, rel=1e-4),
        peak_tflop_s=pytest.approx(4096 * SMS_CLOCK / 1e12),
        relative_error=1e-6,
        sm_mhz=1903.0,
        power_w=503.0,
        throughput_img_s_w=pytest.approx(1000 / 503, rel=1e-4),
        temperature_c=63.0,
    )
    assert got.layerwise_roof_img_s == pytest.approx(1 / seconds)
    assert got.roof_fraction == pytest.approx(1000 * seconds, rel=1e-4)


def test_a_job_on_a_cpu_has_no_kernels_no_peak_and_no_state() -> None:
    got = of(on_cpu("bf16", work=LAYERS, rates={"bfloat16": 1e12, "copy": 1e11}))
    assert got == Seen(
        dtypes=("bfloat16",),
        flops_per_img=8e9,
        achieved_tflop_s=pytest.approx(8.0, rel=1e-4),
        layerwise_roof_img_s=pytest.approx(125.0),
        roof_fraction=pytest.approx(8.0, rel=1e-4),
        relative_error=1e-6,
    )


def test_without_evidence_only_the_devices_state_is_known() -> None:
    assert of(in_round(clean(), 1, evidence=None)) == Seen(sm_mhz=1965.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"work": Work(missing="not counted")},
        {"rates": {}},
        {"rates": {"copy": 1e12, "float16": 1e12}},
        {"rates": {"float32": 1e12}},
    ],
    ids=["uncounted", "unmeasured", "another dtype's", "no copy"],
)
def test_a_roof_needs_counted_work_and_both_rates(changes: dict[str, Any]) -> None:
    got = of(clean(**changes))
    assert (got.layerwise_roof_img_s, got.roof_fraction) == (None, None)


def test_tf32_has_a_roof_and_a_peak_of_its_own_at_float32s_size() -> None:
    one = Work((LayerWork("fc", "linear", 1e12, 1, 1, 0),))
    got = of(clean("tf32", work=one))
    assert got.layerwise_roof_img_s == pytest.approx(RATES["tf32"] / 1e12)
    assert got.peak_tflop_s == pytest.approx(2048 * SMS_CLOCK / 1e12)
    wide = Work((LayerWork("fc", "linear", 1.0, 10**9, 0, 0),))
    assert of(clean("tf32", work=wide)).layerwise_roof_img_s == pytest.approx(RATES["copy"] / 4e9)
    assert of(clean("fp16", work=wide)).layerwise_roof_img_s == pytest.approx(RATES["copy"] / 2e9)


def test_kernels_of_two_streams_make_a_device_busy_but_never_over_1() -> None:
    assert of(clean(kernels=kernels(FP32_CONVOLUTION, union_ms=20.0))).gpu_busy_fraction == 1.0
    assert of(clean(kernels=Kernels(missing="no right"))).gpu_busy_fraction is None


def test_every_dtype_of_every_operator_is_seen() -> None:
    rows = (OperatorCount("aten.conv2d", ("float32", "float16"), 1), OperatorCount("aten.linear", ("bfloat16",), 2))
    assert dtypes_seen(evidence("fp32", dtypes=Dtypes(SAID, rows))) == {"float32", "float16", "bfloat16"}
    assert dtypes_seen(evidence("fp32", dtypes=Dtypes(SAID))) == set()


def test_winograd_is_float32s_choice_only() -> None:
    assert flops_least(evidence("fp32", work=LAYERS)) == 6e9 / 4 + 2e9
    assert flops_least(evidence("tf32", work=LAYERS)) == 6e9 / 4 + 2e9
    assert flops_least(evidence("fp16", work=LAYERS)) == 8e9
    mixed = Dtypes(SAID, (*operators("float16"), OperatorCount("aten.linear", ("float32",), 1)))
    assert flops_least(evidence("o1", work=LAYERS, dtypes=mixed)) == 6e9 / 4 + 2e9


@pytest.mark.parametrize(
    ("precision", "dtypes", "per_clock"),
    [
        ("fp32", ("float32",), 256),
        ("tf32", ("float32",), 2048),
        ("fp16", ("float16",), 4096),
        ("o1", ("float32", "float16"), 4096),  # the fastest that ran
        ("tf32", ("float32", "bfloat16"), 4096),
        ("fp32", ("float64",), None),  # no peak known
        ("fp32", ("float32", "float64"), None),  # of one of the two
        ("fp32", (), None),
    ],
)
def test_the_peak_is_that_of_the_fastest_unit_for_what_ran(
    precision: str, dtypes: tuple[str, ...], per_clock: int | None
) -> None:
    rows = tuple(OperatorCount("aten.conv2d", (dtype,), 1) for dtype in dtypes)
    expected = None if per_clock is None else per_clock * SMS_CLOCK
    assert peak_flops_s(clean(precision, dtypes=Dtypes(SAID, rows))) == expected


def test_the_peak_needs_the_device_its_size_and_its_clock() -> None:
    for field in ("compute_capability", "sm_count"):
        assert peak_flops_s(clean(environment=dataclasses.replace(ENVIRONMENT, **{field: None}))) is None
    assert peak_flops_s(clean(environment=dataclasses.replace(ENVIRONMENT, compute_capability="99.9"))) is None
    assert peak_flops_s(clean(round_changes={"device_state": None})) is None
    assert peak_flops_s(in_round(clean(), 1, evidence=None)) is None


def test_the_clock_is_that_of_the_first_round_that_knows_it() -> None:
    for silent in (None, DeviceState(missing="NVML did not answer")):
        assert peak_flops_s(in_round(clean(), 1, device_state=silent)) == 256 * SMS_CLOCK


def test_the_samples_of_the_timed_blocks_are_those_between_their_ends() -> None:
    moments = [DeviceSample(at) for at in (-1.0, -0.001, 0.0, 0.3, 0.65, 0.651, 2.0)]
    result = in_round(clean(), 2, device_state=dataclasses.replace(STATE, samples=tuple(moments)))
    result = in_round(in_round(result, 1, device_state=None), 3, device_state=DeviceState())
    assert [s.at_s for s in timed_samples(result)] == [0.0, 0.3, 0.65]
    assert [len(timed(one)) for one in result.rounds] == [0, 3, 0]


def test_a_median_is_of_what_was_said() -> None:
    said = (DeviceSample(0.1, power_w=300.0), DeviceSample(0.2), DeviceSample(0.3, power_w=400.0))
    result = clean(round_changes={"device_state": None}, numerics=Numerics(missing="no reference"))
    got = of(in_round(result, 2, device_state=dataclasses.replace(STATE, samples=said)))
    assert (got.power_w, got.sm_mhz, got.temperature_c, got.relative_error) == (350.0, None, None, None)
