"""Labels: data/kernel_names.tsv. Its `source` says where a name is from.

- "seen under fp32,tf32": profiled on an H200 (torch 2.11, cuDNN 9.19) in jobs of these precisions and no other
- "public profile": found in published profiles and issues, some cut short there
- "library source": from CUTLASS's generator or torch's sources, not seen running
"""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tcsweep.evidence import kernels
from tcsweep.evidence.facts import Kernel, Kernels
from tcsweep.evidence.kernels import arithmetic, classify, last_iteration, profiled, summarise, union_ms

with (Path(__file__).parent / "data" / "kernel_names.tsv").open(newline="") as file:
    NAMES = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
IDS = [row["name"][:60] for row in NAMES]

SGEMM, COPY, RELU = (
    "ampere_sgemm_128x64_tn",
    "Memcpy DtoD (Device -> Device)",
    "void at::native::elementwise_kernel<128>",
)


@pytest.mark.parametrize("row", NAMES, ids=IDS)
def test_a_name_tells_its_unit_kind_and_arithmetic(row):
    assert (*classify(row["name"]), arithmetic(row["name"]) or "-") == (row["unit"], row["kind"], row["arithmetic"])


def test_no_kernel_of_a_true_fp32_job_is_said_to_multiply_in_anything_else():
    seen = {arithmetic(row["name"]) for row in NAMES if "fp32" in row["source"]}
    assert seen == {"float32", None}


@pytest.mark.parametrize(
    ("precision", "dtypes"),
    [
        ("tf32", {"float32", "tf32", None}),
        ("fp16", {"float16", None}),
        ("bf16", {"bfloat16", None}),
    ],
)
def test_no_kernel_of_another_precision_is_said_to_multiply_in_a_wrong_type(precision, dtypes):
    assert {arithmetic(row["name"]) for row in NAMES if precision in row["source"]} == dtypes


def test_only_convolutions_gemms_and_attention_use_tensor_cores():
    assert {row["kind"] for row in NAMES if classify(row["name"])[0] == "tensor-core"} == {
        "convolution/GEMM",
        "attention",
    }


@pytest.mark.parametrize(
    "name",
    [
        "cutlass_tensorop_s1688gemm_128x128_16x4_nn_align4",  # CUTLASS's name where three TF32 products make a float32
        "fmha_cutlassF_f32_aligned_64x64_rf_sm80",  # does the same
        "nvjet_sm100_sss_128x128_32x4_1x2_h_bz_TNN",
        "sm80_xmma_gemm_3xtf32_f32f32_tf32f32_f32",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7",  # seen with float16 and with bfloat16
        "void implicit_convolve_sgemm<__half, __half, 128, 5, 5, 3, 3, 3, 1, false, false, true>",
        "maxwell_fp16_sgemm_fp16_128x64_nn",
        "triton_mm_fused_tf32_s1688gemm",
        "",
    ],
)
def test_a_name_that_leaves_a_doubt_tells_no_arithmetic(name):
    assert arithmetic(name) is None


def test_an_unheard_of_name_is_unknown():
    assert classify("my_kernel") == ("unknown", "other")


def test_the_union_counts_overlaps_once_and_gaps_never():
    assert union_ms([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (0.5, 1.0), (3.0, 3.5)]) == 4.5
    assert union_ms([]) == 0.0


def test_a_summary_groups_by_name_longest_first_and_keeps_the_union():
    events = [(COPY, 0.0, 1.0), (SGEMM, 1.0, 2.0), (RELU, 2.0, 1.0), (SGEMM, 4.0, 3.0)]

    assert summarise(events) == Kernels(
        (
            Kernel(SGEMM, 2, 5.0, "cuda-core", "convolution/GEMM"),
            Kernel(COPY, 1, 1.0, "cuda-core", "copy"),
            Kernel(RELU, 1, 1.0, "cuda-core", "elementwise"),
        ),
        union_ms=6.0,
        span_ms=7.0,
    )


def sequence(names):
    return [(name, float(i), 0.5) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "iterations", "last"),
    [
        ("abcabcabc", 3, "abc"),
        ("abc", 1, "abc"),
        ("abcacbabc", 3, "abc"),  # streams side by side: the order differs
        ("aaa", 3, "a"),
        ("xabcabcabc", 3, "abc"),  # one more in the first
        ("bcdefgabcdefgabcdefg", 3, "abcdefg"),  # one less in the first
        ("abcdefghijxabcdefghijabcdefghij", 3, "abcdefghij"),
    ],
)
def test_the_last_iteration_is_told_apart(names, iterations, last):
    events = sequence(names)
    assert last_iteration(events[::-1], iterations) == tuple(events[-len(last) :])
    assert "".join(name for name, _, _ in events[-len(last) :]) == last


@pytest.mark.parametrize(
    "names", ["abcabdabe", "abcabcab", "a" * 100, "xyabcabcabc", "", "ab"], ids=lambda names: names[:12] or "nothing"
)
def test_iterations_that_are_not_alike_have_no_last_one(names):
    assert last_iteration(sequence(names), 3) is None


def event(name, start_ns, duration_ns, device="CUDA"):
    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start_ns,
        duration_ns=lambda: duration_ns,
        device_type=lambda: SimpleNamespace(name=device),
    )


