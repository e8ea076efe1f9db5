from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import pytest

from tcsweep.evidence.facts import (
    DeviceSample,
    DeviceState,
    Dtypes,
    HostState,
    Kernels,
    LayerWork,
    Numerics,
    OperatorCount,
    Work,
)
from tcsweep.evidence.figures import seen
from tcsweep.evidence.work import count
from tcsweep.explain import RULES, Verdict, suspect, unverified, verdicts, wide
from tcsweep.job import Environment, Job, Measure, Result, Round
from tcsweep.precision import PRECISIONS
from tcsweep.stats import Figures, Interval, drift, figures

from .evident import (
    BFLOAT16_CONVOLUTION,
    FFT,
    FLOAT32_ATTENTION,
    FP32_CONVOLUTION,
    HALF_CONVOLUTION,
    O1_PATCHED,
    OFF,
    RELU,
    STATE,
    TF32_CONVOLUTION,
    TF32_ON,
    WINOGRAD,
    clean,
    in_round,
    kernels,
    on_cpu,
    operators,
    samples,
)
from .sweeps import ENVIRONMENT
from .test_speedup import result
from .test_stats import one_round

ADVICE = "repeat with measure=thorough on a quiet machine"


def a_result(*rounds: Round, stopped: str | None = None, **settings: object) -> Result:
    job = Job(measure=Measure(**settings))  # type: ignore[arg-type]
    return Result(job, "asked", 0, Environment(), rounds, 0.0, 1.0, stopped)


def judge(measured: Result) -> Verdict | None:
    return wide(measured, figures(measured.job, measured.rounds))


def with_interval(over_rounds: float | None, within: float | None, **settings: object) -> tuple[Result, Figures]:
    """A result of three rounds and its figures, with intervals of these half-widths around 100 images a second."""
    measured = a_result(*(one_round(n) for n in (1, 2, 3)), **settings)
    derived = figures(measured.job, measured.rounds)
    around = [None if h is None else Interval(100 * (1 - h), 100 * (1 + h)) for h in (over_rounds, within)]
    return measured, dataclasses.replace(derived, throughput_ci95=around[0], throughput_ci95_within=around[1])


def test_a_narrow_result_of_all_its_rounds_is_not_wide() -> None:
    assert judge(result(Job(), 100, 100, 100)) is None


@pytest.mark.parametrize(
    ("stopped", "reason"),
    [
        ("budget", "2 of 3 rounds (budget)"),
        ("interrupted", "2 of 3 rounds (interrupted)"),
        (None, "2 of 3 rounds (stopped)"),
    ],
)
def test_fewer_rounds_than_asked_for_are_wide(stopped: str | None, reason: str) -> None:
    assert judge(a_result(one_round(1), one_round(2), stopped=stopped)) == Verdict("wide", (reason,), ADVICE)


@pytest.mark.parametrize(("unsteady", "is_wide"), [(0, False), (1, False), (2, True), (3, True)])
def test_most_rounds_must_have_been_warm(unsteady: int, is_wide: bool) -> None:
    found = judge(a_result(*(one_round(n, warmed_up=n > unsteady) for n in (1, 2, 3))))
    expected = Verdict("wide", ("times still changed when the warm-up ended",), ADVICE)
    assert found == (expected if is_wide else None)


def test_half_of_the_rounds_is_not_most() -> None:
    assert judge(a_result(one_round(1, warmed_up=False), one_round(2), rounds=2)) is None


def test_an_interval_over_rounds_is_held_to_the_limit_over_rounds() -> None:
    assert wide(*with_interval(0.019, 0.5, rounds_ci=0.02)) is None
    assert wide(*with_interval(0.0345, 0.001, rounds_ci=0.02)) == Verdict(
        "wide", ("interval of ±3.5%, over ±2.0%",), ADVICE
    )


@pytest.mark.parametrize(
    ("rounds_ci", "within_ci", "limit"), [(0.02, 0.005, "2.0%"), (0.005, 0.02, "2.0%")], ids=["rounds", "within"]
)
def test_an_interval_within_rounds_is_held_to_the_laxer_limit(rounds_ci: float, within_ci: float, limit: str) -> None:
    limits = {"rounds_ci": rounds_ci, "within_ci": within_ci}
    assert wide(*with_interval(None, 0.019, **limits)) is None
    assert wide(*with_interval(None, 0.03, **limits)) == Verdict("wide", (f"interval of ±3.0%, over ±{limit}",), ADVICE)


def test_one_block_is_too_few_for_an_interval() -> None:
    assert judge(a_result(one_round(walls=(100.0,)), rounds=1)) == Verdict(
        "wide", ("too few samples for an interval",), ADVICE
    )


