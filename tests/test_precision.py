import inspect
import json
import os
import subprocess
import sys
from collections import Counter, namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, resnet18

from tcsweep.devices.apex import ApexFacts, find_apex
from tcsweep.evidence.dtypes import OperatorRow, observe
from tcsweep.job import Environment
from tcsweep.precision import APEX_INSTALL, PRECISIONS, apex_amp, half, resolve_amp_backend, twin

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BF16, F32 = "bfloat16", "float32"
H100 = Environment(device="cuda:0", compute_capability="9.0")
T4 = Environment(device="cuda:0", compute_capability="7.5")
LEVELS = ("o0", "o1", "o2", "o3")


@pytest.fixture(autouse=True)
def _torch_left_as_it_was():
    yield
    twin.unpatch()


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4
    )
    return model.eval()


def python(code: str, *arguments: str, **environment: str) -> str:
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# The table


def test_the_table_names_every_precision_and_what_it_switches():
    assert [(p.name, p.tf32, p.amp) for p in PRECISIONS.values()] == [
        ("fp32", False, False),
        ("tf32", True, False),
        ("o0", False, True),
        ("o1", False, True),
        ("o2", False, True),
        ("o3", False, True),
        ("fp16", False, False),
        ("bf16", False, False),
    ]
    assert list(PRECISIONS) == [p.name for p in PRECISIONS.values()]


def test_the_table_can_be_read_without_torch():
    code = (
        "import sys; from tcsweep.job import Environment; from tcsweep.precision import PRECISIONS as p\n"
        "[q.missing(Environment(), 'apex') for q in p.values()]; print('torch' in sys.modules)"
    )
    assert python(code) == "False\n"


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("environment", [Environment(), T4, H100])
def test_plain_precisions_run_anywhere(name, environment):
    assert PRECISIONS[name].missing(environment, None) is None


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        (Environment(), "tf32 needs an NVIDIA GPU: a CPU has no TF32"),
        (T4, "tf32 needs compute capability 8.0 or later, this GPU has 7.5"),
        (Environment(device="cuda:1", compute_capability="8.0"), None),
        (Environment(device="cuda:1", compute_capability="12.0"), None),
        (Environment(device="cuda:1"), None),
    ],
)
def test_tf32_needs_ampere_or_later(environment, reason):
    assert PRECISIONS["tf32"].missing(environment, None) == reason


HINT = "(amp_backend=torch runs the torch-native twin)"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("device", "backend", "apex", "version", "reason"),
    [
        ("cpu", "torch", "none", None, None),
        ("cpu", "auto", "none", None, None),
        ("cpu", None, "none", None, None),
        ("cuda:0", "torch", "none", None, None),
        ("cuda:0", "apex", "amp", "0.1", None),
        ("cpu", "apex", "amp", "0.1", f"apex levels need CUDA {HINT}"),
        ("cpu", "apex", "none", None, f"apex levels need CUDA {HINT}"),
        ("cuda:0", "apex", "none", None, f"apex is not installed: `{APEX_INSTALL}` {HINT}"),
        (
            "cuda:0",
            "apex",
            "not-nvidia",
            "0.9.10.dev0",
            "this is PyPI's `apex` 0.9.10.dev0 (an unrelated project), not NVIDIA's: `pip uninstall apex`, "
            f"then `{APEX_INSTALL}` {HINT}",
        ),
        (
            "cuda:0",
            "apex",
            "not-nvidia",
            None,
            "this is PyPI's `apex` (an unrelated project), not NVIDIA's: `pip uninstall apex`, "
            f"then `{APEX_INSTALL}` {HINT}",
        ),
        (
            "cuda:0",
            "apex",
            "without-amp",
            "0.1",
            f"this apex has no amp: NVIDIA removed it after 25.05 (commit cb65b8ed); `{APEX_INSTALL}` has it {HINT}",
        ),
    ],
)
def test_apex_that_cannot_run_is_said_in_one_line(level, device, backend, apex, version, reason):
    environment = Environment(device=device, apex=apex, apex_version=version)

    assert PRECISIONS[level].missing(environment, backend) == reason