class FakeProfiler:
    def __init__(self, events, start_error=None, stop_error=None):
        self.started = self.stopped = False
        self.start_error, self.stop_error = start_error, stop_error
        self.profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: events))

    def start(self):
        if self.start_error:
            raise self.start_error
        self.started = True

    def stop(self):
        self.stopped = True
        if self.stop_error:
            raise self.stop_error


@pytest.fixture
def fake(monkeypatch):
    def install(events=(), **errors):
        profiler = FakeProfiler(list(events), **errors)
        log = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append(("synchronize", profiler.started)))
        monkeypatch.setattr(torch.profiler, "profile", lambda activities: profiler)
        return log, (lambda: log.append(("iteration", profiler.started))), profiler

    return install


SINCE_1970_NS = 1_795_000_000_123_456_789


def three(*names):
    return [event(name, SINCE_1970_NS + 1_000_000 * i, 500_000) for i, name in enumerate(names * 3)]


def test_a_profile_is_of_the_last_of_three_iterations_after_a_busy_tenth_of_a_second(fake):
    noise = [
        event("cudaLaunchKernel", 0, 9_000_000, device="CPU"),
        event("cudaDeviceSynchronize", 0, 9_000_000),
        event("Context Sync", 0, 9_000_000),
        event("ProfilerStep#1", 0, 9_000_000),
    ]
    log, iteration, _ = fake(noise + three(SGEMM, COPY))

    found = profiled(iteration, iteration_ms=40.0)

    assert log == [
        *[("iteration", False)] * 3,
        ("synchronize", False),
        *[("iteration", True)] * 3,
        ("synchronize", True),
    ]
    assert found == Kernels(
        (
            Kernel(COPY, 1, 0.5, "cuda-core", "copy"),
            Kernel(SGEMM, 1, 0.5, "cuda-core", "convolution/GEMM"),
        ),
        union_ms=1.0,
        span_ms=1.5,
    )


@pytest.mark.parametrize(("iteration_ms", "busy"), [(0.0, 200), (0.01, 200), (1.0, 100), (30.0, 4), (5000.0, 1)])
def test_the_gpu_is_kept_busy_a_tenth_of_a_second_but_at_most_200_iterations(fake, iteration_ms, busy):
    log, iteration, _ = fake(three(SGEMM))
    profiled(iteration, iteration_ms)
    assert log.count(("iteration", False)) == busy


def test_the_microseconds_of_older_torch_are_read_too(fake):
    old = [
        SimpleNamespace(
            name=lambda: SGEMM,
            start_us=lambda i=i: 1000 * i,
            duration_us=lambda: 250,
            device_type=lambda: SimpleNamespace(name="CUDA"),
        )
        for i in range(3)
    ]
    _, iteration, _ = fake(old)
    assert profiled(iteration, 50.0) == Kernels(
        (Kernel(SGEMM, 1, 0.25, "cuda-core", "convolution/GEMM"),), union_ms=0.25, span_ms=0.25
    )


MEND = (
    "in a container start it with --cap-add=SYS_ADMIN, or on the host set "
    "`options nvidia NVreg_RestrictProfilingToAdminUsers=0` in /etc/modprobe.d and reboot, or run with sudo"
)


@pytest.mark.parametrize(
    ("events", "errors", "missing"),
    [
        ([], {}, f"the profiler saw no kernel: {MEND}"),
        ([event("cudaLaunchKernel", 0, 1, device="CPU")], {}, f"the profiler saw no kernel: {MEND}"),
        (
            [],
            {"start_error": RuntimeError("CUPTI_ERROR\nat line 3")},
            f"the profiler failed (RuntimeError: CUPTI_ERROR); if it lacks the right to profile: {MEND}",
        ),
        (
            three(SGEMM),
            {"stop_error": ValueError()},
            f"the profiler failed (ValueError: ); if it lacks the right to profile: {MEND}",
        ),
        (three("a", "b")[:5], {}, "5 kernels in 3 iterations that are not alike"),
    ],
)
def test_what_the_profiler_does_wrong_is_said_with_its_mend_and_never_raised(fake, events, errors, missing):
    _, iteration, _ = fake(events, **errors)
    assert profiled(iteration, 50.0) == Kernels(missing=missing)


def test_what_the_iteration_raises_goes_through_with_the_profiler_stopped(fake):
    _, _, profiler = fake()

    def iteration():
        if profiler.started:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        profiled(iteration, 50.0)
    assert profiler.stopped


def test_without_a_gpu_nothing_is_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert profiled(lambda: pytest.fail("ran"), 1.0) == Kernels(
        missing="no CUDA device: there are no GPU kernels to profile"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_matrix_product_in_half_is_seen_on_the_gpu():
    x = torch.randn(1024, 1024, device="cuda", dtype=torch.float16)
    found = profiled(lambda: x @ x, 0.05)
    gemm = found.kernels[0]
    assert (gemm.calls, gemm.unit, gemm.kind, arithmetic(gemm.name)) == (
        1,
        "tensor-core",
        "convolution/GEMM",
        "float16",
    )


def test_the_module_does_not_import_torch_until_asked():
    assert not hasattr(kernels, "torch")


def test_times_since_1970_keep_their_nanoseconds(fake):
    _, iteration, _ = fake([event(SGEMM, SINCE_1970_NS + 1001 * i, 1001) for i in range(3)])
    ms = pytest.approx(0.001001, abs=1e-12)
    assert profiled(iteration, 50.0) == Kernels(
        (Kernel(SGEMM, 1, 0.001001, "cuda-core", "convolution/GEMM"),), union_ms=ms, span_ms=ms
    )
