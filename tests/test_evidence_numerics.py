import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from tcsweep.engines import ENGINES
from tcsweep.evidence.facts import Numerics
from tcsweep.evidence.limits import LIMITS, limit
from tcsweep.evidence.numerics import (
    BRANCH_SCALE,
    Reference,
    apply_calibration,
    calibrate,
    compare,
    load_reference,
    make_reference,
    run_through,
    save_reference,
    structured_inputs,
)
from tcsweep.job import Job
from tcsweep.models import build_input, build_model, memory_format
from tcsweep.precision import PRECISIONS, set_tf32, twin

CPU = torch.device("cpu")
SMALL = ("resnet18", "mobilenet_v3_small")
LARGE = ("resnet50", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "vgg16", "vit_b_16", "convnext_tiny")


@pytest.fixture(scope="module")
def references():
    """Made once a model."""
    made = {}

    def get(job, n):
        key = (job.model, job.device)
        if key not in made:
            made[key] = make_reference(job, n, torch.device(job.device))
        return made[key]

    return get


def small(model, **fields):
    return Job(model=model, image_size=64, batch=8, device="cpu", **fields)


def numerics(job, reference, break_it=lambda model: None):
    """As a worker would: the job's own precision, layout, batch and engine; with its limit."""
    device, precision = torch.device(job.device), PRECISIONS[job.precision]
    set_tf32(precision.tf32)
    try:
        with torch.no_grad():
            model = build_model(job, device)
            apply_calibration(model, reference.calibration)
            break_it(model)
            prepared = precision.prepare(model.to(memory_format=memory_format(job.layout)), device, job.amp_backend)
        with torch.inference_mode():
            x = build_input(job, prepared.input_dtype, device)
            iteration = ENGINES[job.engine].build(prepared, x)
            inputs = structured_inputs(reference.inputs, job.image_size, reference.seed, device)
            outputs = run_through(iteration, x, inputs)
    finally:
        twin.unpatch()
        set_tf32(False)
    return compare(outputs, reference), limit(job.precision, prepared.half_dtype)


PRECISE = [
    {"precision": "fp32"},
    {"precision": "fp32", "layout": "nhwc"},
    {"precision": "bf16", "layout": "nhwc"},
    *({"precision": level, "amp_backend": "torch"} for level in ("o0", "o1", "o2", "o3")),
]


@pytest.mark.parametrize("fields", PRECISE, ids=lambda fields: "-".join(fields.values()))
@pytest.mark.parametrize("model", SMALL)
def test_a_right_network_is_within_its_limit(references, model, fields):
    job = small(model, **fields)

    found, most = numerics(job, references(job, 16))

    assert found.relative_error is not None
    assert found.relative_error < most
    assert found.cosine is not None
    assert found.cosine > 1 - most
    assert (found.inputs, found.nan, found.inf, found.missing) == (16, 0, 0, None)