def test_every_reason_is_given() -> None:
    found = judge(a_result(one_round(walls=(100.0, 140.0), warmed_up=False), stopped="budget"))
    reasons = (
        "1 of 3 rounds (budget)",
        "times still changed when the warm-up ended",
        "interval of ±100.0%, over ±2.0%",  # two blocks so far apart that the interval reaches down to nothing
    )
    assert found == Verdict("wide", reasons, ADVICE)


# --- suspect: each rule on a result that is clean but for one fact ---

SAID = "ATen operators of one call"
O1_ATTENTION = OperatorCount("aten._native_multi_head_attention", ("float32",) * 6, 12)


def suspicions(measured: Result) -> tuple[str, ...]:
    """Why a result is suspect; () where it is not."""
    found = suspect(measured, figures(measured.job, measured.rounds))
    return () if found is None else found.reasons


def remarks(measured: Result) -> tuple[str, ...]:
    """Why a result is wide; () where it is not."""
    found = wide(measured, figures(measured.job, measured.rounds))
    return () if found is None else found.reasons


def seeing(*rows: OperatorCount) -> Dtypes:
    return Dtypes(SAID, rows)


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_result_that_shows_what_its_label_promises_has_no_verdict(precision: str) -> None:
    measured = clean(precision)
    assert verdicts(measured, figures(measured.job, measured.rounds)) == ()


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "tf32"])
def test_nor_has_one_on_a_cpu(precision: str) -> None:
    measured = on_cpu(precision, half="float16" if precision == "fp16" else "bfloat16")
    changed = {"arithmetic_before": O1_PATCHED, "arithmetic_after": O1_PATCHED} if precision == "o1" else {}
    measured = in_round(measured, 2, **changed)
    assert verdicts(measured, figures(measured.job, measured.rounds)) == ()


@pytest.mark.parametrize(
    ("precision", "label", "seen"),
    [
        ("fp32", "float32", "float16"),
        ("o0", "o0 (float32)", "float16"),
        ("tf32", "float32", "float16"),
        ("o1", "o1 (float16)", "float32"),
        ("o2", "o2 (float16)", "float32"),
        ("o3", "o3 (float16)", "bfloat16"),
        ("fp16", "fp16 (float16)", "bfloat16"),
        ("bf16", "bf16 (bfloat16)", "float16"),
    ],
)
def test_operators_of_another_dtype_contradict_the_label(precision: str, label: str, seen: str) -> None:
    said = f"observed {seen} in 54 of 54 operators, labelled {label}"
    assert suspicions(clean(precision, dtypes=seeing(*operators(seen)))) == (said,)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "o2"])
def test_what_half_means_is_the_labels_and_not_what_the_file_says_beside_it(precision: str) -> None:
    other = "float16" if precision == "bf16" else "bfloat16"
    relabelled = clean(precision, round_changes={"half_dtype": other}, dtypes=seeing(*operators(other)))
    (said,) = suspicions(relabelled)
    assert said.startswith(f"observed {other} in 54 of 54 operators, labelled {precision}")


def test_an_o_level_on_a_cpu_is_bfloat16_and_float16_contradicts_it() -> None:
    said = "observed float16 in 54 of 54 operators, labelled o3 (bfloat16)"
    assert suspicions(on_cpu("o3", dtypes=seeing(*operators("float16")))) == (said,)


def test_half_that_is_undone_in_one_block_contradicts_the_label() -> None:
    undone = seeing(*operators("float16", conv2d=49), OperatorCount("aten.conv2d", ("float32", "float32"), 4))
    assert suspicions(clean("o2", dtypes=undone)) == ("observed float32 in 4 of 54 operators, labelled o2 (float16)",)


def test_an_operator_with_one_argument_of_another_dtype_counts() -> None:
    mixed = seeing(*operators("float32", conv2d=52), OperatorCount("aten.conv2d", ("float32", "float16"), 1))
    assert suspicions(clean("fp32", dtypes=mixed)) == ("observed float16 in 1 of 54 operators, labelled float32",)


@pytest.mark.parametrize(
    ("precision", "reasons"),
    [
        ("o1", ()),  # apex's lists name no fused attention: vit_b_16's stays in float32
        ("o2", ("observed float32 in 12 of 26 operators, labelled o2 (float16)",)),
        ("fp16", ("observed float32 in 12 of 26 operators, labelled fp16 (float16)",)),
    ],
)
def test_attention_in_float32_is_what_o1_promises_and_no_other_level(precision: str, reasons: tuple[str, ...]) -> None:
    vit = seeing(*operators("float16", conv2d=1, linear=13), O1_ATTENTION)
    shown = kernels(HALF_CONVOLUTION, FLOAT32_ATTENTION)
    assert suspicions(clean(precision, dtypes=vit, kernels=shown)) == reasons


