"""A sweep against what others published for its device."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tcsweep import published, speedup
from tcsweep.job import Environment
from tcsweep.published import device, figures, gap, line, steps

from .test_report import job, measured
from .test_why import ROWS, SWEEPS

XAVIER = Environment(device="cuda:0", device_name="Xavier", module="Jetson-AGX", compute_capability="7.2")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (Environment(device="cuda:0", device_name="NVIDIA H100 80GB HBM3"), "H100 SXM"),
        (Environment(device="cuda:0", device_name="NVIDIA H100 PCIe"), None),
        (Environment(device="cuda:0", device_name="NVIDIA H200"), "H200"),
        (XAVIER, "AGX Xavier"),
        (
            Environment(device="cuda:0", device_name="Orin", module="NVIDIA Jetson AGX Orin Developer Kit"),
            "AGX Orin 64GB",
        ),
        (Environment(device="cuda:0", device_name="Orin", module="NVIDIA Jetson Orin NX Engineering"), "Orin NX"),
        (Environment(device="cuda:0", device_name="NVIDIA GeForce RTX 4090"), None),
        (Environment(device="cpu", module="Jetson-AGX"), None),
    ],
)
def test_a_device_is_known_by_its_module_or_gpu(environment: Environment, name: str | None) -> None:
    assert device(environment) == name


def test_every_published_figure_has_a_source() -> None:
    assert len(figures()) == 17
    assert all(p.source and p.img_s > 0 for p in figures())


def test_an_h100_is_compared_with_its_mlperf_row_and_the_gap_is_in_measured_factors() -> None:
    said = line(SWEEPS["r50"])
    assert said is not None
    assert said.startswith(
        "resnet50 fp16 batch 128: 13484 img/s is 15% of the published 88462 (INT8, TensorRT, MLPerf "
    )
    assert "measured here: fp16 and nhwc 3.92x, cudagraph 1.03x; left: 6.6x" in said


def test_the_steps_multiply_to_the_whole() -> None:
    best = ROWS["r50", "resnet50-fp16-b128-nhwc-cudagraph"]
    first = ROWS["r50", "resnet50-fp32-b128-nchw-eager"]
    assert best.figures is not None
    assert first.figures is not None
    whole = best.figures.throughput_img_s / first.figures.throughput_img_s
    assert math.prod(gain for _, gain in steps(best, SWEEPS["r50"])) == pytest.approx(whole)


def test_the_published_puzzles_own_figures_are_set_against_the_best_of_that_board() -> None:
    rates = {"o3": 308, "o2": 310, "o1": 310}
    outcomes = [
        measured(job(p, batch=100, amp_backend="torch"), i, rate, environment=XAVIER)
        for i, (p, rate) in enumerate(rates.items())
    ]
    found = gap(speedup.rows(outcomes))
    assert found is not None
    assert (found.of.img_s, found.of.precision, round(found.share, 3)) == (2039.11, "int8", 0.152)
    jetson = [dataclasses.replace(p, device="AGX Xavier", note="") for p in figures() if p.img_s == 1941]
    quoted = gap(speedup.rows(outcomes), jetson)
    assert quoted is not None
    assert round(quoted.share, 2) == 0.16  # "308 img/s is 16% of the published 1941"


def test_a_figure_that_is_known_to_be_wrong_is_no_aim_and_an_unknown_device_has_none() -> None:
    wrong = [p for p in figures() if "contaminated" in p.note]
    assert wrong
    outcomes = [measured(job("fp16", batch=100), 0, 308, environment=XAVIER)]
    assert gap(speedup.rows(outcomes), wrong) is None
    assert line(speedup.rows([measured(job("fp16"), 0, 300)])) is not None  # an H200
    assert line(speedup.rows([measured(job("fp16", model="vgg16"), 0, 300)])) is None
    assert published.line([]) is None
