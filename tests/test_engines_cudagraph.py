"""The CUDA graph engine: the same kernels and outputs as eager's, launched at once."""

from __future__ import annotations

import pytest
import torch

from tcsweep.engines import ENGINES
from tcsweep.job import Environment, Job
from tcsweep.models import build_input, build_model, memory_format
from tcsweep.precision import PRECISIONS

GPU = torch.cuda.is_available()
gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no CUDA GPU")]


def test_it_needs_a_gpu_and_says_so() -> None:
    assert ENGINES["cudagraph"].missing(Environment(device="cpu")) == "CUDA graphs need a GPU"
    assert ENGINES["cudagraph"].missing(Environment(device="cuda:0")) is None


@pytest.mark.parametrize("precision", [pytest.param(p, marks=gpu) for p in ("fp32", "fp16", "bf16", "o2")])
def test_a_replay_gives_eagers_outputs_for_what_is_in_the_input_now_and_the_captures_dtypes(precision: str) -> None:
    device = torch.device("cuda")
    job = Job(model="resnet18", image_size=64, batch=4, precision=precision, layout="nhwc", device="cuda:0")
    with torch.no_grad():
        model = build_model(job, device).to(memory_format=memory_format(job.layout))
        prepared = PRECISIONS[precision].prepare(model, device, "torch" if precision.startswith("o") else None)
    with torch.inference_mode():
        x = build_input(job, prepared.input_dtype, device)
        eager, graph = (ENGINES[name].build(prepared, x) for name in ("eager", "cudagraph"))
        watched = ENGINES["eager"].observed(eager)
        for seed in (1, 2):
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
            assert torch.allclose(graph().float(), watched().float(), rtol=1e-2, atol=1e-2)
        seen = ENGINES["cudagraph"].observed(graph).dtypes
    assert (seen.operators, seen.missing) == (watched.dtypes.operators, None)
    assert seen.source == "ATen operators of the capture"