@pytest.mark.parametrize("precision", ["fp32", "o0"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (TF32_CONVOLUTION, "tf32"),
        ("cutlass_80_tensorop_s1688gemm_128x128_16x4_nn_align4", "tf32"),
        (HALF_CONVOLUTION, "float16"),
        (BFLOAT16_CONVOLUTION, "bfloat16"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "float16"),
    ],
)
def test_kernels_that_multiply_in_less_contradict_float32(precision: str, name: str, kind: str) -> None:
    shown = kernels(FP32_CONVOLUTION, name, name)
    said = f"kernels multiply in {kind} for 5.13 ms an iteration, labelled {precision}"
    assert suspicions(clean(precision, kernels=shown)) == (said,)


@pytest.mark.parametrize(
    "name",
    [
        FLOAT32_ATTENTION,
        WINOGRAD,
        FFT,
        "void flip_filter<float, float>(float*, float const*)",
        "ampere_sgemm_128x64_nn",
    ],
)
def test_kernels_that_make_float32_in_their_own_way_do_not_contradict_it(name: str) -> None:
    assert suspicions(clean("fp32", kernels=kernels(FP32_CONVOLUTION, name))) == ()


def test_tf32_without_a_tensor_core_kernel_is_contradicted() -> None:
    none = kernels(FP32_CONVOLUTION, WINOGRAD, RELU)
    assert suspicions(clean("tf32", kernels=none)) == ("no kernel used tensor cores, labelled tf32",)
    assert suspicions(clean("tf32", kernels=kernels(FP32_CONVOLUTION, TF32_CONVOLUTION))) == ()
    assert suspicions(clean("tf32", kernels=kernels("some_gemm", FP32_CONVOLUTION))) == ()  # may have used them
    assert suspicions(clean("tf32", kernels=kernels(RELU))) == ()  # none that does arithmetic


def switched(measured: Result, **changes: object) -> Result:
    """With other switches, before and after the timing of every round."""
    assert measured.rounds[0].arithmetic_before is not None
    state = dataclasses.replace(measured.rounds[0].arithmetic_before, **changes)  # type: ignore[arg-type]
    for one in measured.rounds:
        measured = in_round(measured, one.number, arithmetic_before=state, arithmetic_after=state)
    return measured


@pytest.mark.parametrize("precision", ["fp32", "o0", "o2", "fp16", "bf16"])
@pytest.mark.parametrize("switch", ["tf32_convolution", "tf32_matmul"])
def test_tf32_must_be_off_but_under_its_own_label(precision: str, switch: str) -> None:
    assert suspicions(switched(clean(precision), **{switch: True})) == (f"TF32 was on, labelled {precision}",)


@pytest.mark.parametrize("switch", ["tf32_convolution", "tf32_matmul"])
def test_tf32_must_be_on_under_its_own_label(switch: str) -> None:
    assert suspicions(switched(clean("tf32"), **{switch: False})) == ("TF32 was off, labelled tf32",)


def test_tf32_switches_mean_nothing_on_a_cpu_but_the_matmul_precision_does() -> None:
    assert suspicions(switched(on_cpu(), tf32_convolution=True, tf32_matmul=True)) == ()
    for said in ("high", "medium"):
        reason = f"float32's matmul precision was {said}, labelled fp32"
        assert suspicions(switched(on_cpu(), matmul_precision=said)) == (reason,)


def test_autocast_counts_on_the_device_that_was_measured_only() -> None:
    on = {"gpu": ("cuda:float16",), "cpu": ("cpu:bfloat16",)}
    gpu_said, cpu_said = ("autocast to float16 was on",), ("autocast to bfloat16 was on",)
    assert suspicions(switched(clean(), autocast=on["gpu"])) == gpu_said
    assert suspicions(switched(clean(), autocast=on["cpu"])) == ()
    assert suspicions(switched(on_cpu(), autocast=on["cpu"])) == cpu_said
    assert suspicions(switched(on_cpu(), autocast=on["gpu"])) == ()


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_only_o1_patches_torchs_functions(precision: str) -> None:
    reasons = () if precision == "o1" else ("torch's functions were patched (3 functions, 0123abcd)",)
    assert suspicions(switched(clean(precision), patched="3 functions, 0123abcd")) == reasons


