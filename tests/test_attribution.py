"""Where the time went, on results recorded on an H100: the parts are the whole."""

from __future__ import annotations

import pytest

from tcsweep.attribution import WAITING, Part, attribution
from tcsweep.job import Job

from .test_why import ROWS, SWEEPS

PAIRS = [(sweep, label) for sweep, label in ROWS if "fp16" in label or "-o" in label]


def whole(sweep: str, label: str) -> float:
    row = ROWS[sweep, label]
    assert row.figures is not None
    return row.job.batch / row.figures.throughput_img_s * 1e3


@pytest.mark.parametrize(("sweep", "label"), PAIRS)
def test_the_parts_add_up_to_both_iterations_and_to_the_gain(sweep: str, label: str) -> None:
    row = ROWS[sweep, label]
    parts = attribution(row, SWEEPS[sweep])
    if row.verdict == "suspect":
        assert parts == ()
        return
    before = sum(part.before_ms for part in parts)
    after = sum(part.after_ms for part in parts)
    assert after == pytest.approx(whole(sweep, label))
    assert row.speedup.value is None or before / after == pytest.approx(row.speedup.value)


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
