import copy
import inspect
import json
import os
import subprocess
import sys
import types
from collections import Counter
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
            "this apex has no amp: NVIDIA removed it after 25.05 (commit cb65b8ed); "
            f"`{APEX_INSTALL}` has it {HINT}",
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
    operators = {False: ["ieee"], True: ["tf32"]} if hasattr(torch.backends, "fp32_precision") else {False: [], True: []}
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
    return OperatorRow(f"aten.{operator}", dtypes)


def resnet_rows(half_dtype: str, norm: str, casts: int) -> dict[OperatorRow, int]:
    """A ResNet-18's operators under a level whose batch norm holds its numbers in `norm`."""
    counts = Counter(
        {
            row("conv2d", half_dtype, half_dtype): 20,
            row("batch_norm", half_dtype, *[norm] * 4): 20,
            row("relu_", half_dtype): 17,
            row("max_pool2d", half_dtype): 1,
            row("add_", half_dtype, half_dtype): 8,
            row("adaptive_avg_pool2d", half_dtype): 1,
            row("flatten", half_dtype): 1,
            row("linear", *[half_dtype] * 3): 1,
        }
    )
    counts[row("to", F32)] += casts
    if norm == half_dtype == BF16 or casts == 1 and half_dtype == BF16 and norm == "o2":
        counts[row("to", BF16)] += 1
    return counts


@pytest.mark.parametrize(
    ("level", "expected", "output"),
    [
        ("o0", resnet_rows(F32, F32, 0) | {row("to", F32): 2}, torch.float32),
        ("o1", resnet_rows(BF16, F32, 0) | {row("to", F32): 1}, torch.bfloat16),
        ("o2", resnet_rows(BF16, F32, 0) | {row("to", F32): 1, row("to", BF16): 1}, torch.float32),
        ("o3", resnet_rows(BF16, BF16, 0) | {row("to", F32): 1, row("to", BF16): 1}, torch.float32),
    ],
)
def test_a_convolutional_network_runs_each_level_as_apex_does(level, expected, output):
    x = torch.rand(2, 3, 64, 64)
    prepared = PRECISIONS[level].prepare(resnet18(weights=None).eval(), CPU, "torch")
    with torch.inference_mode():
        y = prepared.forward(x)
        rows = observe(prepared.forward, x)

    assert (Counter(rows), y.dtype) == (Counter(expected), output)