def test_switches_that_change_during_the_timing_are_said_once_and_so_is_what_they_were() -> None:
    on = dataclasses.replace(OFF, tf32_matmul=True)
    measured = in_round(in_round(clean(), 1, arithmetic_after=on), 3, arithmetic_after=on)
    changed = "the process's arithmetic switches changed during the timing"
    assert suspicions(measured) == ("TF32 was on, labelled fp32", changed)
    flushing = in_round(clean(), 2, arithmetic_after=dataclasses.replace(OFF, flush_denormal=True))
    assert suspicions(flushing) == (changed,)


def test_switches_that_were_not_read_say_nothing() -> None:
    assert suspicions(clean(round_changes={"arithmetic_before": None, "arithmetic_after": TF32_ON})) == (
        "TF32 was on, labelled fp32",
    )
    assert suspicions(clean(round_changes={"arithmetic_before": None, "arithmetic_after": None})) == ()


def test_blocks_shorter_than_the_devices_work_are_suspect_from_one_percent_on() -> None:
    walls = (80.0,) * 8
    fine = in_round(clean(), 2, block_wall_ms=walls, block_device_ms=(80.8,) * 8)  # 0.99 of it
    assert suspicions(fine) == ()
    short = in_round(clean(), 2, block_wall_ms=walls, block_device_ms=(79.0,) * 6 + (80.9, 100.0))
    assert suspicions(short) == ("2 timed blocks were shorter than the device's work: 80 of 100 ms",)


@functools.cache
def counted(model: str) -> Work:
    return count(model, 224)


def at_rate(model: str, img_s: float, name: str = FP32_CONVOLUTION, precision: str = "fp32") -> Result:
    """Batches of 512; the profile fits the timing."""
    iteration_ms = 512 / img_s * 1e3 * 0.98
    shown = kernels(name, union_ms=iteration_ms, span_ms=iteration_ms)
    return clean(precision, img_s, batch=512, work=counted(model), kernels=shown)


def test_float32_at_5_times_its_rate_is_over_the_devices_peak() -> None:
    assert suspicions(at_rate("resnet50", 3300)) == ()
    # 132 SMs x 256 FLOP x 1980 MHz = 66.9 TFLOP/s; an image takes 5.9 GFLOP at least, 3x3 convolutions by Winograd
    (said,) = suspicions(at_rate("resnet50", 5 * 3300))
    assert re.fullmatch(r"9[78]\.?\d* TFLOP/s, over the device's peak of 66\.9", said)


def test_the_peak_is_passed_from_5_percent_on() -> None:
    flops = 132 * 256 * 1980e6
    one_layer = Work((LayerWork("conv1", "convolution", flops / 1000, 1, 1, 1),))
    assert suspicions(clean(img_s=1049.0, work=one_layer, kernels=Kernels(missing="-"))) == ()
    over = clean(img_s=1052.0, work=one_layer, kernels=Kernels(missing="-"))
    assert suspicions(over) == ("70.4 TFLOP/s, over the device's peak of 66.9",)


def test_winograd_may_do_with_a_quarter_so_that_vgg16_may_pass_the_peak() -> None:
    measured = at_rate("vgg16", 2600, WINOGRAD)
    seen_tflop_s = seen(measured, figures(measured.job, measured.rounds)).achieved_tflop_s
    assert seen_tflop_s is not None
    assert seen_tflop_s > 1.05 * 66.9
    assert suspicions(measured) == ()
    assert len(suspicions(at_rate("vgg16", 4.5 * 2600, WINOGRAD))) == 1


def test_where_an_fft_ran_only_the_layers_that_it_cannot_do_are_judged_by_arithmetic() -> None:
    assert suspicions(at_rate("vgg16", 20 * 2600, FFT)) == ()
    assert suspicions(at_rate("resnet50", 4 * 3300, FFT)) == ()
    (said,) = suspicions(at_rate("resnet50", 30 * 3300, FFT))  # its 1x1 convolutions alone are half of its work
    assert re.fullmatch(r"4\d\d TFLOP/s, over the device's peak of 66\.9", said)


def test_each_dtype_has_the_peak_of_its_own_unit() -> None:
    for precision, name in (("tf32", TF32_CONVOLUTION), ("fp16", HALF_CONVOLUTION)):
        assert suspicions(at_rate("resnet50", 5 * 3300, name, precision)) == ()
    (said,) = suspicions(at_rate("resnet50", 140_000, HALF_CONVOLUTION, "fp16"))  # no Winograd: all 8.2 GFLOP count
    assert re.fullmatch(r"11\d\d TFLOP/s, over the device's peak of 1071", said)
    (said,) = suspicions(at_rate("resnet50", 140_000, TF32_CONVOLUTION, "tf32"))
    assert said.endswith("over the device's peak of 535")


