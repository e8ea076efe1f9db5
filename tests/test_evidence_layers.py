"""How long each layer took, and with which kernels: on real models, and on events as a profile has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchvision

from tcsweep.evidence import layers as module
from tcsweep.evidence.layers import ITERATION, MARK, ON_CPU, Clock, added_up, followed, launches, layers

CONVOLUTION = "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_warpgroupsize1x1x1_g1_strided"
RELU = "void at::native::vectorized_elementwise_kernel<4, relu>"


def resnet() -> tuple[torch.nn.Module, torch.Tensor]:
    return torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64)


def test_the_layers_of_a_network_on_a_cpu_are_its_modules_and_add_up_to_the_iteration() -> None:
    model, x = resnet()
    with torch.inference_mode():
        found = layers(lambda: model(x), 10.0, on_gpu=False)
    names = [layer.name for layer in found.layers]
    assert (found.source, found.missing, len(names)) == (ON_CPU, None, len(set(names)))
    assert names[:5] == ["", "conv1", "bn1", "relu", "maxpool"]
    assert set(names) == {name for name, _ in model.named_modules()}
    assert {layer.module for layer in found.layers} >= {"ResNet", "Conv2d", "BatchNorm2d", "BasicBlock", "Linear"}
    convolutions = sum(layer.ms for layer in found.layers if layer.module == "Conv2d")
    assert 0.3 * found.ms < convolutions < found.ms


def test_the_model_is_left_as_it_was() -> None:
    model, x = resnet()
    with torch.inference_mode():
        before = model(x)
        layers(lambda: model(x), 10.0, on_gpu=False)
        assert torch.equal(model(x), before)
    from torch.nn.modules import module as hooks

    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


def test_what_fails_is_said_and_leaves_no_hook_behind() -> None:
    def broken() -> None:
        raise RuntimeError("no kernel image\nsecond line")

    assert layers(broken, 1.0, on_gpu=False).missing == "RuntimeError: no kernel image"
    assert layers(lambda: None, 1.0, on_gpu=False).missing == "no module's forward was seen"
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_module_has_its_own_time_without_that_of_the_modules_within_it() -> None:
    now = iter([0.0, 0.010, 0.012, 0.015, 0.016, 0.020, 0.021, 0.030])
    clock = Clock(lambda: next(now))
    clock.enter("", "Net")  # at 10 ms
    clock.enter("a", "Conv2d")  # 2 ms of the model's own
    clock.leave()  # 3 ms
    clock.enter("a", "Conv2d")  # 1 ms of the model's own; the same layer once more
    clock.leave()  # 4 ms
    clock.leave()  # 1 ms
    assert {key: round(ms, 6) for key, ms in clock.ms.items()} == {("", "Net"): 4.0, ("a", "Conv2d"): 7.0}


def test_paths_are_those_below_the_model_that_is_called_first() -> None:
    model, x = resnet()
    entered: list[tuple[str, str]] = []
    with torch.inference_mode(), followed(lambda *one: entered.append(one), lambda: None):
        model(x)
        model.layer1(torch.randn(1, 64, 8, 8))
    assert entered[0] == ("", "ResNet")
    assert ("layer4.1.bn2", "BatchNorm2d") in entered
    assert ("1", "BasicBlock") in entered[-7:]


# --- a profile's events ---


@dataclass
class Launched:
    name: str
    duration: float  # microseconds


@dataclass
class Event:
    """Of torch.profiler, as far as it is read."""

    name: str
    cpu_parent: Any = None
    kernels: list[Launched] = field(default_factory=list)


def test_a_kernel_is_of_the_innermost_module_that_launched_it_in_the_marked_iteration() -> None:
    iteration = Event(ITERATION)
    root = Event(f"{MARK}", iteration)
    block = Event(f"{MARK}layer1.0", root)
    conv = Event(f"{MARK}layer1.0.conv1", block)
    events = [
        Event("aten::conv2d", None, [Launched(CONVOLUTION, 99.0)]),  # of the iteration before
        Event("aten::to", iteration, [Launched("cast", 1.0)]),  # around the model
        Event("aten::cudnn_convolution", Event("aten::conv2d", conv), [Launched(CONVOLUTION, 20.0)]),
        Event("aten::cudnn_convolution", Event("aten::conv2d", conv), [Launched(CONVOLUTION, 22.0)]),
        Event("aten::relu_", block, [Launched(RELU, 5.0)]),
        Event(f"{MARK}layer1.0", root, [Launched(f"{MARK}layer1.0", 47.0)]),  # the mark's shadow on the device
    ]
    found = list(launches(events))
    assert found == [
        ("", "cast", 0.001),
        ("layer1.0.conv1", CONVOLUTION, 0.02),
        ("layer1.0.conv1", CONVOLUTION, 0.022),
        ("layer1.0", RELU, 0.005),
    ]
    order = {"": "Net", "layer1.0": "BasicBlock", "layer1.0.conv1": "Conv2d", "layer1.0.dropout": "Dropout"}
    around, block_time, conv_time = added_up(found, order)
    assert (around.name, around.module, around.ms) == ("", "Net", 0.001)
    assert (block_time.module, block_time.kernels[0].kind) == ("BasicBlock", "elementwise")
    assert (round(conv_time.ms, 9), conv_time.kernels[0].calls, conv_time.kernels[0].unit) == (0.042, 2, "tensor-core")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu_the_layers_have_all_kernels_of_an_iteration() -> None:
    from tcsweep.evidence.kernels import profiled

    model, x = resnet()
    model, x = model.cuda(), x.cuda()
    with torch.inference_mode():
        model(x)
        whole = profiled(lambda: model(x), 1.0)
        found = module.layers(lambda: model(x), 1.0, on_gpu=True)
    calls = sum(kernel.calls for layer in found.layers for kernel in layer.kernels)
    assert calls == sum(kernel.calls for kernel in whole.kernels)
    assert found.ms == pytest.approx(whole.device_ms, rel=0.3)
    by_name = {layer.name: layer for layer in found.layers}
    assert all(by_name[name].ms > 0 for name, one in model.named_modules() if isinstance(one, torch.nn.Conv2d))
