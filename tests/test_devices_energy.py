from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcsweep.devices import energy
from tcsweep.devices.energy import measure, power_log
from tcsweep.devices.sysfs_sensors import Rail
from tcsweep.evidence.facts import Energy

from .sensor_trees import board, write

CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


def work(iterations: int) -> None:
    time.sleep(iterations * 0.01)


def measured(root: Path, phase_s: float = 0.4, on_gpu: bool = False) -> Energy:
    return measure(work, 10.0, 8, phase_s, on_gpu=on_gpu, uuid=None, root=root)


@pytest.mark.parametrize(
    ("name", "watts", "source"),
    [
        ("agx_orin_r35", 6.83, "sampled board power, INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
        ("thor_r38", 124.486, "sampled board power, INA238 VIN"),
    ],
)
def test_a_boards_energy_is_its_power_times_the_phase(tmp_path: Path, name: str, watts: float, source: str) -> None:
    found = measured(board(tmp_path, name), on_gpu=True)
    assert (found.missing, found.source) == (None, source)
    assert found.joules
    assert found.seconds
    assert found.images
    assert 0.4 <= found.seconds < 2
    assert found.joules / found.seconds == pytest.approx(watts)
    assert found.images % 24 == 0  # blocks of three iterations of eight


def test_a_board_whose_power_no_sensor_tells_has_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "OPEN_S", 0.2)
    root = board(tmp_path, "orin_nano_r36")
    (root / CURRENT).unlink()
    assert measured(root) == Energy(missing="no sensor tells this board's power")


def test_a_cpu_that_is_no_jetsons_has_no_energy_either(tmp_path: Path) -> None:
    assert measured(tmp_path) == Energy(missing="a CPU: its energy is not read")


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("reads", [0, 5])
def test_a_sensor_that_hangs_costs_the_phase_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: threading.Event, reads: int
) -> None:
    read, done = Rail.watts, [0]

    def hang(rail: Rail) -> float | None:
        done[0] += 1
        if done[0] > 3 * reads:  # three rails
            release.wait(30)
        return read(rail)

    monkeypatch.setattr(Rail, "watts", hang)
    monkeypatch.setattr(energy, "OPEN_S", 0.2)
    began = time.monotonic()
    found = measured(board(tmp_path, "orin_nano_r36"), phase_s=0.8)
    missing = "the sensor of the board's power stopped answering" if reads else "no sensor tells this board's power"
    assert found == Energy(missing=missing)
    assert time.monotonic() - began < 4


def test_a_log_says_what_it_is_of_and_leaves_out_what_was_not_read(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    log = power_log(root)
    assert log is not None
    assert log.source == "sampled board power, INA3221 VDD_IN"
    with log:
        deadline = time.monotonic() + 10
        while not log.powers and time.monotonic() < deadline:
            time.sleep(0.01)
        write(root, {CURRENT: ""})
        time.sleep(0.1)
        kept = len(log.powers)
        time.sleep(0.1)
    assert kept == len(log.powers) > 0
    assert [power.watts for power in log.powers] == pytest.approx([12.48] * kept)
