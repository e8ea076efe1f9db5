"""Messages as torch and its libraries word them."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch

from tcsweep.failures import classify, killed
from tcsweep.models import HostMemoryError

CUDA_OOM = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA_OOM), ("gpu-memory", f"out of GPU memory (OutOfMemoryError: {CUDA_OOM})")),
        (RuntimeError(CUDA_OOM), ("gpu-memory", f"out of GPU memory (RuntimeError: {CUDA_OOM})")),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            ("gpu-memory", "out of GPU memory (RuntimeError: CUDA error: out of memory)"),
        ),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            ("gpu-memory", "out of GPU memory (RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED)"),
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            (
                "gpu-memory",
                "out of GPU memory "
                "(RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`)",
            ),
        ),
        (
            RuntimeError("NvMapMemAllocInternalTagged: 1075072515 error 12"),
            ("gpu-memory", "out of GPU memory (RuntimeError: NvMapMemAllocInternalTagged: 1075072515 error 12)"),
        ),
        (
            HostMemoryError("the input alone needs 5,607.6 GiB of host memory, 3.0 GiB are free"),
            (
                "host-memory",
                "out of host memory "
                "(HostMemoryError: the input alone needs 5,607.6 GiB of host memory, 3.0 GiB are free)",
            ),
        ),
        (
            RuntimeError("std::bad_alloc"),
            ("host-memory", "out of host memory (RuntimeError: std::bad_alloc)"),
        ),
        (MemoryError("no room"), ("host-memory", "out of host memory (MemoryError: no room)")),
        (
            RuntimeError(
                "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false."
            ),
            (
                "too-large",
                "too large to index (RuntimeError: Expected canUse32BitIndexMath(input) && "
                "canUse32BitIndexMath(output) to be true, but got false.)",
            ),
        ),
        (
            RuntimeError("integer out of range"),
            ("too-large", "too large to index (RuntimeError: integer out of range)"),
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore"),
            (
                "no-kernel",
                "this torch has no kernels for this GPU "
                "(RuntimeError: CUDA error: no kernel image is available for execution on the device)",
            ),
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            ("error", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        ),
        (ValueError("nothing known"), ("error", "ValueError: nothing known")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value[0],
)
def test_an_error_is_told_by_what_it_means(error: BaseException, expected: tuple[str, str]) -> None:
    assert classify(error) == expected


@pytest.mark.parametrize(
    ("allocate", "kind", "start"),
    [
        (lambda: torch.empty(2**60), "host-memory", "out of host memory (RuntimeError: "),
        (
            lambda: torch.empty(10**10, 3, 10**6, 10**6),
            "too-large",
            "too large to index (RuntimeError: Storage size calculation overflowed",
        ),
    ],
)
def test_what_this_torch_says_of_an_impossible_tensor_is_known(
    allocate: Callable[[], torch.Tensor], kind: str, start: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        allocate()
    found, reason = classify(caught.value)
    assert (found, reason[: len(start)]) == (kind, start)


def test_a_mark_after_the_first_line_decides_and_the_first_line_is_shown() -> None:
    error = RuntimeError("\n  the convolution failed\nCUDNN_STATUS_ALLOC_FAILED\n")
    assert classify(error) == ("gpu-memory", "out of GPU memory (RuntimeError: the convolution failed)")


def test_a_first_line_that_ends_in_a_colon_takes_the_next_with_it() -> None:
    error = RuntimeError('Error(s) in loading state_dict for ResNet:\n\tMissing key(s): "fc.weight". \n\tmore')
    assert classify(error) == (
        "error",
        'RuntimeError: Error(s) in loading state_dict for ResNet: Missing key(s): "fc.weight".',
    )


def test_a_long_message_is_cut_to_300_characters() -> None:
    assert [classify(ValueError("x" * n))[1] for n in (300, 301)] == [
        "ValueError: " + "x" * 300,
        "ValueError: " + "x" * 299 + "…",
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), ("host-memory", "out of host memory (MemoryError)")),
        (AssertionError(), ("error", "AssertionError")),
    ],
)
def test_an_error_without_a_message_is_its_name(error: BaseException, expected: tuple[str, str]) -> None:
    assert classify(error) == expected


@pytest.mark.parametrize(
    ("exitcode", "reason"),
    [
        (-signal.SIGKILL, "worker killed by SIGKILL, probably out of memory"),
        (-signal.SIGSEGV, "worker killed by SIGSEGV"),
        (-signal.SIGTERM, "worker killed by SIGTERM"),
        (-50, "worker killed by signal 50"),  # a real-time signal has no name
        (0, "worker ended with exit status 0 and no result"),
        (3, "worker ended with exit status 3 and no result"),
    ],
)
def test_a_worker_that_ended_without_a_word_is_told_by_its_exit_code(exitcode: int, reason: str) -> None:
    assert killed(exitcode) == ("killed", reason)