@pytest.mark.parametrize(
    ("precision", "asked", "device", "apex", "engine", "resolved"),
    [
        ("o1", "auto", "cuda:0", "amp", "eager", "apex"),
        ("o1", None, "cuda:0", "amp", "eager", "apex"),
        ("o1", "auto", "cuda:0", "amp", "cudagraph", "torch"),
        ("o1", "auto", "cuda:0", "without-amp", "eager", "torch"),
        ("o1", "auto", "cuda:0", "not-nvidia", "eager", "torch"),
        ("o1", "auto", "cuda:0", "none", "eager", "torch"),
        ("o1", "auto", "cpu", "amp", "eager", "torch"),
        ("o0", "torch", "cuda:0", "amp", "eager", "torch"),
        ("o3", "apex", "cpu", "none", "inductor", "apex"),
        ("fp16", "auto", "cuda:0", "amp", "eager", None),
        ("fp32", "apex", "cuda:0", "amp", "eager", None),
    ],
)
def test_auto_takes_apex_only_where_it_can_run(precision, asked, device, apex, engine, resolved):
    environment = Environment(device=device, apex=apex)

    assert resolve_amp_backend(precision, asked, environment, engine) == resolved


@pytest.mark.parametrize("backend", ["auto", None])
def test_an_o_level_wants_a_resolved_backend(backend):
    with pytest.raises(ValueError, match="is not one of apex, torch"):
        PRECISIONS["o1"].prepare(nn.Linear(2, 2), CPU, backend)


# TF32

SWITCHES = r"""
import json, torch
b = torch.backends
old = {
    "cublas": lambda: b.cuda.matmul.allow_tf32, "cudnn": lambda: b.cudnn.allow_tf32,
    "matmul": torch.get_float32_matmul_precision,
}
new = [b.cuda.matmul, *(getattr(b.cudnn, n, None) for n in ("conv", "rnn"))]
new += [getattr(b.mkldnn, n, None) for n in ("matmul", "conv", "rnn")]
before = ["", "torch.set_float32_matmul_precision('medium')", "torch.set_float32_matmul_precision('high')",
          "b.cuda.matmul.allow_tf32 = True", "b.cudnn.allow_tf32 = False"]
if hasattr(b, "fp32_precision"):
    before += ["b.fp32_precision = 'tf32'", "b.fp32_precision = 'ieee'", "b.cudnn.fp32_precision = 'tf32'",
               "b.mkldnn.matmul.fp32_precision = 'bf16'", "b.mkldnn.conv.fp32_precision = 'bf16'"]
x = torch.randn(256, 256)
w = torch.randn(8, 3, 5, 5)
image = torch.randn(1, 3, 32, 32)
exact = [x @ x, torch.conv2d(image, w)]
from tcsweep.precision import set_tf32
for tf32 in (False, True, False):
    for line in before:
        exec(line)
        set_tf32(tf32)
        seen = {k: f() for k, f in old.items()}
        seen["operators"] = sorted({o.fp32_precision for o in new if hasattr(o, "fp32_precision")})
        seen["exact"] = tf32 or all(map(torch.equal, exact, [x @ x, torch.conv2d(image, w)]))
        print(json.dumps([tf32, seen]))
"""


def test_tf32_is_on_or_off_on_every_backend_whatever_was_set_before_and_without_a_warning():
    operators = (
        {False: ["ieee"], True: ["tf32"]} if hasattr(torch.backends, "fp32_precision") else {False: [], True: []}
    )
    seen = [json.loads(line) for line in python(SWITCHES, "-W", "error").splitlines()]

    assert len(seen) in (15, 30)
    for tf32, switches in seen:
        assert switches == {
            "cublas": tf32,
            "cudnn": tf32,
            "matmul": "high" if tf32 else "highest",
            "operators": operators[tf32],
            "exact": True,
        }


# Plain casts


