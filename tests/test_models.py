from __future__ import annotations

import dataclasses
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torchvision
from torch import nn

from tcsweep.job import Job
from tcsweep.models import HostMemoryError, build_input, build_model, memory_format

CPU = torch.device("cpu")
SMALL = Job(model="mobilenet_v3_small", image_size=32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def output(job: Job) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = build_model(job, CPU)(build_input(job, torch.float32, CPU))
    return found


def same(one: nn.Module, two: nn.Module) -> bool:
    """Whether two models have the same names and values."""
    a, b = one.state_dict(), two.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_is_float32_and_in_eval_mode() -> None:
    model = build_model(SMALL, CPU)
    assert {m.training for m in model.modules()} == {False}
    assert {(p.dtype, p.device) for p in model.parameters()} == {(torch.float32, CPU)}


def test_a_seed_is_the_weights() -> None:
    model = build_model(SMALL, CPU)
    assert same(model, build_model(SMALL, CPU))
    assert not same(model, build_model(dataclasses.replace(SMALL, seed=1), CPU))


def test_weights_do_not_follow_from_what_was_drawn_before() -> None:
    model = build_model(SMALL, CPU)
    torch.rand(7)
    assert same(model, build_model(dataclasses.replace(SMALL, batch=8, layout="nhwc"), CPU))


@pytest.mark.parametrize(("name", "heads"), [("inception_v3", ["AuxLogits"]), ("googlenet", ["aux1", "aux2"])])
def test_inception_is_built_without_its_heads_its_slow_initialisation_and_its_warning(
    monkeypatch: pytest.MonkeyPatch, name: str, heads: list[str]
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("truncated normals take minutes")

    monkeypatch.setattr(nn.init, "trunc_normal_", slow)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = build_model(Job(model=name, image_size=96), CPU)
    assert [getattr(model, head, None) for head in heads] == [None] * len(heads)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_a_vision_transformer_is_built_for_the_image_size() -> None:
    assert output(Job(model="vit_b_32", image_size=64, batch=2)).shape == (2, 1000)


class Builder:
    """Stands for torchvision's builder of a model: keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls: list[dict[str, Any]] = []

        def builder(*, weights: str | None = None, **kwargs: Any) -> nn.Module:
            self.calls.append({"weights": weights, **kwargs})
            return nn.Linear(2, 2)

        builder.__name__ = name
        monkeypatch.setattr(torchvision.models, "get_model_builder", lambda asked: {name: builder}[asked])


@pytest.mark.parametrize(
    ("model", "weights", "expected"),
    [
        ("vit_b_16", None, {"weights": None, "image_size": 64}),
        ("vit_b_16", "IMAGENET1K_V1", {"weights": "IMAGENET1K_V1"}),
        ("resnet18", "IMAGENET1K_V1", {"weights": "IMAGENET1K_V1"}),
        ("resnet18", None, {"weights": None}),
        ("inception_v3", None, {"weights": None, "init_weights": False, "aux_logits": False}),
    ],
)
def test_torchvision_is_asked_for_the_weights_by_name(
    monkeypatch: pytest.MonkeyPatch, model: str, weights: str | None, expected: dict[str, Any]
) -> None:
    builder = Builder(monkeypatch, model)
    build_model(Job(model=model, weights=weights, image_size=64), CPU)
    assert builder.calls == [expected]


def test_maxvit_is_built_for_the_image_size(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(monkeypatch, "maxvit_t")
    build_model(Job(model="maxvit_t", image_size=448), CPU)  # its windows of 7 allow multiples of 224 only
    assert builder.calls == [{"weights": None, "input_size": (448, 448)}]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "checkpoint"])
def test_a_state_dict_is_loaded_from_its_path(tmp_path: Path, wrapped: bool) -> None:
    model = build_model(dataclasses.replace(SMALL, seed=5), CPU)
    state = model.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "state.pt")
    assert same(build_model(dataclasses.replace(SMALL, weights=str(tmp_path / "state.pt")), CPU), model)


def test_a_state_dict_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match="loading state_dict for MobileNetV3"):
        build_model(dataclasses.replace(SMALL, weights=str(tmp_path / "state.pt")), CPU)


def test_a_state_dict_with_auxiliary_heads_is_loaded(tmp_path: Path) -> None:
    state = torchvision.models.googlenet(init_weights=False, aux_logits=True).state_dict()
    torch.save(state, tmp_path / "state.pt")
    model = build_model(Job(model="googlenet", weights=str(tmp_path / "state.pt")), CPU)
    assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])


def test_a_vision_transformers_state_dict_is_loaded_at_its_image_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builder = Builder(monkeypatch, "vit_b_16")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.pt")
    build_model(Job(model="vit_b_16", image_size=64, weights=str(tmp_path / "state.pt")), CPU)
    assert builder.calls == [{"weights": None, "image_size": 64}]


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path: Path) -> None:
    torch.save({"a": Harm(str(tmp_path / "harm"))}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        build_model(dataclasses.replace(SMALL, weights=str(tmp_path / "state.pt")), CPU)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("layout", "strides"), [("nchw", (3072, 1024, 32, 1)), ("nhwc", (3072, 1, 96, 3))], ids=["nchw", "nhwc"]
)
def test_an_input_has_the_jobs_shape_and_layout_and_the_dtype_asked_for(
    layout: str, strides: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = build_input(dataclasses.replace(SMALL, batch=4, layout=layout), dtype, CPU)
    assert (x.shape, x.stride(), x.dtype, x.device) == ((4, 3, 32, 32), strides, dtype, CPU)
    assert x.is_contiguous(memory_format=memory_format(layout))


def test_a_seed_is_the_input_whatever_the_layout_and_the_state_of_torch() -> None:
    def draw(**changes: Any) -> torch.Tensor:
        return build_input(dataclasses.replace(SMALL, batch=2, **changes), torch.float32, CPU)

    first = draw()
    torch.rand(7)
    assert torch.equal(first, draw(layout="nhwc", model="resnet18"))
    assert not torch.equal(first, draw(seed=1))
    assert torch.equal(first, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def test_a_giant_batch_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(HostMemoryError) as caught:
        build_input(Job(batch=10_000_000_000), torch.float32, CPU)
    # 10**10 * 3 * 224**2 * 4 bytes
    assert str(caught.value).startswith("the input alone needs 5,607,605.0 GiB of host memory, ")


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_an_input_may_take_all_that_is_free_and_no_byte_more(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, size: int
) -> None:
    job, needed = dataclasses.replace(SMALL, batch=2), 2 * 3 * 32 * 32 * size

    def free(available: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available}))

    free(needed)
    assert math.prod(build_input(job, dtype, CPU).shape) * size == needed
    free(needed - 1)
    with pytest.raises(HostMemoryError, match="the input alone needs"):
        build_input(job, dtype, CPU)
