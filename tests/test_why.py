"""The explainer on 47 results recorded on an H100, what its predictions came to there, and made-up edge cases."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tcsweep import speedup, why
from tcsweep.evidence.facts import Kernels
from tcsweep.job import Result, outcome_from_json
from tcsweep.speedup import Row
from tcsweep.why import Cause, explain, lines

from .evident import clean, on_cpu

RECORDED = Path(__file__).parent / "data" / "recorded_h100.json.gz"


def recorded() -> dict[str, list[Row]]:
    """The rows of each recorded sweep (2026-11-27, H100 80GB HBM3, torch 2.11.0+cu130, measure=quick)."""
    found: dict[str, list[Any]] = {}
    for one in json.loads(gzip.decompress(RECORDED.read_bytes())):
        found.setdefault(one.pop("sweep"), []).append(outcome_from_json(one))
    return {name: speedup.rows(outcomes) for name, outcomes in found.items()}


SWEEPS = recorded()
ROWS = {(name, row.job.label.removesuffix("-cuda0")): row for name, rows in SWEEPS.items() for row in rows}


def causes(sweep: str, label: str) -> tuple[Cause, ...]:
    return explain(ROWS[sweep, label], SWEEPS[sweep])


def named(sweep: str, label: str, name: str) -> Cause:
    return next(cause for cause in causes(sweep, label) if cause.name == name)


def rate(sweep: str, label: str) -> float:
    found = ROWS[sweep, label].figures
    assert found is not None
    return found.throughput_img_s


FIRST = {
    ("r50", "resnet50-fp16-b1-nhwc-eager"): "launch-bound",
    ("r50", "resnet50-fp16-b1-nhwc-cudagraph"): "elementwise-bound",
    ("r50", "resnet50-fp16-b128-nhwc-eager"): "elementwise-bound",
    ("r50", "resnet50-fp16-b128-nhwc-cudagraph"): "elementwise-bound",
    ("r50", "resnet50-fp32-b1-nhwc-eager"): "launch-bound",
    ("r50", "resnet50-fp32-b1-nhwc-cudagraph"): "small batch",
    ("r50", "resnet50-fp32-b128-nhwc-eager"): "elementwise-bound",
    ("r50", "resnet50-fp32-b1-nchw-eager"): "launch-bound",
    ("r50", "resnet50-fp32-b128-nchw-eager"): "nothing found",
    ("r50nchw", "resnet50-fp16-b128-nchw-eager"): "elementwise-bound",
    ("vit", "vit_b_16-o1-b64-nchw-eager"): "off the tensor cores",
    ("vit", "vit_b_16-o2-b64-nchw-eager"): "nothing found",
    ("vit", "vit_b_16-fp32-b64-nchw-eager"): "close to the roof",
    ("four", "resnext50_32x4d-fp16-b1-nhwc-eager"): "launch-bound",
    ("four", "resnext50_32x4d-fp16-b64-nhwc-eager"): "elementwise-bound",
    ("four", "vit_b_16-fp16-b1-nhwc-eager"): "launch-bound",
    ("four", "vit_b_16-fp16-b64-nhwc-eager"): "nothing found",
    ("four", "vit_b_16-fp32-b64-nhwc-cudagraph"): "close to the roof",
    ("four", "efficientnet_b0-fp16-b1-nhwc-eager"): "launch-bound",
    ("four", "efficientnet_b0-fp16-b64-nhwc-cudagraph"): "elementwise-bound",
    ("four", "mobilenet_v2-fp32-b1-nhwc-eager"): "launch-bound",
    ("four", "mobilenet_v2-fp16-b1-nhwc-eager"): "launch-bound",
    ("four", "mobilenet_v2-fp16-b64-nhwc-cudagraph"): "elementwise-bound",
    ("four", "mobilenet_v2-fp32-b64-nhwc-eager"): "elementwise-bound",
}


@pytest.mark.parametrize(("sweep", "label"), FIRST)
def test_the_first_cause_of_recorded_jobs(sweep: str, label: str) -> None:
    assert causes(sweep, label)[0].name == FIRST[sweep, label]


GRAPHS = [
    (sweep, label) for (sweep, label), name in FIRST.items() if name == "launch-bound" and "nchw" not in label
]  # fmt: skip


@pytest.mark.parametrize(("sweep", "label"), GRAPHS)
def test_the_gain_of_a_graph_that_was_predicted_was_had_within_15_percent(sweep: str, label: str) -> None:
    cause = named(sweep, label, "launch-bound")
    assert cause.gain is not None
    had = rate(sweep, label.replace("eager", "cudagraph")) / rate(sweep, label)
    assert cause.gain.high == pytest.approx(had, rel=0.15)
    assert (cause.advice or "").startswith("engine=cudagraph")


def test_the_busy_share_of_resnet50_at_batch_1_is_near_a_fifth() -> None:
    assert "the GPU is busy 21% of the time; 282 kernels take 0.831 of 4.01 ms" in causes(
        "r50", "resnet50-fp16-b1-nhwc-eager"
    )[0].text.replace("launch-bound: ", "")


def test_batch_norm_is_near_a_third_of_batch_128_and_what_moves_data_gained_less_than_what_multiplies() -> None:
    cause = named("r50", "resnet50-fp16-b128-nhwc-eager", "elementwise-bound")
    assert cause.text == (
        "elementwise-bound: 70% of device time moves data (batch norm 31%); over fp32 it gained 2.9x, convolutions and "
        "products 9.3x"
    )
    assert cause.gain is not None
    compiled_img_s = 24373  # torch.compile with frozen weights and CUDA graphs, on such a card in the same hour
    assert compiled_img_s / rate("r50", "resnet50-fp16-b128-nhwc-eager") < cause.gain.high


def test_the_gain_of_nhwc_lay_in_the_range_that_was_predicted() -> None:
    cause = named("r50nchw", "resnet50-fp16-b128-nchw-eager", "layout conversions")
    had = rate("r50", "resnet50-fp16-b128-nhwc-eager") / rate("r50nchw", "resnet50-fp16-b128-nchw-eager")
    assert cause.gain is not None
    assert 1 < cause.gain.low <= had <= cause.gain.high
    assert (cause.advice, "16% of device time" in cause.text) == ("layout=nhwc", True)


def test_attention_that_o1_left_in_float32_is_named_and_o2_gained_no_more_than_was_said() -> None:
    cause = named("vit", "vit_b_16-o1-b64-nchw-eager", "off the tensor cores")
    had = rate("vit", "vit_b_16-o2-b64-nchw-eager") / rate("vit", "vit_b_16-o1-b64-nchw-eager")
    assert "12 of 38 operators were left in float32" in cause.text
    assert cause.advice == "precision=o2 or fp16"
    assert cause.gain is not None
    assert had <= cause.gain.high <= 1.5 * had


def test_depthwise_convolutions_off_the_tensor_cores_are_named() -> None:
    cause = named("four", "efficientnet_b0-fp16-b64-nhwc-cudagraph", "off the tensor cores")
    assert "(depthwise or grouped)" in cause.text


def test_no_figure_is_explained_that_is_not_to_be_believed() -> None:
    assert causes("four", "efficientnet_b0-fp16-b64-nhwc-eager") == ()  # its times fell by 24% meanwhile
    assert ROWS["four", "efficientnet_b0-fp16-b64-nhwc-eager"].verdict == "suspect"


def row_of(result: Result) -> Row:
    return next(row for row in speedup.rows([result]) if row.job == result.job)


def test_what_was_not_seen_is_said_with_the_way_to_see_it() -> None:
    row = row_of(clean("fp16", kernels=Kernels(missing="the profiler has no right: sudo ...")))
    assert explain(row, [row]) == (Cause("not explained", "no kernels were seen: the profiler has no right: sudo ..."),)


def test_a_gpu_without_tensor_cores_and_a_cpu_without_bfloat16_are_told() -> None:
    result = clean("fp16")
    old = dataclasses.replace(result.environment, compute_capability="5.3", device_name="Jetson Nano")
    row = row_of(dataclasses.replace(result, environment=old))
    assert "Jetson Nano has no tensor cores" in " ".join(cause.text for cause in explain(row, [row]))
    result = on_cpu("bf16")
    plain = dataclasses.replace(result.environment, cpu_features=("avx2",))
    row = row_of(dataclasses.replace(result, environment=plain))
    assert [cause.name for cause in explain(row, [row])] == ["no bfloat16 unit"]


def test_a_terminal_gets_three_causes_and_five_lines_at_most_with_their_gains() -> None:
    assert lines(SWEEPS["r50"]) == [
        "fp16 batch 1 nhwc eager: launch-bound, the GPU is busy 21% of the time; "
        "try engine=cudagraph, or a larger batch: up to 4.4x",
        "fp16 batch 128 nhwc eager: elementwise-bound, 70% of device time moves data, batch norm 31%; "
        "fused: up to 2.8x",
    ]
    assert lines(SWEEPS["r50nchw"])[1] == (
        "fp16 batch 128 nchw eager: layout conversions, 16% of device time; try layout=nhwc: 1.2x to 1.9x"
    )
    for rows in SWEEPS.values():
        assert sum(-(-len(line) // 40) for line in lines(rows, 40)) <= 5
    assert lines(SWEEPS["four"])[0].startswith("efficientnet_b0 fp16 batch 1 nhwc eager: launch-bound, ")


def test_every_gain_is_a_figure_and_nothing_is_advised_that_cannot_run_here() -> None:
    for name, rows in SWEEPS.items():
        for row in rows:
            for cause in explain(row, rows):
                assert cause.gain is None or cause.gain.high >= cause.gain.low >= 1, (name, row.job.label, cause)
                assert not (cause.advice or "").startswith("engine=") or row.job.device.startswith("cuda")


def test_a_sum_of_lines_is_what_the_rows_say() -> None:
    row = ROWS["r50nchw", "resnet50-fp16-b128-nchw-eager"]
    said = list(why.causes(row, SWEEPS["r50nchw"]))
    assert said[1].endswith("[1.2x to 1.9x]; try layout=nhwc")
