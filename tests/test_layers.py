"""`layers`: each convolution and linear layer, whether it can use tensor cores, and what ran."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tcsweep import layers
from tcsweep.job import Result
from tcsweep.layers import Line, dtype_of, listed, summary
from tcsweep.mistakes import Mistake

from .test_report import job as a_job
from .test_report import measured, save
from .test_why import ROWS

ROOT = Path(__file__).parents[1]


def result(sweep: str, label: str) -> Result:
    found = ROWS[sweep, label].outcome
    assert isinstance(found, Result)
    return found


def by_name(one: Result, arch: str | None = None) -> dict[str, Line]:
    return {line.work.name: line for line in listed(one, arch)}


def test_resnet50_in_half_on_an_h100_ran_on_tensor_cores_layer_by_layer() -> None:
    one = result("r50-layers", "resnet50-fp16-b128-nhwc-eager")
    lines = by_name(one)
    assert len(lines) == 54
    first = lines["conv1"]
    assert (first.shape, first.able) == ("3 → 64, 7x7", ("float16", "int8", "bfloat16", "tf32", "fp8"))
    assert first.kernel is not None
    assert first.kernel.name.startswith("sm90_xmma_fprop_image_first_layer_f16f16")
    assert first.reason == "3 to 64 channels: no multiple of 8, cuDNN folds or pads"
    assert lines["layer1.0.conv2"].reason == "yes"
    assert all(line.kernel and line.kernel.unit == "tensor-core" for line in lines.values())
    could, did = summary(list(lines.values()), one, None).split("; ")
    assert could == "54 of 54 layers, 100% of their operations, could use sm_90's tensor cores in float16"
    assert did == "54 of 54 did, 100% of their time"


def test_float32_is_no_matter_for_tensor_cores_and_depthwise_layers_are_none() -> None:
    fp32 = by_name(result("r50-layers", "resnet50-fp32-b128-nhwc-eager"))
    assert fp32["layer1.0.conv2"].reason == "sm_90 multiplies no float32 on tensor cores; tf32 would"
    mobile = result("four-layers", "mobilenet_v2-fp16-b1-nhwc-eager")
    depthwise = by_name(mobile)["features.1.conv.0.0"]
    assert (depthwise.shape, depthwise.able) == ("32 → 32, 3x3, 32 groups", ())
    assert depthwise.reason == "depthwise: one channel a group leaves no matrix to multiply"
    assert "36 of 53 layers, 93% of their operations, could use sm_90's" in summary(listed(mobile), mobile, None)


def test_another_architecture_is_told_by_its_capability() -> None:
    one = result("r50-layers", "resnet50-fp16-b128-nhwc-eager")
    assert by_name(one, "7.2")["layer1.0.conv2"].able == ("float16", "int8")
    assert by_name(one, "5.3")["layer1.0.conv2"].able == ()
    assert summary(listed(one, "5.3"), one, "5.3").startswith("0 of 54 layers, 0% of their operations, could use sm_53")


def test_layers_of_a_fused_module_are_told_with_it() -> None:
    lines = by_name(result("four-layers", "vit_b_16-fp16-b64-nhwc-eager"))
    attention = "encoder.layers.encoder_layer_0.self_attention"
    assert (lines[attention].within, lines[f"{attention}.out_proj"].within) == (None, attention)
    assert lines[f"{attention}.out_proj"].ms is None


def test_on_a_cpu_there_are_times_and_no_kernels_and_half_is_what_the_gpu_would_take() -> None:
    one = result("cpu", "mobilenet_v2-o1-b1-nchw-eager-cpu")
    first = listed(one)[0]
    assert first.kernel is None
    assert first.ms is not None
    assert (dtype_of(one), dtype_of(one, "7.2")) == ("bfloat16", "float16")
    assert "a GPU of sm_80 or newer's tensor cores in bfloat16" in summary(listed(one), one, None)


def test_the_command_lists_a_saved_sweep_and_needs_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, [dataclasses.replace(result("r50-layers", "resnet50-fp16-b128-nhwc-eager"), role="asked", index=0)])
    assert layers.main([str(tmp_path), "arch=72"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("resnet50 · fp16 · batch 128 · nhwc · eager · NVIDIA H100 80GB HBM3")
    assert "layer4.2.conv3" in said
    assert "could use sm_72's tensor cores in float16" in said


def test_a_job_is_measured_briefly_and_its_result_is_kept(tmp_path: Path) -> None:
    words = ["model=resnet18", "precision=bf16", "batch=1", "device=cpu", "model.image_size=64"]
    words += ["measure.timed_s_min=0.05", "measure.timed_s_max=0.05", "measure.warmup_s_min=0.05"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tcsweep", "layers", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "layer4.1.conv2" in done.stdout
    assert "kernels: a CPU runs no GPU kernels; arch=7.2 tells" in done.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 2  # its fp32 baseline, too


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "layers takes overrides or a sweep's folder"),
        (["arch=7.2"], "layers takes overrides or a sweep's folder"),
        (["model=resnet18", "arch=orin"], r"arch=orin: not a compute capability, such as 5.3 \(Nano\)"),
        (["nowhere"], "nowhere: no sweep is saved there"),
        (["--x"], "layers takes overrides or a sweep's folder"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match=said):
        layers.main(arguments)


def test_a_sweep_without_counted_layers_says_so(tmp_path: Path) -> None:
    save(tmp_path, [measured(a_job("fp16"), 0, 100, 101, 99)])
    with pytest.raises(Mistake, match="its layers were not counted"):
        layers.main([str(tmp_path)])
