from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcsweep.devices.root import board_root, number, text


def test_the_root_is_the_machine_s_own_unless_a_variable_names_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TCSWEEP_BOARD_ROOT", raising=False)
    assert board_root() == Path("/")
    monkeypatch.setenv("TCSWEEP_BOARD_ROOT", str(tmp_path))
    assert board_root() == tmp_path


def test_a_file_that_cannot_be_read_or_holds_no_number_is_absent_and_never_0(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin\0")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "power").write_text("1234\n")
    names = ("model", "empty", "power", "none", ".")
    assert [text(tmp_path / name) for name in names] == ["NVIDIA Jetson AGX Orin", "", "1234", None, None]
    assert [number(tmp_path / name) for name in names] == [None, None, 1234.0, None, None]


def test_a_file_of_any_length_is_read_whole_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 200_000 + "\n")
    os.mkfifo(tmp_path / "pipe")
    assert (text(tmp_path / "long"), text(tmp_path / "pipe")) == ("x" * 200_000, "")
