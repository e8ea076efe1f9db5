import dataclasses
import time

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tcsweep.evidence.facts import LayerWork, Work
from tcsweep.evidence.physics import layerwise_roof_img_s
from tcsweep.evidence.work import _build, count, layers_of


def layers(module, *shape):
    """Of one call on the meta device."""
    return layers_of(module.to("meta").eval(), torch.empty(shape, device="meta"))


class Forward(nn.Module):
    """Layers as attributes, the forward as a function of them and the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.does = forward

    def forward(self, x):
        return self.does(self, x)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("resnet50", 224),
        ("vit_b_16", 224),
        ("swin_t", 224),
        ("maxvit_t", 224),
        ("regnet_y_400mf", 224),
        ("inception_v3", 299),
        ("mobilenet_v3_small", 160),
    ],
)
def test_operations_are_those_of_torchs_own_counter(model, size):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _build(model, size)(torch.empty(1, 3, size, size, device="meta"))

    assert count(model, size).flops == counter.get_total_flops()


def test_published_counts_of_two_models_are_met():
    assert {m: round(count(m, 224).flops / 1e9, 3) for m in ("resnet50", "vit_b_16")} == {
        "resnet50": 8.178,
        "vit_b_16": 35.128,
    }


def test_resnet50_moves_each_input_residual_and_output_once():
    # By forward hooks on its 53 convolutions, 2 poolings, one linear layer and 16 blocks: inputs, outputs, residuals.
    assert count("resnet50", 224).traffic_elements == 11_567_616 + 11_317_736 + 5_519_360


@pytest.mark.parametrize(("flops_s", "bytes_s", "img_s"), [(760e12, 3.02e12, 45_900), (748e12, 4.28e12, 57_700)])
def test_resnet50s_roof_in_half_on_an_h100_and_an_h200(flops_s, bytes_s, img_s):
    roof = layerwise_roof_img_s(count("resnet50", 224), batch=512, element_bytes=2, flops_s=flops_s, bytes_s=bytes_s)

    assert roof == pytest.approx(img_s, rel=0.001)


def test_a_basic_block_is_its_convolutions_and_a_residual():
    work = count("resnet18", 64)

    assert work.layers[:6] == (
        LayerWork(
            *("conv1", "convolution", 2.0 * 64 * 32 * 32 * 3 * 49, 3 * 64 * 64, 64 * 32 * 32, 64 * 3 * 49),
            spatial=True,
            channels_in=3,
            channels_out=64,
            kernel=(7, 7),
        ),
        LayerWork("maxpool", "pooling", 0.0, 64 * 32 * 32, 64 * 16 * 16, 0),
        *(
            LayerWork(
                f"layer1.{block}.conv{i}",
                "convolution",
                2.0 * 64 * 16 * 16 * 64 * 9,
                (i) * 64 * 16 * 16,  # the second reads the residual, too
                64 * 16 * 16,
                64 * 64 * 9,
                winograd=True,
                spatial=True,
                channels_in=64,
                channels_out=64,
                kernel=(3, 3),
            )
            for block in (0, 1)
            for i in (1, 2)
        ),
    )
    assert work.layers[-2:] == (
        LayerWork("avgpool", "pooling", 0.0, 512 * 2 * 2, 512, 0),
        LayerWork("fc", "linear", 2.0 * 512 * 1000, 512, 1000, 512 * 1000 + 1000, channels_in=512, channels_out=1000),
    )


def test_an_encoder_block_of_a_transformer_is_its_products_with_the_names_of_their_weights():
    work = count("vit_b_16", 224)
    block = "encoder.layers.encoder_layer_3"
    tokens, width = 197, 768

    assert [layer for layer in work.layers if layer.name.startswith(block)] == [
        LayerWork(
            f"{block}.self_attention",
            "linear",
            2.0 * tokens * width * 3 * width,
            tokens * width,
            tokens * 3 * width,
            3 * width * (width + 1),
            channels_in=width,
            channels_out=3 * width,
        ),
        LayerWork(
            f"{block}.self_attention",
            "attention",
            2.0 * 2 * tokens * tokens * width,
            3 * tokens * width,
            tokens * width,
            0,
        ),
        LayerWork(
            f"{block}.self_attention.out_proj",
            "linear",
            2.0 * tokens * width * width,
            2 * tokens * width,
            tokens * width,
            width * (width + 1),
            channels_in=width,
            channels_out=width,
        ),
        LayerWork(
            f"{block}.mlp.0",
            "linear",
            2.0 * tokens * width * 4 * width,
            tokens * width,
            tokens * 4 * width,
            4 * width * (width + 1),
            channels_in=width,
            channels_out=4 * width,
        ),
        LayerWork(
            f"{block}.mlp.3",
            "linear",
            2.0 * tokens * width * 4 * width,
            tokens * 4 * width + tokens * width,
            tokens * width,
            width * (4 * width + 1),
            channels_in=4 * width,
            channels_out=width,
        ),
    ]


def test_fused_attention_is_all_its_products():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = Forward(lambda self, x: self.attention(x, x, x, need_weights=False)[0], attention=attention).eval()

    fused = layers_of(model, torch.rand(1, 5, 8))
    apart = layers(model, 1, 5, 8)

    assert fused == (
        LayerWork(
            "attention",
            "attention",
            2.0 * 5 * 8 * 4 * 8 + 2.0 * 2 * 5 * 5 * 8,
            5 * 8,
            5 * 8,
            4 * 8 * (8 + 1),
        ),
    )
    assert sum(layer.flops for layer in apart) == fused[0].flops


def test_scaled_dot_products_count_query_by_key_and_by_value():
    query, key, value = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 10)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x[:, :3]), self.value(x[:, :3])
        return functional.scaled_dot_product_attention(q, k, v)

    assert layers(Forward(forward, query=query, key=key, value=value), 1, 5, 4)[3:] == (
        LayerWork("scaled_dot_product_attention", "attention", 2.0 * 5 * 3 * (6 + 10), 5 * 6 + 3 * 16, 5 * 10, 0),
    )


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a @ b,
        lambda a, b: torch.bmm(a, b),
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    ],
)
def test_products_of_activations_read_both(product):
    model = Forward(lambda self, x: product(x, x.transpose(1, 2).relu()))

    (layer,) = layers(model, 1, 5, 4)
    assert (layer.kind, layer.flops, layer.input_elements, layer.output_elements, layer.weight_elements) == (
        *("matmul", 2.0 * 5 * 5 * 4, 2 * 5 * 4, 5 * 5, 0),
    )


def test_a_product_with_a_weight_reads_it_once_a_batch():
    model = Forward(lambda self, x: x @ self.weight, weight=nn.Parameter(torch.ones(4, 7)))

    (layer,) = layers(model, 1, 5, 4)
    assert (layer.kind, layer.flops, layer.input_elements, layer.weight_elements) == ("matmul", 2.0 * 5 * 4 * 7, 20, 28)


def test_arithmetic_on_weights_alone_is_no_work_of_an_image():
    model = Forward(
        lambda self, x: self.fc(x) + (self.table @ self.table), fc=nn.Linear(4, 4), table=nn.Parameter(torch.ones(4, 4))
    )

    assert [(layer.name, layer.input_elements) for layer in layers(model, 4, 4)] == [("fc", 16)]


@pytest.mark.parametrize(
    ("arguments", "winograd"),
    [
        ({"kernel_size": 3}, True),
        ({"kernel_size": 3, "padding": "same"}, True),
        ({"kernel_size": 3, "stride": 2}, False),
        ({"kernel_size": 3, "stride": (1, 2)}, False),
        ({"kernel_size": 3, "groups": 4}, False),
        ({"kernel_size": 1}, False),
        ({"kernel_size": (3, 1)}, False),
    ],
)
def test_winograd_is_for_3x3_convolutions_of_stride_1_and_one_group(arguments, winograd):
    assert [layer.winograd for layer in layers(nn.Conv2d(4, 8, **arguments), 1, 4, 9, 9)] == [winograd]


@pytest.mark.parametrize(
    ("layer", "spatial"),
    [
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, (3, 1), stride=2), True),
        (nn.ConvTranspose2d(4, 8, 1), False),
        (nn.ConvTranspose2d(4, 8, 2), True),
    ],
    ids=str,
)
def test_a_convolution_of_more_than_one_point_is_one_that_an_fft_could_do(layer, spatial):
    assert [found.spatial for found in layers(layer, 1, 4, 9, 9)] == [spatial]


def test_grouped_and_transposed_convolutions_count_what_they_multiply():
    grouped = layers(nn.Conv2d(4, 8, 3, groups=2, bias=False), 1, 4, 5, 5)
    transposed = layers(nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), 1, 4, 5, 5)

    one = LayerWork("conv2d", "convolution", 2.0 * 8 * 9 * 2 * 9, 4 * 25, 8 * 9, 8 * 2 * 9, spatial=True)
    assert grouped == (dataclasses.replace(one, channels_in=4, channels_out=8, groups=2, kernel=(3, 3)),)
    one = LayerWork("conv_transpose2d", "convolution", 2.0 * 4 * 25 * 6 * 4, 4 * 25, 6 * 100, 4 * 6 * 4, spatial=True)
    assert transposed == (dataclasses.replace(one, channels_in=4, channels_out=6, kernel=(2, 2)),)


@pytest.mark.parametrize(
    ("pool", "elements"),
    [
        (nn.MaxPool2d(2), 4),
        (nn.AvgPool2d(2), 4),
        (nn.AdaptiveAvgPool2d(1), 1),
        (nn.AdaptiveMaxPool2d(1), 1),
        (Forward(lambda self, x: x.mean([2, 3])), 1),
        (Forward(lambda self, x: x.mean((-1, -2), keepdim=True)), 1),
    ],
)
def test_pooling_moves_data_and_counts_no_operations(pool, elements):
    model = Forward(lambda self, x: self.pool(x), pool=pool)

    assert layers(model, 1, 3, 4, 4) == (LayerWork("pool", "pooling", 0.0, 3 * 16, 3 * elements, 0),)


def test_a_mean_that_is_no_pooling_is_no_layer():
    assert layers(Forward(lambda self, x: x.mean(-1) + x.mean()), 1, 3, 4, 4) == ()


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda self, x: self.b(self.a(x)) + x, [4, 8]),
        (lambda self, x: x + self.b(self.a(x)).relu(), [4, 8]),
        (lambda self, x: self.b(self.a(x)).add_(x), [4, 8]),
        (lambda self, x: self.b(x) + self.a(x), [8, 4]),  # in the order of calls: b, then a, which reads b's output
        (lambda self, x: self.b(self.a(x)) + 1, [4, 4]),
        (lambda self, x: self.b(self.a(x)) + self.b.bias, [4, 4]),
        (lambda self, x: self.b(self.a(x)) + x.sum(), [4, 4]),
        (lambda self, x: (lambda y: y + y.relu())(self.b(self.a(x))), [4, 4]),
        (lambda self, x: self.b(self.a(x)) * x, [4, 4]),
    ],
)
def test_the_later_layer_of_a_sum_reads_the_addend_that_it_did_not_make(forward, inputs):
    model = Forward(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))

    assert sorted(layer.input_elements for layer in layers(model, 1, 4)) == sorted(inputs)


def test_a_failure_is_a_reason_in_one_line():
    assert count("resnet51", 224) == Work(
        missing="resnet51 at 224 pixels could not be counted: ValueError: Unknown model resnet51"
    )
    assert count("vit_b_16", 100) == Work(
        missing="vit_b_16 at 100 pixels could not be counted: AssertionError: Input shape indivisible by patch size!"
    )
    too_small = count("alexnet", 8).missing
    assert too_small.startswith("alexnet at 8 pixels could not be counted: RuntimeError: ")
    assert len(too_small.splitlines()) == 1


def test_counting_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)

    torch.manual_seed(3)
    count("maxvit_t", 224)

    assert torch.equal(torch.rand(2), expected)


def test_counting_resnet50_takes_well_under_a_second():
    began = time.perf_counter()
    count("resnet50", 224)

    assert time.perf_counter() - began < 1