@pytest.mark.parametrize(
    "changes",
    [
        {"work": Work(missing="m at 224 pixels could not be counted")},
        {"work": Work()},
        {"round_changes": {"device_state": None}},
        {"round_changes": {"device_state": DeviceState(missing="NVML did not answer")}},
        {"environment": dataclasses.replace(ENVIRONMENT, compute_capability="99.0")},
    ],
    ids=["uncounted", "no layers", "no state", "no clock", "unknown device"],
)
def test_without_counted_work_or_a_known_peak_nothing_is_over_it(changes: dict[str, Any]) -> None:
    assert suspicions(clean(img_s=10_000_000.0, kernels=Kernels(missing="-"), **changes)) == ()


@pytest.mark.parametrize(
    ("precision", "half", "allowed"),
    [
        ("fp32", None, "1e-04"),
        ("o0", None, "1e-04"),
        ("tf32", None, "5e-03"),
        ("fp16", "float16", "1e-02"),
        ("bf16", "bfloat16", "3e-02"),
        ("o1", "float16", "1e-02"),
        ("o2", "bfloat16", "3e-02"),
        ("o3", "float16", "1e-02"),
    ],
)
def test_an_error_is_suspect_over_its_precisions_limit_and_not_at_it(
    precision: str, half: str | None, allowed: str
) -> None:
    limit = float(allowed)
    make = on_cpu if half == "bfloat16" and precision != "bf16" else clean
    assert suspicions(make(precision, numerics=Numerics(64, limit))) == ()
    (said,) = suspicions(make(precision, numerics=Numerics(64, 1.1 * limit)))
    assert said == f"the output is {1.1 * limit:.1e} off float32's, over {allowed}"


def test_outputs_that_are_no_numbers_are_suspect() -> None:
    assert suspicions(clean("fp16", numerics=Numerics(64, None, nan=3))) == ("the output holds 3 NaN and 0 Inf",)
    assert suspicions(clean("fp16", numerics=Numerics(64, None, inf=2))) == ("the output holds 0 NaN and 2 Inf",)
    assert suspicions(clean("fp16", numerics=Numerics(missing="no reference", nan=3, relative_error=9.0))) == ()


