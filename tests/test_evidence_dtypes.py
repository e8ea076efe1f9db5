from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from tcsweep.evidence.dtypes import WATCHED, Observed, OperatorRow, observe
from tcsweep.evidence.facts import Dtypes, OperatorCount

F16 = "float16"
F32 = "float32"


def test_operators_come_in_the_order_of_their_calls_with_the_dtypes_of_their_floating_arguments():
    half = torch.ones(2, 2, dtype=torch.float16)
    index = torch.tensor([0, 1])

    def forward(x):
        picked = torch.index_select(x, 0, index)
        both = torch.cat([picked, x])
        return torch.add(both[:2].half(), half, alpha=2) == half

    with torch.inference_mode():
        rows = observe(forward, torch.ones(2, 2))

    assert rows == (
        OperatorRow("aten.index_select", (F32,)),
        OperatorRow("aten.cat", (F32, F32)),
        OperatorRow("aten.slice", (F32,)),
        OperatorRow("aten.to", (F32,)),
        OperatorRow("aten.add", (F16, F16)),
        OperatorRow("aten.eq", (F16, F16)),
    )


def test_arguments_given_by_name_are_seen_too():
    with torch.inference_mode():
        rows = observe(lambda x: torch.ops.aten.linear(x, weight=x, bias=None), torch.ones(2, 2))

    assert rows == (OperatorRow("aten.linear", (F32, F32)),)


@pytest.mark.parametrize(
    ("mode", "convolution", "linear"),
    [(torch.inference_mode, "aten.conv2d", "aten.linear"), (torch.no_grad, "aten.convolution", "aten.addmm")],
)
def test_a_networks_arithmetic_is_watched_in_both_modes(mode, convolution, linear):
    model = resnet18(weights=None).eval()
    with mode():
        rows = observe(model, torch.rand(1, 3, 64, 64))

    assert Counter(row for row in rows if row.operator in WATCHED) == {
        OperatorRow(convolution, (F32, F32), "nchw"): 20,
        OperatorRow(linear, (F32, F32, F32)): 1,
    }


def test_what_autocast_casts_is_seen_below_it():
    layer = nn.Linear(4, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rows = observe(layer, torch.rand(2, 4))

    assert [r for r in rows if r.operator in WATCHED] == [OperatorRow("aten.linear", ("bfloat16",) * 3)]


def test_attention_is_watched_on_its_fast_path_and_observing_does_not_leave_it():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.rand(1, 4, 16)
    with torch.inference_mode():
        whole = observe(layer, x)
        part = observe(lambda y: attention(y, y, y, need_weights=False), x)

    assert [r.operator for r in whole if r.operator in WATCHED] == ["aten._transformer_encoder_layer_fwd"]
    assert [r.operator for r in part if r.operator in WATCHED] == ["aten._native_multi_head_attention"]


def test_attention_written_as_a_function_is_watched():
    q = torch.rand(1, 2, 4, 8)
    with torch.inference_mode():
        rows = observe(lambda x: functional.scaled_dot_product_attention(x, x, x), q)

    assert rows == (OperatorRow("aten.scaled_dot_product_attention", (F32, F32, F32)),)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_observing_changes_nothing_of_the_result(mode):
    model = resnet18(weights=None).eval()
    x = torch.rand(2, 3, 64, 64)
    seen = []
    with mode():
        plain = model(x)
        observe(lambda y: seen.append(model(y)), x)
        again = model(x)

    assert torch.equal(seen[0], plain)
    assert torch.equal(again, plain)


def test_an_error_of_the_model_passes_through_and_ends_the_observation():
    with pytest.raises(RuntimeError), torch.inference_mode():
        observe(nn.Linear(3, 3), torch.rand(2, 4))
    with torch.inference_mode():
        assert observe(lambda x: x, torch.rand(1)) == ()


def test_a_convolution_says_in_which_layout_it_got_its_images():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        nhwc = Observed(lambda: layer(x.to(memory_format=torch.channels_last)))
        turned = Observed(lambda: layer[1](layer[0](x.to(memory_format=torch.channels_last)).contiguous()))
        one_pixel = Observed(lambda: layer(x[:, :, :1, :1].contiguous()))
        for observed in (nhwc, turned, one_pixel):
            observed()

    def layouts(observed):
        return [(row.layout, row.calls) for row in observed.dtypes.operators]

    assert layouts(nhwc) == [("nhwc", 2)]
    assert layouts(turned) == [("nhwc", 1), ("nchw", 1)]
    assert layouts(one_pixel) == [(None, 2)]


def test_denormal_numbers_are_counted_in_the_first_image_and_the_first_of_a_weights_outputs():
    weight = torch.full((4, 4), 1e-40)
    x = torch.tensor([[1.0, 0.0, 1e-39, 2.0], [1e-39] * 4])
    observed = Observed(lambda: torch.ops.aten.linear(x, weight))
    with torch.inference_mode():
        observed()

    assert observed.dtypes == Dtypes(
        "ATen operators of one call", (OperatorCount("aten.linear", (F32, F32), 1),), denormal_fraction=5 / 8
    )


def test_numbers_of_a_usual_size_are_no_denormals():
    observed = Observed(lambda: torch.ops.aten.linear(torch.rand(2, 4), torch.zeros(4, 4)))
    with torch.inference_mode():
        observed()

    assert observed.dtypes.denormal_fraction == 0.0
