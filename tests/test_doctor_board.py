"""`doctor` on five boards, and on what is wrong with one."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from pathlib import Path

import pytest

from tcsweep.devices import board as boards_module
from tcsweep.devices.board import Board, look, parse_swaps
from tcsweep.devices.nvpmodel import Mode
from tcsweep.doctor_board import clocks, fastest, jtop, power_mode, rows, sensors, swap
from tcsweep.doctor_rows import Row

from . import boards
from .test_main import tcsweep


def a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    root = boards.board(tmp_path / "board", name)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("L4T_VERSION", raising=False)
    return root


FOUND = {
    "xavier_r32": ("Jetson-AGX", "32.4.3 (JetPack 4)", "ok", "MAXN (0)"),
    "xavier_r35": ("Jetson-AGX", "35.3.1 (JetPack 5)", "warn", "MODE_15W (2); the fastest is MAXN (0)"),
    "agx_orin_r35": ("NVIDIA Jetson AGX Orin", "35.3.1 (JetPack 5)", "ok", "MAXN (0)"),
    "orin_nano_r36": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "36.4.3 (JetPack 6)", "ok",
        "MAXN_SUPER (2)",
    ),
    "thor_r38": ("NVIDIA Jetson AGX Thor Developer Kit", "38.2.2 (JetPack 7)", "ok", "MAXN (0)"),
}  # fmt: skip


@pytest.mark.parametrize("name", boards.BOARDS)
def test_five_boards_are_told_with_their_modes_and_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = look(a_board(tmp_path, monkeypatch, name))
    assert found is not None
    by_name = {row.what: row for row in rows(found, None)}
    module, release, status, mode = FOUND[name]
    assert (by_name["module"].found, by_name["Jetson Linux"].found) == (module, release)
    assert (by_name["power mode"].status, by_name["power mode"].found) == (status, mode)
    assert by_name["sensors"].found.startswith("power of ")
    assert by_name["swap"] == Row("swap", "ok", "none")
    highest = list(boards.BOARDS[name].modes.values())[boards.BOARDS[name].mode][0]
    assert f"to {highest} MHz, not locked" in by_name["GPU clock"].found


def test_off_a_jetson_there_is_no_board(tmp_path: Path) -> None:
    assert look(tmp_path) is None


def test_the_fastest_mode_is_the_one_without_limits_else_of_the_most_watts() -> None:
    assert fastest([Mode(0, "15W"), Mode(1, "MAXN"), Mode(2, "MAXN_SUPER")]) == Mode(2, "MAXN_SUPER")
    assert fastest([Mode(0, "MODE_15W"), Mode(1, "MODE_30W_ALL"), Mode(2, "odd")]) == Mode(1, "MODE_30W_ALL")
    assert fastest([Mode(0, "odd")]) is None
    assert fastest([]) is None


def test_a_mode_that_a_killed_sweep_left_comes_with_the_way_back() -> None:
    row = power_mode(Board({"power_mode": "MODE_15W (1)"}, left=Mode(0, "MAXN")))
    assert (row.status, row.mend) == ("warn", "sudo nvpmodel -m 0")
    assert row.found == "MODE_15W (1), left by a sweep that was killed; it was MAXN (0)"


def test_a_mode_that_cannot_be_read_is_a_warning_and_never_a_guess() -> None:
    row = power_mode(Board({"power_mode": None}, modes=(Mode(0, "MAXN"),)))
    assert (row.status, row.found) == ("warn", "cannot be read: results will not say it")


@pytest.mark.parametrize(
    ("range_mhz", "status", "said"),
    [
        ((1300.0, 1300.0), "ok", "locked at 1300 MHz"),
        ((306.0, 1300.0), "warn", "306 to 1300 MHz, not locked: rounds differ more"),
        (None, "warn", "cannot be read"),
    ],
)
def test_clocks_are_locked_or_come_with_the_command(
    range_mhz: tuple[float, float] | None, status: str, said: str
) -> None:
    row = clocks(Board(gpu_mhz=range_mhz))
    assert (row.status, row.found) == (status, said)
    assert ("jetson_clocks" in row.mend) == (status == "warn")


SWAPS = """Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/zram0                              partition\t1958840\t\t319488\t\t5
/mnt/swap\\040file                      file\t\t8388604\t\t0\t\t-2
"""


def test_swap_in_use_is_a_warning_by_device() -> None:
    assert parse_swaps(SWAPS) == {"zram0": 312.0, "swap\\040file": 0.0}
    assert swap(parse_swaps(SWAPS)).found == "312 MiB in use (zram0): timings may wait for it"
    assert swap({"zram0": 0.0}) == Row("swap", "ok", "zram0: not in use")
    assert parse_swaps("") == {}


def test_jtop_is_optional_and_its_faults_have_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jtop(Board()).status == "ok"
    assert jtop(Board(jtop="4.3.2", jtop_client="4.3.2")).found == "jetson-stats 4.3.2 answers"
    assert "systemctl restart jtop" in jtop(Board(jtop_client="4.3.2")).mend
    assert "usermod -aG jtop" in jtop(Board(jtop_client="4.3.2", jtop_socket=True)).mend

    class Hangs:
        def __enter__(self) -> None:
            raise PermissionError("no right to ask")

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setitem(sys.modules, "jtop", types.SimpleNamespace(jtop=Hangs))
    monkeypatch.setattr(boards_module, "_version", lambda _: "4.3.2")
    root = a_board(tmp_path, monkeypatch, "agx_orin_r35")
    (root / "run").mkdir()
    (root / "run/jtop.sock").touch()
    found = look(root)
    assert found is not None
    assert (found.jtop, found.jtop_client, found.jtop_socket) == (None, "4.3.2", True)


def test_a_rail_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch, "orin_nano_r36")
    (rail,) = (f for f in root.glob("sys/class/hwmon/*/in1_label") if f.read_text().strip() == "VDD_IN")
    (rail.parent / "in1_input").write_text("")
    found = look(root)
    assert found is not None
    row = sensors(found)
    assert (row.status, row.found) == ("warn", "no answer: VDD_IN; power is of INA3221 VDD_IN")
    assert sensors(Board()).found == "no rail that is the board's power: no energy, no throughput per watt"


@pytest.mark.parametrize(
    ("image", "cuda", "expected"),
    [
        ("36.4.0", "12.6", ("container", "fail", "made for L4T 36.4.0, this board has 35.3.1")),
        ("r35.4.1", "11.4", ("container", "ok", "of this board's release")),
        (None, "12.6", ("container", "warn", "this torch is built with CUDA 12.6, JetPack 5 serves 11")),
    ],
)
def test_a_container_of_another_jetpack_is_found_by_its_release_or_its_cuda(
    image: str | None, cuda: str, expected: tuple[str, str, str]
) -> None:
    found = Board({"l4t": "35.3.1", "jetpack": "5"}, contained=True, image_l4t=image)
    row = next(row for row in rows(found, cuda) if row.what == "container")
    assert (row.what, row.status, row.found) == expected


def test_device_files_that_cannot_be_opened_come_with_their_groups() -> None:
    found = Board({"l4t": "36.4.3"}, no_access={"nvmap": "video", "dri/renderD128": "render"})
    row = next(row for row in rows(found, None) if row.what == "groups")
    assert (row.status, row.found) == ("fail", "/dev/nvmap, /dev/dri/renderD128 cannot be opened")
    assert row.mend == 'sudo usermod -aG video,render "$USER", then log in again'
    assert not any(r.what == "groups" for r in rows(dataclasses.replace(found, no_access={}), None))


def test_in_a_container_the_copied_device_tree_and_the_mounted_files_tell_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = a_board(tmp_path, monkeypatch, "agx_orin_r35")
    (root / "run/host").mkdir(parents=True)
    (root / "proc/device-tree").rename(root / "run/host/device-tree")
    (root / "bin/nvpmodel").unlink()
    found = look(root)
    assert found is not None
    told = [found.facts[name] for name in ("module", "soc", "power_mode")]
    assert told == ["NVIDIA Jetson AGX Orin", "tegra234", "MAXN (0)"]


def test_the_command_has_the_boards_rows_in_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch, "xavier_r35")
    done = tcsweep(tmp_path, "doctor", TCSWEEP_BOARD_ROOT=str(root), COLUMNS="120")
    assert done.returncode == 1  # there is no CUDA here for the board's GPU
    assert "MODE_15W (2); the fastest is MAXN (0)" in done.stdout
    assert "sudo nvpmodel -m 0" in done.stdout