def test_fp32_is_the_model_with_float32_input():
    model = resnet18(weights=None).eval().double()
    prepared = PRECISIONS["fp32"].prepare(model, CPU, None)

    assert (prepared.input_dtype, prepared.half_dtype, prepared.amp_backend, prepared.amp_version, prepared.notes) == (
        torch.float32,
        None,
        None,
        None,
        (),
    )
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("name", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_half_precisions_cast_every_weight_and_keep_the_layout(name, dtype):
    model = resnet18(weights=None).eval().to(memory_format=torch.channels_last)
    prepared = PRECISIONS[name].prepare(model, CPU, None)
    with torch.inference_mode():
        rows = observe(prepared.forward, torch.rand(1, 3, 64, 64).to(prepared.input_dtype))

    assert (str(prepared.input_dtype), prepared.half_dtype, prepared.amp_backend) == (f"torch.{dtype}", dtype, None)
    assert {d for row in rows for d in row.dtypes} == {dtype}
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "features", "variables", "notes"),
    [
        (torch.bfloat16, {"avx512_bf16"}, {}, ()),
        (torch.bfloat16, {"amx_bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ()),
        (torch.bfloat16, {"asimd", "bf16"}, {}, ()),
        (torch.bfloat16, {"avx2"}, {}, ("this CPU has no bfloat16 instructions: emulated",)),
        (torch.bfloat16, {"avx512_bf16"}, {"ONEDNN_MAX_CPU_ISA": "avx2"}, (half.LIMITED_ON_CPU,)),
        (torch.bfloat16, {"avx512_bf16"}, {"DNNL_MAX_CPU_ISA": "AVX2"}, (half.LIMITED_ON_CPU,)),
        (torch.float16, {"avx512_bf16"}, {}, (half.FLOAT16_ON_CPU,)),
    ],
)
def test_a_cpu_that_emulates_a_dtype_says_so(monkeypatch, dtype, features, variables, notes):
    monkeypatch.setattr(half, "cpu_features", lambda: frozenset(features))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert half.half_notes(CPU, dtype) == notes


@pytest.mark.parametrize(
    ("capability", "dtype", "notes"),
    [
        ((7, 5), torch.bfloat16, ("bfloat16 is emulated on this GPU",)),
        ((8, 0), torch.bfloat16, ()),
        ((7, 5), torch.float16, ()),
    ],
)
def test_a_gpu_before_ampere_emulates_bfloat16(monkeypatch, capability, dtype, notes):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    assert half.half_notes(torch.device("cuda"), dtype) == notes


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\nflags\t\t: other\n", {"fpu", "amx_bf16"}),
        ("processor\t: 0\nFeatures\t: asimd bf16\n", {"asimd", "bf16"}),
        ("nothing of the kind\n", set()),
    ],
)
def test_cpu_features_are_those_that_linux_lists(tmp_path, text, features):
    file = tmp_path / "cpuinfo"
    file.write_text(text)

    assert half.cpu_features(file) == features
    assert half.cpu_features(tmp_path / "absent") == frozenset()


# The twin: what it says


@pytest.mark.parametrize("level", LEVELS)
def test_the_twin_says_what_it_is(monkeypatch, level):
    monkeypatch.setattr(half, "cpu_features", lambda: frozenset({"avx2"}))
    prepared = PRECISIONS[level].prepare(nn.Linear(2, 2), CPU, "torch")
    lowered = level != "o0"

    assert (prepared.input_dtype, prepared.half_dtype, prepared.amp_backend, prepared.amp_version, prepared.notes) == (
        torch.float32,
        "bfloat16" if lowered else None,
        "torch",
        torch.__version__,
        (twin.BFLOAT16_ON_CPU, half.EMULATED_ON_CPU) if lowered else (),
    )


def test_nothing_is_prepared_in_a_process_that_o1_patched():
    PRECISIONS["o1"].prepare(nn.Linear(2, 2), CPU, "torch")
    for name in PRECISIONS:
        with pytest.raises(RuntimeError, match="use a fresh process"):
            PRECISIONS[name].prepare(nn.Linear(2, 2), CPU, "torch")
    with pytest.raises(RuntimeError, match="already patched"):
        twin.patch(torch.bfloat16, "cpu")


# The twin: what runs


def row(operator: str, *dtypes: str) -> OperatorRow:
    return OperatorRow(f"aten.{operator}", dtypes, "nchw" if operator == "conv2d" else None)


