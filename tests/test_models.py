from __future__ import annotations

import dataclasses
import hashlib
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

from scripts import models_table
from tcsweep.catalog import classifiers
from tcsweep.job import Job
from tcsweep.mistakes import Mistake
from tcsweep.models import HostMemoryError, build_input, build_model, memory_format, weights_sha256
from tcsweep.precision import mixed_dtypes_explained
from tcsweep.worker import Server
from tests.sweeps import ENVIRONMENT, a_failure, a_job, a_result, a_skip, write_sweep

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


@pytest.mark.parametrize(("model", "patch"), [("vit_b_16", 16), ("vit_l_32", 32), ("vit_h_14", 14)])
def test_a_vision_transformer_says_which_sizes_it_takes(model: str, patch: int) -> None:
    with pytest.raises(ValueError, match=f"^{model} takes multiples of {patch} pixels, not model.image_size=225$"):
        build_model(Job(model=model, image_size=225), CPU)


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


# --- every classifier: scripts/models_table.py ---


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        made.start()
        yield made
    made.join()


@pytest.mark.parametrize("model", sorted(classifiers()))
def test_every_classifier_composes_at_the_size_it_is_built_for(model: str) -> None:
    assert models_table.composed(f"model={model}") == Job(
        model=model, image_size=classifiers()[model].image_size, batch=32
    )


# Tuples as outputs where heads are on, sizes of their own, windows, patches, shifts, a channel shuffle.
@pytest.mark.parametrize(
    "model", ["googlenet", "inception_v3", "maxvit_t", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_v2_t", "vit_b_32"]
)
def test_a_classifier_of_each_kind_runs_in_a_worker(server: Server, model: str) -> None:
    assert models_table.forward(server, model, "bf16") is None


def test_o1_leaves_maxvit_operands_of_two_dtypes_as_apex_does_and_says_what_to_do(server: Server) -> None:
    reason = models_table.forward(server, "maxvit_t", "o1")
    assert reason is not None
    assert reason.startswith(
        "first_call: RuntimeError: o1 casts only what apex's lists name, and here a function gets two dtypes: "
        "try o2, o3 or fp16 (expected "
    )
    assert "\n" not in reason


@pytest.mark.parametrize(("precision", "said"), [("o1", "out of luck"), ("o2", "expected the same dtype")])
def test_an_error_that_is_not_of_o1s_mixed_dtypes_stays_as_it_is(precision: str, said: str) -> None:
    error = RuntimeError(said)
    with pytest.raises(RuntimeError) as caught, mixed_dtypes_explained(precision):
        raise error
    assert caught.value is error


def test_the_page_of_models_has_figures_speedups_failures_and_what_is_not_measured(tmp_path: Path) -> None:
    def job(model: str, precision: str, batch: int = 8) -> Job:
        return a_job(precision, batch, model=model)

    one = write_sweep(
        tmp_path,
        [
            a_result(job("alexnet", "fp32"), 2000.0, index=0),
            a_result(job("alexnet", "o1"), 600.0, index=1),
            a_result(job("alexnet", "fp16"), 5000.0, index=2),
            a_failure(job("vit_h_14", "fp32"), index=3),
            a_skip(job("vgg11", "fp32"), index=4, reason="interrupted before its turn"),
            a_result(a_job("fp32", model="vgg16", layout="nhwc"), index=5),  # of another table
            a_result(a_job("fp32", model="vgg16", image_size=64), index=6),
        ],
        name="one",
    )
    two = write_sweep(
        tmp_path,
        [
            a_result(job("alexnet", "fp32", 1), 100.0, index=0),
            a_result(job("alexnet", "o2", 1), 150.0, index=1),
            a_result(job("vgg11", "fp32"), 30.0, index=2),
            a_skip(job("alexnet", "fp32"), index=3),  # the earlier figure stays
        ],
        name="two",
    )
    path = tmp_path / "models.md"
    path.write_text(f"# Models\n\nBy hand.\n\n{models_table.MARK}\nold\n")
    assert models_table.main(["--write", "--to", str(path), str(one), str(two)]) == 0
    text = path.read_text()
    assert text.startswith(f"# Models\n\nBy hand.\n\n{models_table.MARK}\n{ENVIRONMENT.device_name}, torch 2.9.1, ")
    assert "old" not in text
    lines = text.splitlines()
    assert "| model | pixels | fp32, batch 8 | o1, batch 8 | fp16, batch 8 |" in lines
    assert "| alexnet | 224 | 2000 | 600.0, 0.30x | 5000, 2.50x |" in lines
    assert "| vgg11 | 224 | 30.0 | not measured | not measured |" in lines
    assert "| vit_h_14 | 224 | out of GPU memory | not measured | not measured |" in lines
    assert "| vgg16 | 224 | not measured | not measured | not measured |" in lines
    assert "| inception_v3 | 299 | not measured | not measured | not measured |" in lines
    assert [line for line in lines if line.startswith("- ")] == [
        "- vit_h_14, fp32, batch 8: build: out of GPU memory: 90.0 GiB asked for"
    ]
    further = lines[lines.index("## Further precisions and batches") :]
    assert further[2:5] == [
        "| model | batch | fp32 | o2 |",
        "| --- | --: | --: | --: |",
        "| alexnet | 1 | 100.0 | 150.0, 1.50x |",
    ]
    assert sum(line.startswith("| ") for line in lines) == 2 * 2 + len(classifiers()) + 1


def test_a_page_of_no_sweep_says_of_every_model_that_it_is_not_measured() -> None:
    text = models_table.page({})
    assert text.count("not measured") == 3 * len(classifiers())
    assert "##" not in text


def test_figures_of_two_devices_are_not_put_into_one_table(tmp_path: Path) -> None:
    other = dataclasses.replace(ENVIRONMENT, device_name="NVIDIA A100")
    folders = [
        write_sweep(tmp_path, [a_result(a_job(batch=b), environment=e)], name=str(b))
        for b, e in ((1, ENVIRONMENT), (8, other))
    ]
    with pytest.raises(Mistake, match=r"^a table is of one device, these sweeps are of NVIDIA A100 and NVIDIA H100"):
        models_table.measured(folders)


def test_what_cannot_be_read_or_does_not_exist_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models_table.main(["--write", "--to", str(tmp_path / "x.md"), str(tmp_path)]) == 2
    assert models_table.main(["--compose", "resnet18", "quantized_resnet50"]) == 1
    said = capsys.readouterr()
    assert said.err == f"models_table: [Errno 2] No such file or directory: '{tmp_path / 'sweep.json'}'\n"
    assert said.out.splitlines()[1].startswith("quantized_resnet50: model=quantized_resnet50 is unknown")
    assert not (tmp_path / "x.md").exists()


def test_the_sweeps_that_fill_the_page_name_every_classifier_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert models_table.main(["--parts"]) == 0
    commands = capsys.readouterr().out.splitlines()
    named = [line.partition("model=")[2].partition(" ")[0].split(",") for line in commands]
    assert [name for part in named[:-1] for name in part] == sorted(classifiers())
    assert len(named[-1]) == 10
    assert set(named[-1]) <= set(classifiers())


def test_a_state_dicts_file_is_known_by_its_digest_and_named_weights_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"weights")
    assert weights_sha256(Job(weights=str(tmp_path / "net.pt"))) == hashlib.sha256(b"weights").hexdigest()
    assert weights_sha256(Job(weights="IMAGENET1K_V1")) is weights_sha256(Job()) is None