def scaled_convolution(model):
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    layers[len(layers) // 2].weight.mul_(1.2)


def larger_epsilon(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps *= 100


@pytest.mark.parametrize("break_it", [scaled_convolution, larger_epsilon])
@pytest.mark.parametrize("model", SMALL)
def test_a_planted_error_is_over_the_limits_of_float32_tf32_and_float16(references, model, break_it):
    job = small(model)

    found, _ = numerics(job, references(job, 16), break_it)

    assert found.relative_error is not None
    assert found.relative_error > 2 * LIMITS["fp16"]


@pytest.mark.parametrize("model", SMALL)
def test_a_planted_error_stands_out_from_bfloat16s_own(references, model):
    job = small(model, precision="bf16")
    right, _ = numerics(job, references(job, 16))

    found, _ = numerics(job, references(job, 16), scaled_convolution)

    assert None not in (found.relative_error, right.relative_error)
    assert found.relative_error > 1.5 * right.relative_error  # type: ignore[operator]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("fields", [*PRECISE, {"precision": "tf32"}, {"precision": "fp16"}, {"precision": "bf16"}])
@pytest.mark.parametrize("model", LARGE)
def test_a_right_network_is_within_its_limit_on_a_gpu(references, model, fields):
    job = Job(model=model, batch=32, device="cuda:0", **fields)

    found, most = numerics(job, references(job, 64))

    assert (found.inputs, found.nan, found.inf, found.missing) == (64, 0, 0, None)
    assert found.relative_error is not None
    assert found.relative_error < most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("model", LARGE)
def test_a_planted_error_is_far_over_float32s_limit_on_a_gpu(references, model):
    job = Job(model=model, batch=32, device="cuda:0")

    found, most = numerics(job, references(job, 64), scaled_linear_or_convolution)

    assert found.relative_error is not None
    assert found.relative_error > 10 * most


def scaled_linear_or_convolution(model):
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    layers[len(layers) // 2].weight.mul_(1.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_inputs_go_through_a_cuda_graph(references):
    job = Job(model="resnet50", batch=16, device="cuda:0")
    reference = references(job, 64)
    device = torch.device("cuda:0")
    set_tf32(False)
    with torch.no_grad():
        model = build_model(job, device)
        apply_calibration(model, reference.calibration)
    with torch.inference_mode():
        x = build_input(job, torch.float32, device)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)

        def replay():
            graph.replay()
            return out

        found = compare(run_through(replay, x, structured_inputs(64, 224, reference.seed, device)), reference)

    assert found.relative_error is not None
    assert found.relative_error < LIMITS["fp32"]


def test_structured_inputs_are_the_same_for_a_seed_and_begin_alike_for_any_number():
    four = structured_inputs(4, 32, 7, "cpu")

    assert four.shape == (4, 3, 32, 32)
    assert four.dtype == torch.float32
    assert torch.equal(structured_inputs(2, 32, 7, "cpu"), four[:2])
    assert not torch.equal(structured_inputs(2, 32, 8, "cpu"), four[:2])


def test_structured_inputs_have_contrasts_between_0_3_and_1_5_and_neighbours_that_are_alike():
    images = structured_inputs(16, 64, 0, "cpu")
    contrasts = images.flatten(1).std(1)
    neighbours = torch.corrcoef(torch.stack([images[..., 1:].flatten(), images[..., :-1].flatten()]))[0, 1]

    assert 0.299 < float(contrasts.min()) < 0.6
    assert 1.2 < float(contrasts.max()) < 1.501
    assert neighbours > 0.5


def test_the_outputs_of_a_calibrated_model_differ_between_inputs_with_mean_0_and_deviation_1(references):
    outputs = references(small("mobilenet_v3_small"), 16).outputs

    assert outputs.shape == (16, 1000)
    assert float(outputs.mean(0).abs().max()) < 1e-4
    assert math.isclose(float(outputs.std(0).mean()), 1, rel_tol=1e-4)
    assert len(outputs.argmax(1).unique()) > 8


def test_a_calibration_makes_the_very_model_in_another_process_with_the_same_seed(references, tmp_path):
    job = small("resnet18")
    reference = references(job, 16)
    save_reference(reference, tmp_path / "reference.pt")

    loaded = load_reference(tmp_path / "reference.pt")

    assert (loaded.seed, loaded.inputs) == (job.seed + 2, 16)
    assert torch.equal(loaded.outputs, reference.outputs)
    assert {k: v.tolist() for k, v in loaded.calibration.items()} == {
        k: v.tolist() for k, v in reference.calibration.items()
    }
    assert numerics(dataclasses.replace(job, batch=16), loaded)[0] == Numerics(16, 0.0, 1.0, 1.0, 16)


def test_a_calibration_changes_norms_branch_ends_and_the_head_and_nothing_else():
    model = build_model(small("resnet18"), CPU)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    tensors = calibrate(model, structured_inputs(4, 64, 0, "cpu"))

    state = model.state_dict()
    assert {k for k, v in state.items() if not torch.equal(v, before[k])} == set(tensors)
    assert all(torch.equal(tensors[k], state[k]) for k in tensors)
    gammas = {k for k in tensors if k.endswith("weight") and k != "fc.weight"}
    assert gammas == {f"layer{i}.{j}.bn2.weight" for i in range(1, 5) for j in range(2)}
    assert all(bool((tensors[k] == BRANCH_SCALE).all()) for k in gammas)
    assert not any(m.training for m in model.modules())
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def ends_of(model):
    tensors = calibrate(model, structured_inputs(2, 64, 0, "cpu"))
    return sorted(k for k, v in tensors.items() if v.ndim and bool((v == torch.tensor(BRANCH_SCALE)).all()))


def test_branches_end_in_batch_norm_whether_the_skip_or_the_branch_runs_first():
    ends = ends_of(build_model(Job(model="regnet_x_400mf", image_size=64), CPU))

    assert len(ends) == 22
    assert all(name.endswith(".f.c.1.weight") for name in ends)


def test_branches_end_in_layer_scale_where_there_is_one():
    model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]).eval()

    assert ends_of(model) == ["features.1.0.layer_scale", "features.3.0.layer_scale"]