def resnet_rows(half_dtype: str, norm: str, casts: dict[OperatorRow, int]) -> dict[OperatorRow, int]:
    """A ResNet-18's operators: arithmetic in `half_dtype`, the weights and statistics of batch norm in `norm`."""
    return casts | {
        row("conv2d", half_dtype, half_dtype): 20,
        row("batch_norm", half_dtype, *[norm] * 4): 20,
        row("relu_", half_dtype): 17,
        row("max_pool2d", half_dtype): 1,
        row("add_", half_dtype, half_dtype): 8,
        row("adaptive_avg_pool2d", half_dtype): 1,
        row("flatten", half_dtype): 1,
        row("linear", half_dtype, half_dtype, half_dtype): 1,
    }


@pytest.mark.parametrize(
    ("level", "expected", "output"),
    [
        ("o0", resnet_rows(F32, F32, {row("to", F32): 2}), torch.float32),
        ("o1", resnet_rows(BF16, F32, {row("to", F32): 1}), torch.bfloat16),
        ("o2", resnet_rows(BF16, F32, {row("to", F32): 1, row("to", BF16): 1}), torch.float32),
        ("o3", resnet_rows(BF16, BF16, {row("to", F32): 1, row("to", BF16): 1}), torch.float32),
    ],
)
def test_a_convolutional_network_runs_each_level_as_apex_does(level, expected, output):
    x = torch.rand(2, 3, 64, 64)
    prepared = PRECISIONS[level].prepare(resnet18(weights=None).eval(), CPU, "torch")
    with torch.inference_mode():
        y = prepared.forward(x)  # o1 casts its weights here, once
        rows = observe(prepared.forward, x)

    assert (Counter(rows), y.dtype) == (Counter(expected), output)


def vit_rows(h: str, o1: bool) -> list[OperatorRow]:
    """A one-block vision transformer's floating operators in order: in one dtype, or as apex's O1 mixes them."""
    wide = F32 if o1 else h

    def casts(*dtypes: str) -> list[OperatorRow]:
        return [row("to", d) for d in dtypes] if o1 else []

    return [
        *(row("to", F32), row("conv2d", h, h, h), row("reshape", h), row("permute", h)),
        *(row("expand", wide), *casts(h), row("cat", wide, wide), row("add", wide, wide), row("dropout", wide)),
        *(row("layer_norm", wide, wide, wide), row("_native_multi_head_attention", *[wide] * 7)),
        *(row("dropout", wide), row("add", wide, wide), row("layer_norm", wide, wide, wide)),
        *(*casts(F32), row("linear", h, h, h), *casts(h), row("gelu", wide), row("dropout", wide)),
        *(*casts(F32), row("linear", h, h, h), row("dropout", h), *casts(h), row("add", wide, wide)),
        *(row("layer_norm", wide, wide, wide), row("select", wide), *casts(F32), row("linear", h, h, h)),
        *([] if o1 else [row("to", h)]),
    ]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("o0", vit_rows(F32, o1=False)),
        ("o1", vit_rows(BF16, o1=True)),
        ("o2", vit_rows(BF16, o1=False)),
        ("o3", vit_rows(BF16, o1=False)),
    ],
)
def test_a_transformer_runs_each_level_as_apex_does_with_attention_in_float32_under_o1(level, expected):
    x = torch.rand(2, 3, 32, 32)
    prepared = PRECISIONS[level].prepare(small_vit(), CPU, "torch")
    with torch.inference_mode():
        prepared.forward(x)
        rows = observe(prepared.forward, x)

    assert [r for r in rows if r.dtypes] == expected


@pytest.mark.parametrize(("level", "error"), [("o0", 1e-6), ("o1", 3e-2), ("o2", 3e-2), ("o3", 3e-2)])
def test_outputs_stay_near_those_of_float32(level, error):
    x = torch.rand(2, 3, 32, 32)
    model = small_vit()
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision's is all zeros
    with torch.inference_mode():
        plain = model(x)
        y = PRECISIONS[level].prepare(model, CPU, "torch").forward(x)

    assert ((y.float() - plain).norm() / plain.norm()).item() < error


