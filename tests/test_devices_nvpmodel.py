"""Power modes of five boards: read, switched and given back, as nvpmodel does it there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pytest

from tcsweep.devices import jetson, nvpmodel
from tcsweep.devices.nvpmodel import Keeper, Mode, Target, current, left_behind, modes, reachable, switch, targets, tidy
from tcsweep.job import to_json
from tcsweep.mistakes import Mistake
from tcsweep.owner import this_process

from . import boards


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvpmodel, "SETTLE_S", (0.001, 1.0))
    monkeypatch.setattr(nvpmodel, "TAKES_S", 0.3)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "agx_orin_r35") -> Path:
    root = boards.board(tmp_path / "board", name)
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return root


FACTS = {
    "xavier_r32": ("32.4.3", "4", "Jetson-AGX", "tegra194", "MAXN (0)", False, 2265.0, 1377.0),
    "xavier_r35": ("35.3.1", "5", "Jetson-AGX", "tegra194", "MODE_15W (2)", False, 1200.0, 670.0),
    "agx_orin_r35": ("35.3.1", "5", "NVIDIA Jetson AGX Orin", "tegra234", "MAXN (0)", False, 2201.0, 1300.0),
    "orin_nano_r36": (
        "36.4.3", "6", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "tegra234",
        "MAXN_SUPER (2)", False, 1728.0, 1020.0,
    ),
    "thor_r38": (
        "38.2.2", "7", "NVIDIA Jetson AGX Thor Developer Kit", "tegra264", "MAXN (0)", False, 2601.0, 1575.0,
    ),
}  # fmt: skip
NAMES = ("l4t", "jetpack", "module", "soc", "power_mode", "clocks_locked", "cpu_mhz_max", "gpu_mhz_max")


@pytest.mark.parametrize("name", boards.BOARDS)
def test_the_facts_of_five_boards_are_right_to_the_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = a_board(tmp_path, monkeypatch, name)
    expected = {**dict(zip(NAMES, FACTS[name], strict=True)), "shared_memory": True, "emc_mhz_max": None}
    assert jetson.facts(root) == expected


def test_without_the_program_the_files_that_it_keeps_tell_the_mode_and_never_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = a_board(tmp_path, monkeypatch)
    (root / "bin/nvpmodel").unlink()
    assert jetson.power_mode(root) == "MAXN (0)"
    (root / "var/lib/nvpmodel/status").write_text("pmode:0009 fmode:quiet\n")
    assert jetson.power_mode(root) is None
    (root / "var/lib/nvpmodel/status").unlink()
    assert jetson.power_mode(root) is None


def test_locked_clocks_and_the_memorys_limit_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    boards.write(root, {"sys/class/devfreq/17000000.ga10b/min_freq": 1_300_000_000})
    boards.write(root, {"sys/kernel/nvpmodel_clk_cap/emc": 3_199_000_000})
    assert jetson.state(root) == {
        "power_mode": "MAXN (0)", "clocks_locked": True, "cpu_mhz_max": 2201.0, "gpu_mhz_max": 1300.0,
        "emc_mhz_max": 3199.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "name", "mode"),
    [
        ("maxn", "agx_orin_r35", Mode(0, "MAXN")),
        ("30W", "agx_orin_r35", Mode(2, "MODE_30W")),
        ("mode_30w", "agx_orin_r35", Mode(2, "MODE_30W")),
        ("30w", "xavier_r32", Mode(3, "MODE_30W_ALL")),
        ("25w", "orin_nano_r36", Mode(1, "25W")),
        ("120w", "thor_r38", Mode(1, "120W")),
    ],
)
def test_a_mode_is_found_by_the_name_that_people_type(tmp_path: Path, typed: str, name: str, mode: Mode) -> None:
    root = boards.board(tmp_path, name)
    assert targets([typed], root) == {typed: Target(mode)}


def test_a_mode_that_the_board_lacks_is_a_mistake_and_a_machine_without_modes_a_reason(tmp_path: Path) -> None:
    root = boards.board(tmp_path / "board", "agx_orin_r35")
    with pytest.raises(Mistake) as caught:
        targets(["maxn", "20w"], root)
    assert str(caught.value) == "power=20w is unknown; did you mean 50w? Allowed: maxn, 15w, 30w, 50w"
    reason = f"power=15w needs a Jetson with its nvpmodel: there is no {tmp_path}/etc/nvpmodel.conf"
    assert targets(["15w"], tmp_path) == {"15w": Target(None, reason)}
    assert (modes(tmp_path), targets([], tmp_path)) == ((), {})


@pytest.mark.parametrize("name", boards.BOARDS)
def test_a_switch_takes_and_the_end_of_the_block_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root, said = a_board(tmp_path, monkeypatch, name), []
    found = current(root)
    other = next(mode for mode in modes(root) if mode != found)
    with contextlib.suppress(KeyboardInterrupt), Keeper(root, said.append) as keeper:
        assert keeper.switch(other) is None
        assert (current(root), jetson.state(root)["gpu_mhz_max"]) == (other, boards.BOARDS[name].modes[other.name][0])
        assert left_behind() is None  # this sweep still runs
        raise KeyboardInterrupt
    assert (current(root), said, left_behind()) == (found, [], None)
    assert found is not None
    assert boards.switches(root) == [str(other.number), str(found.number)]


def test_the_mode_that_is_found_is_no_switch_and_nothing_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = a_board(tmp_path, monkeypatch)
    with Keeper(root, pytest.fail) as keeper:
        assert keeper.switch(Mode(0, "MAXN")) is None
    assert boards.switches(root) == []


def test_without_the_rights_the_command_is_said_and_the_mode_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = a_board(tmp_path, monkeypatch)
    boards.nvpmodel(root, "agx_orin_r35", "echo 'NVPM ERROR: Operation not permitted: 13'; exit 255")
    (root / "bin/sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    (root / "bin/sudo").chmod(0o755)
    assert switch(Mode(2, "MODE_30W"), root) == (
        "the board stays in MAXN (0): switch by hand, sudo nvpmodel -m 2, or allow it in "
        "/etc/sudoers.d/nvpmodel: `USER ALL=(root) NOPASSWD: /usr/sbin/nvpmodel -m *`"
    )


def a_user_whose_sudo(root: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvpmodel.os, "geteuid", lambda: 1000)
    (root / "bin/sudo").write_text(f"#!/bin/sh\n{script}\n")
    (root / "bin/sudo").chmod(0o755)


def test_without_the_rights_the_present_mode_is_what_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = a_board(tmp_path, monkeypatch), []
    a_user_whose_sudo(root, "exit 1", monkeypatch)
    left = reachable(targets(["maxn", "30w"], root), root, said.append)
    assert (left["maxn"], left["30w"].mode, said) == (Target(Mode(0, "MAXN")), None, [])
    assert (left["30w"].reason or "").startswith("the board stays in MAXN (0): switch by hand, sudo nvpmodel -m 2, or ")


def test_where_no_name_means_the_present_mode_the_first_stands_for_it_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = a_board(tmp_path, monkeypatch), []
    a_user_whose_sudo(root, "exit 1", monkeypatch)
    left = reachable(targets(["15w", "30w"], root), root, said.append)
    assert (left["15w"], left["30w"].mode) == (Target(Mode(0, "MAXN")), None)
    assert said[0].startswith(
        "power=15w is measured in MAXN (0): the board stays in MAXN (0): switch by hand, sudo nvp"
    )


def test_a_user_who_may_switch_gets_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    a_user_whose_sudo(root, '[ "$*" = "-n -l nvpmodel -m 0" ]', monkeypatch)
    found = targets(["15w", "30w"], root)
    assert reachable(found, root, pytest.fail) == found
    assert boards.switches(root) == []


def test_where_sudo_may_switch_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    boards.nvpmodel(root, "agx_orin_r35", '[ -n "$AS_ROOT" ] || { echo "NVPM ERROR: 13"; exit 255; }')
    (root / "bin/sudo").write_text('#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\nAS_ROOT=1 exec "$@"\n')
    (root / "bin/sudo").chmod(0o755)
    assert (switch(Mode(2, "MODE_30W"), root), current(root)) == (None, Mode(2, "MODE_30W"))


def test_a_switch_that_asks_for_a_reboot_is_not_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    question = "echo 'NVPM WARN: Reboot required for changing to this power mode'; read answer || exit 255"
    boards.nvpmodel(root, "agx_orin_r35", question)
    assert switch(Mode(1, "MODE_15W"), root) == (
        "MODE_15W needs a reboot: sudo nvpmodel -m 1, reboot, and sweep in that mode"
    )
    assert current(root) == Mode(0, "MAXN")


def test_a_program_that_hangs_costs_its_time_out_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    monkeypatch.setattr(nvpmodel, "SWITCH_TIMEOUT_S", 0.2)
    boards.nvpmodel(root, "agx_orin_r35", "exec sleep 60")
    (root / "bin/sudo").write_text("#!/bin/sh\nexit 1\n")
    (root / "bin/sudo").chmod(0o755)
    assert (switch(Mode(1, "MODE_15W"), root) or "").startswith("the board stays in MAXN (0): ")


def test_a_mode_that_cannot_be_read_is_not_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = a_board(tmp_path, monkeypatch)
    (root / "bin/nvpmodel").write_text("#!/bin/sh\nexit 255\n")
    (root / "var/lib/nvpmodel/status").unlink()
    with Keeper(root, pytest.fail) as keeper:
        assert (keeper.switch(Mode(1, "MODE_15W")) or "").startswith("the present power mode cannot be read")


def test_what_a_killed_sweep_left_is_given_back_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, said = a_board(tmp_path, monkeypatch), []
    boards.switch_files(root, "agx_orin_r35", 1)
    dead = dataclasses.replace(this_process(), started="1")
    note = tmp_path / "state/tcsweep/power.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(to_json(nvpmodel.Note(0, "MAXN", dead))))
    assert left_behind() == Mode(0, "MAXN")
    tidy(root, said.append)
    assert (current(root), left_behind(), note.exists()) == (Mode(0, "MAXN"), None, False)
    assert said == ["a sweep that was killed left another power mode: back to MAXN (0)"]


def test_a_mode_that_cannot_be_given_back_is_told_with_the_command_and_stays_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, said = a_board(tmp_path, monkeypatch), []
    with Keeper(root, said.append) as keeper:
        assert keeper.switch(Mode(1, "MODE_15W")) is None
        boards.nvpmodel(root, "agx_orin_r35", "exit 255")
    assert said == ["the power mode is not back at MAXN (0): sudo nvpmodel -m 0"]
    assert (tmp_path / "state/tcsweep/power.json").exists()