def with_state(measured: Result, number: int = 2, **changes: object) -> Result:
    """With another device state in one round."""
    return in_round(measured, number, device_state=dataclasses.replace(STATE, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [
        (0x0, ()),
        (0x1, ()),  # idle
        (0x2, ()),  # clocks that the user set
        (0x4, ()),  # the software power cap, under any heavy load
        (0x100, ()),  # display
        (0x8, ("throttled: hardware slowdown",)),
        (0x20, ("throttled: heat (software)",)),
        (0x40, ("throttled: heat (hardware)",)),
        (0x80, ("throttled: power brake",)),
        (0x4 | 0x8 | 0x40, ("throttled: hardware slowdown, heat (hardware)",)),
    ],
)
def test_clocks_held_down_by_heat_or_by_the_hardware_are_suspect(bits: int, reasons: tuple[str, ...]) -> None:
    held = (*samples(1965.0, 1965.0), DeviceSample(0.6, 1965.0, throttle=bits))
    assert suspicions(with_state(clean(), samples=held)) == reasons


@pytest.mark.parametrize(
    ("over_current", "reasons"),
    [
        ({"oc1": 0, "oc2": 0, "oc3": 0}, ()),
        (None, ()),
        ({"oc1": 2, "oc2": 0}, ("throttled: under-voltage (2 events)",)),
        (
            {"oc3": 37, "oc2": 15},
            ("throttled: average over-current (15 events), instantaneous over-current (37 events)",),
        ),
        ({"oc9": 1}, ("throttled: over-current oc9 (1 event)",)),
    ],
)
def test_over_current_in_the_timed_blocks_is_suspect(
    over_current: dict[str, int] | None, reasons: tuple[str, ...]
) -> None:
    assert suspicions(with_state(clean(), over_current=over_current)) == reasons


def test_heat_and_over_current_are_one_reason() -> None:
    held = with_state(clean(), samples=samples(1965.0, throttle=0x20), over_current={"oc3": 1})
    assert suspicions(held) == ("throttled: heat (software), instantaneous over-current (1 event)",)


def test_a_boards_power_that_never_changes_is_remarked() -> None:
    def remarks(rails_w: list[dict[str, float] | None]) -> tuple[str, ...]:
        told = tuple(DeviceSample(0.05 * n, 1965.0, rails_w=rails) for n, rails in enumerate(rails_w))
        measured = with_state(clean(), samples=told)
        return tuple(r for v in verdicts(measured, figures(measured.job, measured.rounds)) for r in v.reasons)

    still: list[dict[str, float] | None] = [{"VDD_IN": 12.5, "VDD_SOC": 2.8}] * 10
    stuck = "the board's power read the same 10 times in round 2: is its sensor stuck?"
    assert remarks(still) == (stuck,)
    assert remarks([*still[:9], {"VDD_IN": 12.5, "VDD_SOC": 2.9}]) == ()
    assert remarks(still[:9]) == ()
    assert remarks([None] * 12) == ()


def test_samples_outside_the_timed_blocks_say_nothing() -> None:
    before = [DeviceSample(at, 300.0, throttle=0x40) for at in (-2.0, -1.0, -0.001)]
    after = [DeviceSample(at, 300.0, throttle=0x40) for at in (0.651, 1.0, 2.0)]
    measured = with_state(clean(), samples=(*before, *STATE.samples, *after))
    assert verdicts(measured, figures(measured.job, measured.rounds)) == ()
    for at in (0.0, 0.65):  # their ends belong to them
        edge = (*STATE.samples, DeviceSample(at, 1965.0, throttle=0x40))
        assert suspicions(with_state(clean(), samples=edge)) == ("throttled: heat (hardware)",)


def test_a_clock_that_halves_midway_is_suspect_and_so_is_one_that_doubles() -> None:
    halved, doubled = samples(*[1960.0] * 5, *[980.0] * 5), samples(*[980.0] * 5, *[1960.0] * 5)
    assert suspicions(with_state(clean(), samples=halved)) == ("the SM clock went from 1960 to 980 MHz in round 2",)
    assert suspicions(with_state(clean(), samples=doubled)) == ("the SM clock went from 980 to 1960 MHz in round 2",)


def test_a_clock_that_moves_by_30_percent_or_for_one_sample_is_not_suspect() -> None:
    for clocks in ([1000.0] * 5 + [700.0] * 5, [1960.0] * 4 + [900.0] + [1960.0] * 5, [1960.0, 980.0], [None] * 9):
        assert suspicions(with_state(clean(), samples=samples(*clocks))) == ()
    assert len(suspicions(with_state(clean(), samples=samples(*[1000.0] * 5, *[690.0] * 5)))) == 1


@pytest.mark.parametrize(
    ("share", "source", "reasons"),
    [
        (None, None, ()),
        (0.049, "processes", ()),
        (0.05, "processes", ("others used 5% of the GPU (by processes)",)),
        (0.31, None, ("others used 31% of the GPU",)),
    ],
)
def test_others_on_the_gpu_are_suspect_from_5_percent_on(
    share: float | None, source: str | None, reasons: tuple[str, ...]
) -> None:
    assert suspicions(with_state(clean(), foreign_load=share, foreign_source=source)) == reasons


@pytest.mark.parametrize(
    ("share", "reasons"), [(None, ()), (0.049, ()), (0.05, ("others used 5% of the CPU",))], ids=["none", "less", "at"]
)
def test_others_on_the_cpu_count_where_the_cpu_was_measured(share: float | None, reasons: tuple[str, ...]) -> None:
    busy = {"host_state": HostState(foreign_load=share)}
    assert suspicions(in_round(on_cpu(), 3, **busy)) == reasons
    assert suspicions(in_round(clean(), 3, **busy)) == ()


@pytest.mark.parametrize(("moved", "reasons"), [(None, ()), (9.9, ()), (312.0, ("312 MiB were swapped",))])
def test_swapping_counts_where_the_job_is_in_the_memory_that_is_swapped(
    moved: float | None, reasons: tuple[str, ...]
) -> None:
    busy = {"host_state": HostState(swapped_mib=moved)}
    said = tuple(f"{reason} during the timed blocks" for reason in reasons)
    assert suspicions(in_round(on_cpu(), 3, **busy)) == said
    assert suspicions(in_round(clean(), 3, **busy)) == ()
    board = dataclasses.replace(clean(), environment=dataclasses.replace(clean().environment, shared_memory=True))
    assert suspicions(in_round(board, 3, **busy)) == said


def rising(change: float, noise: float = 0.001) -> Result:
    """Block times that rise by so much in every round."""
    walls = tuple(80.0 * (1 + change * n / 19) * (1 + noise * (1, -1, -1, 1)[n % 4]) for n in range(20))
    devices = tuple(0.98 * ms for ms in walls)
    return clean(round_changes={"block_wall_ms": walls, "block_device_ms": devices})


def test_times_that_rise_by_3_percent_are_suspect() -> None:
    assert suspicions(rising(0.02)) == ()
    assert suspicions(rising(0.05)) == ("times changed by +5.0% over the timed blocks",)
    assert suspicions(rising(-0.05)) == ("times changed by -5.0% over the timed blocks",)


def test_a_small_rise_is_wide_with_its_figure_and_not_suspect() -> None:
    assert remarks(rising(0.005)) == ()
    assert remarks(rising(0.02)) == ("times changed by +2.0% over the timed blocks",)
    assert remarks(rising(0.05)) == ()  # that is worse than wide


def test_a_rise_that_may_be_noise_is_not_suspect() -> None:
    noisy = rising(0.05, noise=0.2)
    seen_drift = drift(noisy.rounds)
    assert seen_drift is not None
    assert seen_drift.change > 0.03
    assert suspicions(noisy) == ()


def test_kernels_of_another_model_than_was_timed_are_no_evidence_of_it() -> None:
    device_ms = 8 / 999 * 1e3 * 0.98  # of an iteration of round 1, which was profiled
    for share, suspected in ((0.91, False), (1.04, False), (0.89, True), (1.06, True)):
        union_ms = share * device_ms
        found = suspicions(clean(kernels=kernels(FP32_CONVOLUTION, union_ms=union_ms, span_ms=union_ms * 1.01)))
        both = f"{union_ms:.3g} ms of kernels, 7.85 ms timed"
        assert found == ((f"the evidence does not match the timing: {both}",) if suspected else ())


def test_few_kernels_are_the_evidence_of_a_job_that_the_host_holds_back() -> None:
    assert suspicions(clean(kernels=kernels(FP32_CONVOLUTION, union_ms=2.0, span_ms=7.5))) == ()
    assert suspicions(clean(kernels=kernels(FP32_CONVOLUTION, union_ms=7.5 * 1.2, span_ms=80.0))) != ()
    assert suspicions(clean(kernels=dataclasses.replace(kernels(FP32_CONVOLUTION, union_ms=2.0), span_ms=None))) == ()


def test_blocks_in_which_the_host_fell_behind_do_not_contradict_the_kernels() -> None:
    walls = (80.0, 80.0, 120.0, 121.0, 119.0, 80.0, 122.0, 118.0)
    slow = in_round(clean(), 1, block_wall_ms=walls, block_device_ms=tuple(0.98 * ms for ms in walls))
    assert suspicions(slow) == ()


def test_evidence_is_compared_with_the_round_that_it_was_collected_in() -> None:
    slow = tuple(ms * 1.2 for ms in clean().rounds[0].block_wall_ms)
    others = {"block_wall_ms": slow, "block_device_ms": tuple(ms * 0.98 for ms in slow)}
    assert suspicions(in_round(in_round(clean(), 2, **others), 3, **others)) == ()  # other kernels in other processes
    (said,) = suspicions(in_round(clean(), 1, **others))
    assert said == "the evidence does not match the timing: 7.7 ms of kernels, 9.42 ms timed"


def test_every_suspicion_is_a_reason_of_one_verdict() -> None:
    measured = clean(
        dtypes=seeing(*operators("float16")), kernels=kernels(HALF_CONVOLUTION), numerics=Numerics(64, 0.1)
    )
    measured = with_state(switched(measured, tf32_matmul=True), foreign_load=0.5)
    assert suspect(measured, figures(measured.job, measured.rounds)) == Verdict(
        "suspect",
        (
            "observed float16 in 54 of 54 operators, labelled float32",
            "kernels multiply in float16 for 7.7 ms an iteration, labelled fp32",
            "TF32 was on, labelled fp32",
            "the output is 1.0e-01 off float32's, over 1e-04",
            "others used 50% of the GPU (by processes)",
        ),
    )


def test_a_result_without_evidence_is_not_suspect_for_the_lack_of_it() -> None:
    assert suspicions(in_round(clean(), 1, evidence=None)) == ()


# --- unverified ---


def unverified_reasons(measured: Result) -> tuple[str, ...]:
    found = unverified(measured, figures(measured.job, measured.rounds))
    return () if found is None else found.reasons


@pytest.mark.parametrize(
    ("precision", "changes", "reasons"),
    [
        ("fp32", {}, ()),
        ("fp32", {"dtypes": Dtypes(SAID, missing="it raised")}, ("dtypes were not observed: it raised",)),
        ("fp32", {"dtypes": Dtypes(SAID)}, ("dtypes were not observed: no operator that does arithmetic",)),
        ("fp32", {"kernels": Kernels(missing="no right")}, ("kernels were not observed: no right",)),
        ("tf32", {"kernels": Kernels(missing="no right")}, ("kernels were not observed: no right",)),
        ("fp16", {"kernels": Kernels(missing="no right")}, ()),  # half arguments have no other arithmetic to hide
        ("fp16", {"numerics": Numerics(missing="no reference")}, ("outputs were not compared: no reference",)),
        (
            "o1",
            {
                "dtypes": seeing(*operators("float16"), O1_ATTENTION),
                "kernels": Kernels(missing="no right"),
                "numerics": Numerics(missing="no reference"),
            },
            ("kernels were not observed: no right", "outputs were not compared: no reference"),
        ),
    ],
)
def test_what_was_not_seen_is_unverified(precision: str, changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    assert unverified_reasons(clean(precision, **changes)) == reasons


def test_without_evidence_all_is_unverified() -> None:
    assert unverified_reasons(in_round(clean(), 1, evidence=None)) == ("dtypes and kernels were not observed",)


# --- wide by its clock ---


@pytest.mark.parametrize(
    ("clock", "throttle", "reasons"),
    [
        (1690.0, None, ()),
        (1683.0, None, ()),  # 0.85 of 1980
        (1410.0, None, ("SM clock 1410 of 1980 MHz",)),
        (990.0, 0x4, ("SM clock 990 of 1980 MHz (power cap)",)),
        (990.0, 0x2, ("SM clock 990 of 1980 MHz",)),  # as the user set it
        (1965.0, 0x4, ()),
    ],
)
def test_a_steady_low_clock_is_wide_with_its_figures_and_nothing_worse(
    clock: float, throttle: int | None, reasons: tuple[str, ...]
) -> None:
    measured = clean()
    for number in (1, 2, 3):
        measured = with_state(measured, number, samples=samples(*[clock] * 9, throttle=throttle))
    expected = (Verdict("wide", reasons, ADVICE),) if reasons else ()
    assert verdicts(measured, figures(measured.job, measured.rounds)) == expected


# --- other remarks ---


def test_convolutions_in_another_layout_than_the_jobs_are_said() -> None:
    mixed = seeing(
        OperatorCount("aten.conv2d", ("float32",) * 2, 50, "nhwc"),
        OperatorCount("aten.conv2d", ("float32",) * 2, 2, "nchw"),
        OperatorCount("aten.conv2d", ("float32",) * 2, 1),
        OperatorCount("aten.linear", ("float32",) * 3, 1),
    )
    assert remarks(clean(job={"layout": "nhwc"}, dtypes=mixed)) == ("2 of 52 convolutions ran in nchw, not in nhwc",)
    assert remarks(clean(job={"layout": "nchw"}, dtypes=mixed)) == ("50 of 52 convolutions ran in nhwc, not in nchw",)


def test_denormal_numbers_are_hinted_at_where_they_are_not_flushed() -> None:
    said = ("denormals: 5.0% of the numbers are under 1.2e-38, which slows a CPU down",)
    flushing = dataclasses.replace(OFF, flush_denormal=True)
    few, many = (dataclasses.replace(seeing(*operators("float32")), denormal_fraction=f) for f in (0.009, 0.05))
    assert remarks(on_cpu(dtypes=few)) == ()
    assert remarks(on_cpu(dtypes=many)) == said
    flushed = {"arithmetic_before": flushing, "arithmetic_after": flushing}
    assert remarks(on_cpu(dtypes=many, round_changes=flushed)) == ()


def test_half_of_the_gpus_memory_held_by_others_is_said() -> None:
    environment = dataclasses.replace(ENVIRONMENT, device_memory_mib=81920)
    states = {mib: dataclasses.replace(STATE, foreign_memory_mib=mib) for mib in (40000.0, 40960.0)}
    found = {
        mib: remarks(clean(environment=environment, round_changes={"device_state": state}))
        for mib, state in states.items()
    }
    assert found == {40000.0: (), 40960.0: ("others held 40.0 of the GPU's 80.0 GiB",)}


def test_verdicts_come_suspect_first_then_unverified_then_wide() -> None:
    measured = clean("fp32", dtypes=seeing(*operators("float16")), numerics=Numerics(missing="no reference"))
    measured = dataclasses.replace(measured, rounds=measured.rounds[:2], stopped="budget")
    assert [rule.__name__ for rule in RULES] == ["suspect", "unverified", "wide"]
    assert verdicts(measured, figures(measured.job, measured.rounds)) == (
        Verdict("suspect", ("observed float16 in 54 of 54 operators, labelled float32",)),
        Verdict("unverified", ("outputs were not compared: no reference",)),
        Verdict("wide", ("2 of 3 rounds (budget)",), ADVICE),
    )