def test_outputs_of_any_shape_are_cast_and_what_is_not_floating_is_left_alone():
    pair = namedtuple("pair", "first second")

    class Many(nn.Module):
        def forward(self, x, scale):
            return {"a": [x, (x * scale,)], "b": pair(x, x.argmax()), "c": "text", "d": None}

    y = PRECISIONS["o3"].prepare(Many(), CPU, "torch").forward(torch.ones(2), scale=torch.ones(2))

    assert (y["a"][0].dtype, y["a"][1][0].dtype) == (torch.float32, torch.float32)
    assert (type(y["b"]), y["b"].first.dtype, y["b"].second.dtype) == (pair, torch.float32, torch.int64)
    assert (y["c"], y["d"]) == ("text", None)


def test_o2_keeps_affine_batch_norm_in_float32_and_nothing_else():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4))
    PRECISIONS["o2"].prepare(model.eval(), CPU, "torch")

    assert {name: str(t.dtype) for name, t in model.state_dict().items()} == {
        **{f"0.{n}": "torch.bfloat16" for n in ("weight", "bias")},
        **{f"1.{n}": "torch.float32" for n in ("weight", "bias", "running_mean", "running_var")},
        **{f"2.{n}": "torch.bfloat16" for n in ("running_mean", "running_var")},
        **{f"{i}.num_batches_tracked": "torch.int64" for i in (1, 2)},
        **{f"3.{n}": "torch.bfloat16" for n in ("weight", "bias")},
    }


# The twin's O1, function by function

H = torch.bfloat16


def half_and_float() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((2, 2), 0.5, dtype=H), torch.full((2, 2), 0.25)


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (lambda h, f: h + f, torch.float32),
        (lambda h, f: h + h, H),
        (lambda h, f: 1.0 - h, H),
        (lambda h, f: torch.add(f, other=h), torch.float32),
        (lambda h, f: torch.addcmul(h, f, h), torch.float32),
        (lambda h, f: torch.cat([h, f]), torch.float32),
        (lambda h, f: torch.cat((h, h)), H),
        (lambda h, f: torch.stack([h, f], dim=1), torch.float32),
        (lambda h, f: f @ f, H),
        (lambda h, f: torch.bmm(f[None], h[None]), H),
        (lambda h, f: torch.baddbmm(f[None], h[None], f[None]), H),
        (lambda h, f: F.linear(f, h, bias=f[0]), H),
        (lambda h, f: F.prelu(f, f[0, 0]), torch.float32),
        (lambda h, f: torch.prelu(f, f[0]), H),
        (lambda h, f: torch.exp(h), torch.float32),
        (lambda h, f: h**2, torch.float32),
        (lambda h, f: h.sum(), torch.float32),
        (lambda h, f: h.mean(), H),
        (lambda h, f: h.cpu(), torch.float32),
        (lambda h, f: F.softmax(h, dim=-1), torch.float32),
        (lambda h, f: h.softmax(-1), H),
        (lambda h, f: F.gelu(h), torch.float32),
        (lambda h, f: F.layer_norm(h, (2,), f[0], h[0]), torch.float32),
        (lambda h, f: f.add_(h), torch.float32),
        (lambda h, f: h.add_(f), H),
        (lambda h, f: f.mul_(h), torch.float32),
        (lambda h, f: f.exp_(), torch.float32),
        (lambda h, f: h.relu_(), H),
        (lambda h, f: torch.ones(2, dtype=torch.int64) + 1, torch.int64),
        (lambda h, f: f.double() + f.double(), torch.float64),
        (lambda h, f: torch.mm(f.double(), f), H),
        (lambda h, f: h.to("meta") + h.to("meta"), H),
        (lambda h, f: torch.mm(f.to("meta"), f.to("meta")), torch.float32),
    ],
)
def test_o1_gives_each_function_the_dtype_that_apex_gives_it(call, dtype):
    h, f = half_and_float()
    with twin.patched(H, "cpu"), torch.inference_mode():
        assert call(h, f).dtype == dtype