def test_a_network_without_branches_keeps_its_scales():
    assert ends_of(build_model(Job(model="shufflenet_v2_x0_5", image_size=64), CPU)) == []


def test_a_head_of_zeros_is_drawn_anew():
    torch.manual_seed(0)
    model = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    inputs = structured_inputs(4, 64, 0, "cpu")

    assert set(calibrate(model, inputs)) == {"heads.head.weight", "heads.head.bias"}
    with torch.no_grad():
        outputs = model(inputs)
    assert math.isclose(float(outputs.std(0).mean()), 1, rel_tol=1e-3)


class Biasless(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 8)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        return self.head(self.body(x.mean((2, 3))).relu())


def test_a_head_without_a_bias_loses_its_mean_all_the_same():
    torch.manual_seed(0)
    model = Biasless()
    inputs = structured_inputs(16, 8, 0, "cpu")

    assert set(calibrate(model, inputs)) == {"head.weight"}
    with torch.no_grad():
        outputs = model(inputs)
    assert float(outputs.mean(0).abs().max()) < 1e-5


class Chain(nn.Module):
    """Batch norm and ReLU without skips, as inception_v3 has them: an error grows at each layer."""

    def __init__(self, depth):
        super().__init__()
        layers = [
            [nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()] for i in range(depth)
        ]
        self.body = nn.Sequential(*(layer for group in layers for layer in group))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def test_only_a_long_chain_of_batch_norms_gets_a_bias():
    torch.manual_seed(0)
    inputs = structured_inputs(8, 16, 0, "cpu")

    biases = {
        depth: {
            float(v.max())
            for k, v in calibrate(Chain(depth).eval(), inputs).items()
            if k.endswith("bias") and "head" not in k
        }
        for depth in (2, 60)
    }

    assert biases[2] == set()
    assert biases[60] <= {0.5, 1.0}
    assert len(biases[60]) == 1


def test_a_calibration_needs_two_inputs_a_head_and_outputs_that_differ():
    with pytest.raises(ValueError, match="2 inputs at least, not 1"):
        calibrate(Biasless(), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="in ReLU could be its head"):
        calibrate(nn.ReLU(), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="do not depend on the inputs"):
        calibrate(Biasless(), torch.ones(2, 3, 8, 8))


def test_a_calibration_of_another_model_is_refused():
    with pytest.raises(ValueError, match="this one has no foot"):
        apply_calibration(Biasless(), {"foot": torch.ones(1)})


def running(x, wrap=lambda t: t):
    """An engine: one output buffer that each call overwrites, as a CUDA graph does."""
    buffer = torch.empty(len(x), 1, dtype=x.dtype)

    def iteration():
        buffer.copy_(x.flatten(1).sum(1, keepdim=True))
        return wrap(buffer)

    return iteration


