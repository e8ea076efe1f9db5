"""Where the time went, on results recorded on an H100: the parts are the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcsweep.attribution import WAITING, Part, attribution, by_layer, kind_of_module, longest
from tcsweep.job import Job
from tcsweep.speedup import Row

from .test_why import ROWS, SWEEPS

PAIRS = [(sweep, label) for sweep, label in ROWS if "fp32" not in label]


def whole(row: Row) -> float:
    assert row.figures is not None
    return row.job.batch / row.figures.throughput_img_s * 1e3


@pytest.mark.parametrize("split", [attribution, by_layer])
@pytest.mark.parametrize(("sweep", "label"), PAIRS)
def test_the_parts_add_up_to_both_iterations(
    sweep: str, label: str, split: Callable[[Row, list[Row]], tuple[Part, ...]]
) -> None:
    row = ROWS[sweep, label]
    parts = split(row, SWEEPS[sweep])
    baseline = next(r for r in SWEEPS[sweep] if r.job.is_baseline and r.job.cell == row.job.cell)
    layers = [r.outcome.evidence.layers for r in (row, baseline)]
    seen = split is attribution or all(one is not None and one.layers for one in layers)
    if "suspect" in (row.verdict, baseline.verdict) or not seen:
        assert parts == ()
        return
    assert sum(part.after_ms for part in parts) == pytest.approx(whole(row))
    assert sum(part.before_ms for part in parts) == pytest.approx(whole(baseline))
    shown = longest(parts, 5)
    assert len(shown) <= 6
    assert sum(part.saved_ms for part in shown) == pytest.approx(whole(baseline) - whole(row))


def test_in_resnet50_at_batch_128_convolutions_gained_9_times_and_batch_norm_less_than_2() -> None:
    parts = {p.name: p for p in attribution(ROWS["r50", "resnet50-fp16-b128-nhwc-eager"], SWEEPS["r50"])}
    assert parts["convolution/GEMM"].speedup == pytest.approx(9.3, abs=0.1)
    assert parts["batch norm"].speedup == pytest.approx(1.7, abs=0.1)
    assert next(iter(parts)) == "convolution/GEMM"
    assert WAITING in parts


def test_a_baseline_and_a_job_without_one_have_no_parts() -> None:
    fp32 = ROWS["r50", "resnet50-fp32-b128-nhwc-eager"]
    assert attribution(fp32, SWEEPS["r50"]) == ()
    assert attribution(ROWS["r50", "resnet50-fp16-b128-nhwc-eager"], []) == ()
    assert Job().is_baseline
    assert Part("copy", 1.0, 0.0).speedup is None


def test_on_a_cpu_the_kinds_are_the_modules() -> None:
    parts = {p.name: p for p in attribution(ROWS["cpu", "resnet18-o1-b8-nchw-eager-cpu"], SWEEPS["cpu"])}
    assert {"convolution/GEMM", "batch norm", "pooling", "elementwise", "between the layers"} == set(parts)
    assert parts["convolution/GEMM"].before_ms > sum(p.before_ms for p in parts.values()) / 2
    modules = (
        "Conv2d",
        "Conv2dNormActivation",
        "BatchNorm2d",
        "LayerNorm",
        "Hardswish",
        "MultiheadAttention",
        "MaxPool2d",
    )
    assert [kind_of_module(module) for module in modules] == [
        *("convolution/GEMM", "between the layers", "batch norm", "other", "elementwise", "attention", "pooling"),
    ]


def test_the_layers_that_gained_most_are_named() -> None:
    parts = by_layer(ROWS["r50nchw-layers", "resnet50-fp16-b128-nchw-eager"], SWEEPS["r50nchw-layers"])
    first, *_ = longest(parts, 3)
    assert first.name.endswith("conv2")  # a 3x3
    assert longest(parts, 3)[-1].name == f"the other {len(parts) - 3} layers"