def test_an_in_place_method_casts_the_others_to_its_own_tensors_dtype():
    h, f = half_and_float()
    with twin.patched(H, "cpu"), torch.inference_mode():
        rows = observe(lambda x: (h.clone().add_(x), x.clone().mul_(h)), f)

    assert [r for r in rows if r.operator in ("aten.add_", "aten.mul_")] == [
        row("add_", BF16, BF16),
        row("mul_", F32, F32),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda h, f: h.exp_(),
        lambda h, f: torch.exp_(h),
        lambda h, f: h + f.double(),
        lambda h, f: F.binary_cross_entropy(h, f),
    ],
)
def test_o1_refuses_what_apex_refuses(call):
    h, f = half_and_float()
    with twin.patched(H, "cpu"), pytest.raises(NotImplementedError, match=r"^O1 "):
        call(h, f)


@pytest.mark.parametrize(
    ("layer", "operator", "dtype"),
    [
        (lambda: nn.LSTM(4, 4), "lstm", H),
        (lambda: nn.GRU(4, 4, 2, bidirectional=True), "gru", H),
        (lambda: nn.RNN(4, 4), "rnn_tanh", torch.float32),
        (lambda: nn.LSTMCell(4, 4), "lstm_cell", H),
        (lambda: nn.GRUCell(4, 4), "gru_cell", H),
        (lambda: nn.RNNCell(4, 4), "rnn_tanh_cell", H),
    ],
)
def test_recurrent_layers_run_in_half_but_plain_ones_in_float32(layer, operator, dtype):
    module = layer().eval()
    x = torch.rand(2, 4)
    with twin.patched(H, "cpu"), torch.inference_mode():
        rows = observe(module, x)

    ran = [r for r in rows if r.operator == f"aten.{operator}"]
    assert [set(r.dtypes) for r in ran] == [{str(dtype).removeprefix("torch.")}]


def test_a_packed_sequence_runs_in_half_too():
    packed = nn.utils.rnn.pack_sequence([torch.rand(3, 4), torch.rand(2, 4)])
    with twin.patched(H, "cpu"), torch.inference_mode():
        y, _ = nn.LSTM(4, 4)(packed)

    assert y.data.dtype == H


def casts_of(model: nn.Module, x: torch.Tensor) -> int:
    return sum(r.operator == "aten.to" for r in observe(model, x))


def test_each_parameter_is_cast_once_and_a_plain_tensor_at_every_call():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    x = torch.rand(1, 3, 2, 2)
    weight = torch.rand(4, 3, 1, 1)
    with twin.patched(H, "cpu"), torch.inference_mode():
        counts = [casts_of(model, x) for _ in range(3)]
        plain = [casts_of(lambda y: F.conv2d(y, weight), x) for _ in range(2)]

    assert (counts, plain) == ([5, 1, 1], [2, 2])


def test_a_parameter_of_another_dtype_is_not_kept():
    layer = nn.Linear(2, 2).double()
    with twin.patched(H, "cpu"), torch.inference_mode():
        assert [casts_of(layer, torch.rand(1, 2)) for _ in range(2)] == [3, 3]


def test_with_gradients_on_a_cast_made_without_them_is_made_anew():
    layer = nn.Linear(2, 2)
    with twin.patched(H, "cpu"):
        with torch.no_grad():
            layer(torch.rand(1, 2))
        layer(torch.rand(1, 2)).float().mean().backward()

    assert layer.weight.grad is not None


def owners() -> dict[str, object]:
    return {"torch": torch, "functional": F, "Tensor": torch.Tensor, "rnn": nn.modules.rnn}


def attributes() -> dict[tuple[str, str], object]:
    found = {}
    for label, owner in owners().items():
        names = dir(owner) if isinstance(owner, type) else vars(owner)
        found |= {(label, name): inspect.getattr_static(owner, name, None) for name in names}
    return found


def changed(before: dict, after: dict) -> set:
    return {key for key in before | after if before.get(key, ...) is not after.get(key, ...)}


def test_exactly_the_targets_are_patched_and_undoing_leaves_torch_as_it_was():
    labels = {id(owner): label for label, owner in owners().items()}
    before, own = attributes(), {label: set(vars(owner)) for label, owner in owners().items()}
    undo = twin.patch(H, "cpu")
    during = attributes()
    undo()

    targets = [(labels[id(owner)], name) for owner, name in twin.targets()]
    assert len(targets) == len(set(targets))
    assert changed(before, during) == set(targets)
    assert changed(before, attributes()) == set()
    assert {label: set(vars(owner)) for label, owner in owners().items()} == own


