from __future__ import annotations

import functools
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tcsweep.evidence.arithmetic import arithmetic, patched
from tcsweep.evidence.facts import Arithmetic
from tcsweep.precision import set_tf32, twin

OFF = Arithmetic(
    tf32_convolution=False,
    tf32_matmul=False,
    matmul_precision="highest",
    autocast=(),
    patched="",
    flush_denormal=False,
)
ON = Arithmetic(
    tf32_convolution=True, tf32_matmul=True, matmul_precision="high", autocast=(), patched="", flush_denormal=False
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def tf32_off() -> Iterator[None]:
    """As in a worker; torch's own default lets convolutions use TF32."""
    torch.set_flush_denormal(False)
    set_tf32(False)
    yield
    set_tf32(False)
    torch.set_flush_denormal(False)


def test_tf32_shows_as_it_was_set() -> None:
    assert arithmetic() == OFF
    set_tf32(True)
    assert arithmetic() == ON
    set_tf32(False)
    assert arithmetic() == OFF


NEW = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has one switch only")


@NEW
@pytest.mark.parametrize(
    ("owner", "shown"), [("conv", (True, False)), ("matmul", (False, True))], ids=["convolution", "matmul"]
)
def test_an_operators_own_switch_set_by_hand_shows(owner: str, shown: tuple[bool, bool]) -> None:
    switch = torch.backends.cudnn.conv if owner == "conv" else torch.backends.cuda.matmul
    switch.fp32_precision = "tf32"
    found = arithmetic()
    assert (found.tf32_convolution, found.tf32_matmul) == shown


@NEW
def test_an_operators_own_switch_wins_over_the_one_of_all() -> None:
    torch.backends.fp32_precision = "tf32"
    found = arithmetic()
    assert (found.tf32_convolution, found.tf32_matmul) == (False, False)


@NEW
def test_switches_that_disagree_so_that_torch_refuses_to_say_are_not_taken_for_off() -> None:
    for owner in (torch.backends, torch.backends.cudnn, torch.backends.cudnn.conv):
        owner.fp32_precision = "none"
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="allow_tf32"):
        _ = torch.backends.cudnn.allow_tf32
    assert arithmetic().tf32_convolution is True


FRESH = """
import torch, warnings
from tcsweep.evidence.arithmetic import arithmetic

def show():
    found = arithmetic()
    print(found.tf32_convolution, found.tf32_matmul, found.matmul_precision)

warnings.simplefilter("ignore")
show()
torch.backends.cudnn.allow_tf32 = False
show()
torch.backends.cuda.matmul.allow_tf32 = True
show()
torch.set_float32_matmul_precision("medium")
show()
torch.set_float32_matmul_precision("highest")
show()
"""


def test_the_older_switches_show_in_a_process_that_set_no_newer_one() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=60, cwd=ROOT)
    shown = ["True False highest", "False False highest", "False True high", "False True medium", "False False highest"]
    assert (done.stdout.splitlines(), done.returncode) == (shown, 0), done.stderr


def test_autocast_entered_by_hand_shows_while_it_is_on() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert arithmetic().autocast == ("cpu:bfloat16",)
        with torch.autocast("cpu", enabled=False):
            assert arithmetic().autocast == ()
    assert arithmetic() == OFF


def test_autocast_shows_in_whatever_way_it_was_switched_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch has other names for these
        torch.set_autocast_enabled(True)
        torch.set_autocast_cpu_enabled(True)
        try:
            assert arithmetic().autocast == ("cuda:float16", "cpu:bfloat16")
        finally:
            torch.set_autocast_enabled(False)
            torch.set_autocast_cpu_enabled(False)
    assert arithmetic() == OFF


def test_denormals_taken_for_zero_show() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no such mode")
    assert arithmetic().flush_denormal is True


def test_a_function_of_someone_else_gives_a_fingerprint_that_is_stable_and_undone_gives_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert patched() == ""
    original = torch.nn.functional.conv2d

    @functools.wraps(original)  # takes its name and its module, as apex's wrappers do
    def in_half(*args: object, **kwargs: object) -> object:
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", in_half)
        first = patched()
        assert re.fullmatch(r"1 functions, [0-9a-f]{8}", first)
        assert patched() == first == arithmetic().patched
    assert patched() == ""


def test_fingerprints_tell_which_functions_and_of_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*args: object) -> None: ...

    found = set()
    for owner, name in ((torch, "conv2d"), (torch.nn.functional, "conv2d"), (torch.Tensor, "mm"), (torch, "mm")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            found.add(patched())
    assert len(found - {""}) == 4
    with monkeypatch.context() as patch:
        patch.setattr(torch, "mm", other)
        patch.setattr(torch, "bmm", other)
        assert patched().startswith("2 functions, ")
    assert patched() == ""


def test_o1s_patches_show_while_they_are_there() -> None:
    with twin.patched(torch.bfloat16, "cpu"):
        number = int(patched().partition(" ")[0])
        assert number > 100
    assert patched() == ""