@pytest.mark.parametrize("batch", [1, 3, 5, 8])
def test_inputs_go_through_the_resident_input_at_its_own_batch_and_it_is_put_back(batch):
    x = torch.rand(batch, 3, 4, 4).half().to(memory_format=torch.channels_last)
    before, place = x.clone(), x.data_ptr()
    inputs = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 3, 4, 4).float()

    outputs = run_through(running(x), x, inputs)

    assert outputs.dtype == torch.float32
    assert outputs.tolist() == [[0.0], [48.0], [96.0], [144.0], [192.0]]
    assert torch.equal(x, before)
    assert x.data_ptr() == place
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "wrap", [lambda t: (t, t + 1), lambda t: {"out": t, "aux": t + 1}, lambda t: ((t,),)], ids=["tuple", "dict", "deep"]
)
def test_the_first_tensor_of_an_output_is_the_output(wrap):
    x = torch.zeros(2, 3, 1, 1)

    assert run_through(running(x, wrap), x, torch.ones(2, 3, 1, 1)).tolist() == [[3.0], [3.0]]


def test_an_output_without_a_tensor_or_of_another_batch_is_refused_and_the_input_put_back():
    x = torch.zeros(2, 3, 1, 1)
    with pytest.raises(TypeError, match="an output of type NoneType holds no tensor"):
        run_through(lambda: None, x, torch.ones(2, 3, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(3,\) is not one of a batch of 2"):
        run_through(lambda: torch.ones(3), x, torch.ones(2, 3, 1, 1))

    assert not x.any()


REFERENCE = Reference(0, 2, torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]), {})


def test_numerics_are_the_relative_norm_the_least_cosine_and_top_1_with_those_whose_margin_is_clear():
    outputs = torch.tensor([[3.0, 1.0, 0.0], [0.0, 3.0, 4.0]])

    assert compare(outputs, REFERENCE) == Numerics(
        inputs=2, relative_error=math.sqrt(10) / 5, cosine=0.8, top1_agreement=1.0, top1_clear=1
    )


def test_outputs_turned_round_agree_on_no_top_1():
    found = compare(-REFERENCE.outputs, REFERENCE)

    assert found == Numerics(inputs=2, relative_error=2.0, cosine=-1.0, top1_agreement=0.0, top1_clear=0)


def test_nan_and_inf_are_counted_and_nothing_else_is_told():
    outputs = torch.tensor([[math.nan, math.inf, 0.0], [-math.inf, 0.0, 4.0]])

    assert compare(outputs, REFERENCE) == Numerics(inputs=2, nan=1, inf=2)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_reference_that_is_zero_or_not_finite_says_so(value):
    reference = dataclasses.replace(REFERENCE, outputs=torch.full((2, 3), value))

    assert compare(torch.ones(2, 3), reference).missing == "the float32 reference is itself not finite, or zero"


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"outputs of shape \(1, 3\), a reference of \(2, 3\)"):
        compare(torch.ones(1, 3), REFERENCE)


@pytest.mark.parametrize(
    ("precision", "half_dtype", "most"),
    [
        ("fp32", None, 1e-4),
        ("o0", None, 1e-4),
        ("tf32", None, 5e-3),
        ("fp16", "float16", 1e-2),
        ("bf16", "bfloat16", 3e-2),
        ("o1", "float16", 1e-2),
        ("o2", "bfloat16", 3e-2),
        ("o3", "float16", 1e-2),
        ("int8", None, 1e-1),
        ("fp8", None, 1e-1),
    ],
)
def test_each_precision_has_a_limit_and_the_o_levels_that_of_their_half(precision, half_dtype, most):
    assert limit(precision, half_dtype) == most


def test_every_precision_of_the_table_has_a_limit_and_no_other():
    assert {name: limit(name, "float16") for name in PRECISIONS}.keys() == PRECISIONS.keys()
    for unknown, half_dtype in (("fp64", None), ("o1", None), ("", "float16")):
        with pytest.raises(ValueError, match="no limit of the error"):
            limit(unknown, half_dtype)


def test_the_limits_are_read_without_torch():
    code = "import sys, tcsweep.evidence.limits; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