def test_an_error_inside_the_block_still_undoes_the_patch():
    before = attributes()
    with pytest.raises(RuntimeError), twin.patched(H, "cpu"):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))

    assert changed(before, attributes()) == set()


def test_undoing_twice_is_no_error_and_a_new_patch_starts_without_casts():
    layer, x = nn.Linear(2, 2), torch.rand(1, 2)
    with torch.inference_mode():
        counts = []
        for _ in range(2):
            with twin.patched(H, "cpu"):
                counts.append(casts_of(layer, x))
            twin.unpatch()

    assert counts == [3, 3]


# Real apex


def fake_apex(folder: Path) -> None:
    amp = folder / "apex" / "amp"
    amp.mkdir(parents=True)
    (folder / "apex" / "__init__.py").write_text("print('chatter')\n")
    (amp / "frontend.py").write_text(
        "import warnings\n"
        "def initialize(model, opt_level, verbosity):\n"
        "    warnings.warn('amp is deprecated', FutureWarning)\n"
        "    model.called_with = (opt_level, verbosity)\n"
        "    return model\n"
    )
    (amp / "__init__.py").write_text("from .frontend import initialize\n")


@pytest.fixture
def _apex_in_front(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    fake_apex(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.split(".")[0] == "apex"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_apex_in_front")
@pytest.mark.parametrize("level", LEVELS)
def test_apex_is_asked_for_the_level_without_chatter_and_its_build_recorded(capfd, recwarn, level):
    model = nn.Linear(2, 2)
    prepared = PRECISIONS[level].prepare(model, CPU, "apex")

    assert (prepared.forward, model.called_with) == (model, (level.upper(), 0))
    assert (prepared.input_dtype, prepared.half_dtype, prepared.amp_backend, prepared.amp_version, prepared.notes) == (
        torch.float32,
        None if level == "o0" else "float16",
        "apex",
        "python-only",
        (),
    )
    assert (capfd.readouterr(), list(recwarn)) == (("", ""), [])


def test_apex_without_amp_is_never_imported(monkeypatch):
    monkeypatch.setattr(apex_amp, "find_apex", lambda: ApexFacts("without-amp"))
    with pytest.raises(RuntimeError, match="state: without-amp"):
        PRECISIONS["o1"].prepare(nn.Linear(2, 2), CPU, "apex")


ROWS = """
import dataclasses, json, sys
import torch, torchvision
from tcsweep.evidence.dtypes import observe
from tcsweep.precision import PRECISIONS, set_tf32
model, level, backend = sys.argv[1:]
device = torch.device("cuda")
set_tf32(False)
torch.backends.cudnn.benchmark = False
torch.manual_seed(0)
network = getattr(torchvision.models, model)(weights=None).eval().to(device)
for weight in network.parameters():
    if not weight.any() and weight.ndim == 2:  # vit's head: all zeros would make the outputs say nothing
        torch.nn.init.normal_(weight, std=0.02)
x = torch.rand(4, 3, 224, 224, device=device)
prepared = PRECISIONS[level].prepare(network, device, backend)
with torch.inference_mode():
    rows = [observe(prepared.forward, x) for _ in range(2)]
    y = prepared.forward(x).float().cpu().flatten().tolist()
print(json.dumps([[[dataclasses.astuple(r) for r in call] for call in rows], prepared.half_dtype, y]))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("model", ["resnet50", "efficientnet_b0", "vit_b_16", "convnext_tiny"])
def test_the_twin_equals_apex_operator_by_operator(model, level):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if find_apex().state != "amp":
        pytest.skip("no NVIDIA apex with amp")
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ROWS, model, level, backend],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )
        for backend in ("apex", "torch")
    ]
    (apex_rows, apex_half, apex_y), (twin_rows, twin_half, twin_y) = (json.loads(r.communicate()[0]) for r in runs)

    assert len(twin_rows[1]) > 100
    assert twin_rows == apex_rows
    assert twin_half == apex_half
    difference = (torch.tensor(twin_y) - torch.tensor(apex_y)).norm() / torch.tensor(apex_y).norm().clamp(min=1e-6)
    assert difference.item() < 1e-3  # seen before: within 9e-4
