from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcsweep.devices.reader import Limits, Users
from tcsweep.devices.sysfs_sensors import Nodes, SysfsReader, find, is_jetson, power_rails
from tcsweep.devices.telemetry import Sampler, Windows

from .sensor_trees import BOARDS, board, write

HWMON1 = "sys/class/hwmon/hwmon1"


def sample(root: Path, on_gpu: bool = True) -> dict[str, Any]:
    return SysfsReader(find(root), on_gpu).sample()


SAMPLES: dict[str, tuple[dict[str, Any], Limits]] = {
    "nano_r32": (
        {
            "power_w": 1.022,
            "rails_w": {"POM_5V_IN": 1.022, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.204},
            "temperature_c": 36.0,
            "temperatures_c": {"AO": 39.5, "CPU": 36.5, "GPU": 36.0},
            "sm_mhz": 76.8,
            "utilisation": 0.0,
            "throttle": None,
            "over_current": None,
        },
        Limits(921.6, None, 0.5, "INA3221 POM_5V_IN"),
    ),
    "xavier_r32": (
        {
            "power_w": 3.346,
            "rails_w": {"GPU": 0.0, "CPU": 0.311, "SOC": 0.932, "CV": 0.0, "VDDRQ": 0.621, "SYS5V": 1.482},
            "temperature_c": 37.5,
            "temperatures_c": {"AO": 37.5, "GPU": 37.5, "Tdiode_tegra": 40.0, "CPU": 37.5},
            "sm_mhz": 318.75,
            "utilisation": 0.625,
            "throttle": 0,
            "over_current": None,
        },
        Limits(1377.0, None, 0.5, "INA3221 GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
    ),
    "xavier_r35": (
        {
            "power_w": 6.983104,
            "rails_w": {
                "GPU": 1.5296,
                "CPU": 0.7648,
                "SOC": 2.2944,
                "CV": 0.0,
                "VDDRQ": 0.7648,
                "SYS5V": 1.629504,
            },
            "temperature_c": 40.5,
            "temperatures_c": {"CPU": 41.0, "GPU": 40.5, "AO": 39.0, "thermal-fan-est": 40.25},
            "sm_mhz": 1377.0,
            "utilisation": 0.99,
            "throttle": 0,
            "over_current": None,
        },
        Limits(1377.0, None, 0.5, "INA3221 GPU + CPU + SOC + CV + VDDRQ + SYS5V"),
    ),
    "agx_orin_r35": (
        {
            "power_w": 6.83,  # 0.3 W of VDDQ_VDD2_1V8AO are in VIN_SYS_5V0
            "rails_w": {"VDD_GPU_SOC": 2.4, "VDD_CPU_CV": 0.4, "VIN_SYS_5V0": 4.03, "VDDQ_VDD2_1V8AO": 0.3},
            "temperature_c": 42.593,  # the GPU's zone is off: the junction's
            "temperatures_c": {"CPU": 42.593, "tj": 42.593, "SOC0": 39.375},
            "sm_mhz": 1300.5,
            "utilisation": 0.12,
            "throttle": 0,
            "over_current": {"oc1": 0, "oc2": 15, "oc3": 37},
        },
        Limits(1300.5, None, 0.5, "INA3221 VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"),
    ),
    "orin_nano_r36": (
        {
            "power_w": 12.48,
            "rails_w": {"VDD_IN": 12.48, "VDD_CPU_GPU_CV": 4.67, "VDD_SOC": 2.815},
            "temperature_c": 53.343,
            "temperatures_c": {"cpu": 53.968, "gpu": 53.343, "tj": 53.968},
            "sm_mhz": 621.0,
            "utilisation": 0.63,
            "throttle": 0,
            "over_current": {"oc1": 0, "oc2": 0, "oc3": 0},
        },
        Limits(1020.0, None, 0.5, "INA3221 VDD_IN"),
    ),
    "thor_r38": (
        {
            "power_w": 124.486,
            "rails_w": {"VIN": 124.486, "VDD_GPU": 37.92, "VDD_CPU_SOC_MSS": 30.04, "VIN_SYS_5V0": 15.48},
            "temperature_c": 56.937,
            "temperatures_c": {"cpu": 58.25, "gpu": 56.937, "tj": 66.625},
            "sm_mhz": 1575.0,
            "utilisation": None,
            "throttle": None,
            "over_current": {"oc1": 0, "oc2": 0, "oc3": 179},
        },
        Limits(1575.0, None, 0.5, "INA238 VIN"),
    ),
}


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_is_read_to_the_digit(tmp_path: Path, name: str) -> None:
    root = board(tmp_path, name)
    assert is_jetson(root)
    reader = SysfsReader(find(root))
    seen, limits = SAMPLES[name]
    got = reader.sample()
    assert got.keys() == seen.keys()
    for field, value in seen.items():
        assert got[field] == (value if value is None else pytest.approx(value, rel=1e-12)), field
    assert list(got["rails_w"]) == list(seen["rails_w"])  # in the board's order
    assert (reader.limits(), reader.processes(), reader.used_memory_mib()) == (limits, Users(), None)


def test_a_job_on_the_cpu_has_the_boards_power_and_its_own_temperature_and_nothing_of_the_gpu(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    reader = SysfsReader(find(root), on_gpu=False)
    whole, _ = SAMPLES["orin_nano_r36"]
    expected = {k: v for k, v in whole.items() if k not in ("sm_mhz", "utilisation")} | {"temperature_c": 53.968}
    got = reader.sample()
    assert got["power_w"] == pytest.approx(12.48)
    assert {**got, "power_w": 12.48, "rails_w": expected["rails_w"]} == expected
    assert reader.limits() == Limits(None, None, 0.5, "INA3221 VDD_IN")


def test_a_pc_is_no_jetson_and_has_none_of_its_sensors(tmp_path: Path) -> None:
    write(tmp_path, {f"{HWMON1}/name": "coretemp", f"{HWMON1}/in1_label": "VDD_IN", f"{HWMON1}/in1_input": 5000})
    write(tmp_path, {f"{HWMON1}/curr1_input": 5000})
    assert not is_jetson(tmp_path)
    assert find(tmp_path) == Nodes()
    assert not find(tmp_path)


def test_a_sensor_that_is_found_in_two_places_is_one(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    before = find(root).rails
    place = root / "sys/bus/i2c/devices/1-0040/hwmon"
    place.mkdir(parents=True)
    (place / "hwmon1").symlink_to(root / HWMON1)
    assert find(root).rails == before


# --- the board's power ---


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        (["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"], ("VDD_IN",)),
        (["VDD_CPU_GPU_CV", "VDD_SOC"], ()),  # parts of an input that is not measured
        (["POM_5V_GPU", "POM_5V_CPU"], ()),
        (["GPU", "CPU", "SOC", "CV", "SYS5V"], ()),  # one of six is missing
        (["SYS5V", "VDDRQ", "CV", "SOC", "CPU", "GPU"], ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
        (["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
        (["VIN_SYS_5V0"], ()),
        ([], ()),
    ],
)
def test_the_boards_power_is_its_input_or_a_set_that_is_whole_and_never_a_part(
    rails: list[str], total: tuple[str, ...]
) -> None:
    assert power_rails(rails) == total


@pytest.mark.parametrize("label", ["NC", ""])
def test_a_channel_that_is_not_connected_or_has_no_label_is_no_rail(tmp_path: Path, label: str) -> None:
    root = board(tmp_path, "orin_nano_r36")
    write(root, {f"{HWMON1}/in2_label": label})
    assert sample(root)["rails_w"] == {"VDD_IN": pytest.approx(12.48), "VDD_SOC": pytest.approx(2.815)}


def test_a_channel_that_is_switched_off_is_no_rail(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    write(root, {f"{HWMON1}/in1_enable": 0, f"{HWMON1}/in2_enable": 1})
    assert sample(root)["rails_w"] == {"VDD_CPU_GPU_CV": pytest.approx(4.67), "VDD_SOC": pytest.approx(2.815)}
    assert sample(root)["power_w"] is None


def test_without_a_rail_of_the_sum_there_is_no_power_and_the_others_stay(tmp_path: Path) -> None:
    root = board(tmp_path, "xavier_r32")
    (root / "sys/bus/i2c/devices/1-0041/iio:device1/in_power2_input").unlink()
    reader = SysfsReader(find(root))
    assert reader.sample()["rails_w"] == {"GPU": 0.0, "CPU": 0.311, "SOC": 0.932, "CV": 0.0, "VDDRQ": 0.621}
    assert (reader.sample()["power_w"], reader.limits().power_of) == (None, None)


def test_a_current_that_is_said_to_flow_backwards_is_no_reading(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    write(root, {f"{HWMON1}/curr1_input": -8})
    assert sample(root)["power_w"] is None
    assert "VDD_IN" not in sample(root)["rails_w"]


# --- files that answer with errors: absent, never 0 ---


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_eio(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/mem")  # reads of its first bytes fail so


FAULTS: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "a folder": as_folder,
    "EIO": as_eio,
    "empty": lambda path: path.write_text(""),
    "words": lambda path: path.write_text("no data\n"),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe\0"),
    "no number": lambda path: path.write_text("nan\n"),
    "no end": lambda path: path.write_text("inf\n"),
}
# By field: its files on the board, and what of the sample is gone with each.
FIELDS: dict[str, tuple[str, list[str]]] = {
    "power": (f"{HWMON1}/curr1_input", ["power_w"]),
    "volts": (f"{HWMON1}/in1_input", ["power_w"]),
    "clock": ("sys/class/devfreq/17000000.gpu/cur_freq", ["sm_mhz"]),
    "load": ("sys/class/devfreq/17000000.gpu/device/load", ["utilisation"]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sensor_that_fails_empties_its_own_field_alone(tmp_path: Path, field: str, fault: str, when: str) -> None:
    root = board(tmp_path, "orin_nano_r36")
    file, gone = FIELDS[field]
    reader = SysfsReader(find(root))
    whole = reader.sample()
    FAULTS[fault](root / file)
    broken = reader if when == "after" else SysfsReader(find(root))
    got = broken.sample()
    if "power_w" in gone:
        assert got.pop("rails_w") == {k: v for k, v in whole.pop("rails_w").items() if k != "VDD_IN"}
    assert got == whole | dict.fromkeys(gone)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINVAL, errno.EIO, errno.ENODATA, errno.EACCES])
def test_every_error_of_a_read_is_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    root = board(tmp_path, "orin_nano_r36")
    reader, read, refused = SysfsReader(find(root)), os.read, ("curr1_input", "temp", "load")

    def refuse(file: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{file}").endswith(refused):
            raise OSError(number, "refused")
        return read(file, size)

    monkeypatch.setattr(os, "read", refuse)
    got = reader.sample()
    absent = {k for k, v in got.items() if v is None}
    assert absent == {"power_w", "temperature_c", "temperatures_c", "utilisation"}


def test_a_pipe_in_a_sensors_place_is_not_waited_for(tmp_path: Path) -> None:
    root = board(tmp_path, "orin_nano_r36")
    for name in ("curr1_input", "in2_input"):
        (root / HWMON1 / name).unlink()
        os.mkfifo(root / HWMON1 / name)
    began = time.monotonic()
    assert sample(root)["rails_w"] == {"VDD_SOC": pytest.approx(2.815)}
    assert time.monotonic() - began < 2


# --- what holds clocks down ---


@pytest.mark.parametrize(
    ("changes", "throttle"),
    [
        ({}, 0),
        ({"cooling_device0/cur_state": 3}, 0),  # the fan
        ({"cooling_device1/cur_state": 1}, 0x20),
        ({"cooling_device2/cur_state": 2}, 0x20),
        ({"thermal_zone0/temp": 98999}, 0),
        ({"thermal_zone0/temp": 99000}, 0x20),  # its passive trip point
        ({"thermal_zone3/temp": 80000}, 0),  # over its active one: the fan's
        ({"cooling_device1/cur_state": "", "cooling_device2/cur_state": "?", "thermal_zone0/temp": ""}, None),
        ({"cooling_device1/cur_state": "", "thermal_zone0/temp": ""}, 0),
    ],
)
def test_heat_that_holds_clocks_down_is_seen_by_cooling_devices_and_passive_trip_points(
    tmp_path: Path, changes: dict[str, object], throttle: int | None
) -> None:
    root = board(tmp_path, "orin_nano_r36")
    write(root, {f"sys/class/thermal/{name}": value for name, value in changes.items()})
    assert sample(root)["throttle"] == throttle


def test_an_over_current_counter_that_holds_nothing_back_is_left_out(tmp_path: Path) -> None:
    root = board(tmp_path, "agx_orin_r35")
    write(root, {"sys/class/hwmon/hwmon3/oc2_throt_en": 0, "sys/class/hwmon/hwmon3/oc3_event_cnt": ""})
    assert sample(root)["over_current"] == {"oc1": 0}


def test_temperatures_are_looked_at_once_a_second_and_power_each_time(tmp_path: Path) -> None:
    root, now_s = board(tmp_path, "orin_nano_r36"), [100.0]
    reader = SysfsReader(find(root), clock=lambda: now_s[0])
    reader.sample()
    write(root, {"sys/class/thermal/thermal_zone1/temp": 70000, f"{HWMON1}/curr1_input": 3000})
    seen = []
    for now_s[0] in (100.9, 101.0):
        got = reader.sample()
        seen.append((got["power_w"], got["temperature_c"]))
    assert seen == [(pytest.approx(15.0), 53.343), (pytest.approx(15.0), 70.0)]


# --- what it costs ---


def test_sampling_a_board_costs_under_1_percent_of_a_core(tmp_path: Path) -> None:
    reader = SysfsReader(find(board(tmp_path, "agx_orin_r35")))  # the one with the most to read
    with Sampler(reader) as sampler:
        began, cpu = time.monotonic(), time.process_time()
        time.sleep(2.0)
        used_s, lasted_s = time.process_time() - cpu, time.monotonic() - began
    state = sampler.state(Windows((began, began + lasted_s)))
    assert (state.source, len(state.samples) >= 8) == ("INA3221 and thermal nodes in sysfs", True)
    assert used_s / lasted_s < 0.01
