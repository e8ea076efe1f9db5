"""jtop by clients that stand in for jetson-stats': its dictionaries, and the ways in which it fails."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tcsweep.devices import jtop
from tcsweep.devices.jtop import JtopReader, board_power, board_reader, fields_of, limits_of, zones_c
from tcsweep.devices.reader import Absent, Limits, Reader, Users
from tcsweep.devices.sysfs_sensors import SysfsReader, find
from tcsweep.devices.telemetry import Sampler, Windows, close_reader, open_reader

from .sensor_trees import board, write

FILES = "INA3221 and thermal nodes in sysfs"


def rail(milliwatts: Any, **more: Any) -> dict[str, Any]:
    return {"volt": 5000, "curr": milliwatts, "power": milliwatts, "avg": milliwatts, "online": True, **more}


class Client:
    """An Orin Nano's client: a context manager whose `ok` waits for the next answer."""

    power: ClassVar[Any] = {
        "rail": {"VDD_CPU_GPU_CV": rail(4700), "VDD_SOC": rail(2900)},
        "tot": {**rail(13100), "name": "VDD_IN"},
    }
    temperature: ClassVar[Any] = {
        "cpu": {"temp": 55.5, "online": True},
        "gpu": {"temp": 54.25, "online": True},
        "cv0": {"temp": -256, "online": False},
    }
    gpu: ClassVar[Any] = {"gpu": {"status": {"load": 87.5, "railgate": False}, "freq": {"cur": 918000, "max": 1020000}}}
    closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        type(self).closed = True

    def ok(self) -> bool:
        time.sleep(0.005)
        return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return board(tmp_path, "orin_nano_r36")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[Client]]]:
    """A module `jtop` with this client; its threads end with the test."""
    clients: list[Any] = []
    monkeypatch.setattr(jtop, "OPEN_S", 0.5)

    def make(**changes: Any) -> type[Client]:
        client: Any = type("Client", (Client,), {"closed": False, **changes})
        module: Any = ModuleType("jtop")
        module.jtop = client
        monkeypatch.setitem(sys.modules, "jtop", module)
        clients.append(client)
        return client  # type: ignore[no-any-return]

    yield make
    for client in clients:
        client.ok = lambda self: False


def opened(root: Path, on_gpu: bool = True) -> Reader:
    reader = open_reader(None, root, on_gpu)
    assert not isinstance(reader, Absent), reader.reason
    return reader


def test_jtop_tells_what_it_knows_and_the_files_the_rest(root: Path, install: Callable[..., Any]) -> None:
    client = install()
    write(root, {"sys/class/thermal/cooling_device1/cur_state": 2, "sys/class/hwmon/hwmon3/oc3_event_cnt": 9})
    reader = opened(root)
    assert reader.source == "jtop"
    assert reader.sample() == {
        "power_w": 13.1,
        "rails_w": {"VDD_CPU_GPU_CV": 4.7, "VDD_SOC": 2.9, "VDD_IN": 13.1},
        "temperature_c": 54.25,
        "temperatures_c": {"cpu": 55.5, "gpu": 54.25},
        "sm_mhz": 918.0,
        "utilisation": 0.63,
        "throttle": 0x20,
        "over_current": {"oc1": 0, "oc2": 0, "oc3": 9},
    }
    assert (reader.limits(), reader.processes(), reader.used_memory_mib()) == (
        Limits(1020.0, None, 0.5, "VDD_IN"),
        Users(),
        None,
    )
    close_reader(reader)
    assert client.closed


def test_a_job_on_the_cpu_gets_nothing_of_the_gpu_from_jtop(root: Path, install: Callable[..., Any]) -> None:
    install()
    reader = opened(root, on_gpu=False)
    assert reader.source == "jtop"
    seen = reader.sample()
    assert (seen["power_w"], seen["temperature_c"]) == (13.1, 55.5)
    assert {"sm_mhz", "utilisation"}.isdisjoint(seen)
    assert reader.limits() == Limits(None, None, 0.5, "VDD_IN")


def fail(error: BaseException) -> Callable[..., Any]:
    def raiser(*about: Any) -> Any:
        raise error

    return raiser


class JtopException(Exception):
    """As jetson-stats'."""


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"__init__": fail(PermissionError(13, "/run/jtop.sock"))}, id="refused"),
        pytest.param({"__enter__": fail(JtopException("The jtop.service is not active"))}, id="service absent"),
        pytest.param({"__enter__": fail(JtopException("Mismatch version jtop service: [4.2.2]"))}, id="other version"),
        pytest.param({"__enter__": fail(SystemExit(1))}, id="ends the process"),
        pytest.param({"__enter__": lambda self: time.sleep(3)}, id="hangs while it connects"),
        pytest.param({"ok": lambda self: time.sleep(3)}, id="hangs while it waits"),
        pytest.param({"ok": lambda self: False}, id="says that it is not well"),
        pytest.param({"ok": fail(JtopException("Lost connection with jtop server"))}, id="loses its connection"),
        pytest.param({"power": None, "temperature": {}, "gpu": ()}, id="tells nothing"),
        pytest.param({name: property(fail(KeyError("x"))) for name in ("power", "temperature", "gpu")}, id="raises"),
    ],
)
def test_a_jtop_that_does_not_answer_is_passed_over_for_the_files(
    root: Path, install: Callable[..., Any], changes: dict[str, Any]
) -> None:
    install(**changes)
    began = time.monotonic()
    reader = opened(root)
    assert (reader.source, reader.sample()["power_w"]) == (FILES, pytest.approx(12.48))
    assert time.monotonic() - began < 2


def test_without_jetson_stats_the_files_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    assert opened(root).source == FILES


def test_without_jtop_and_sensors_nvml_is_asked_and_a_cpus_job_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})
    absent = open_reader("GPU-1", tmp_path)
    assert isinstance(absent, Absent)
    assert absent.reason.startswith("NVML cannot be used")
    assert open_reader(None, tmp_path, on_gpu=False) == Absent("the board's sensors answer nothing")
    assert open_reader(None, tmp_path / "pc", on_gpu=False) == Absent("a CPU: see the host's state")


def test_an_nvml_that_initialises_on_a_jetson_and_is_mute_is_passed_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute: Any = ModuleType("pynvml")
    mute.nvmlInit, mute.nvmlDeviceGetHandleByUUID = lambda: None, lambda uuid: uuid
    monkeypatch.setitem(sys.modules, "pynvml", mute)
    monkeypatch.setitem(sys.modules, "jtop", None)
    reader = open_reader("GPU-1", root)
    assert not isinstance(reader, Absent)
    assert (reader.source, reader.sample()["sm_mhz"]) == (FILES, 621.0)


def test_jtop_alone_is_enough_on_a_board_whose_files_are_not_to_be_seen(
    tmp_path: Path, install: Callable[..., Any]
) -> None:
    install()
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})
    reader = opened(tmp_path)
    assert (reader.source, reader.sample()["power_w"]) == ("jtop", 13.1)


def test_each_answer_is_one_sample_and_the_files_tell_what_lies_between_and_after(
    root: Path, install: Callable[..., Any]
) -> None:
    answers = [True, False]  # one, and then the service stops
    install(ok=lambda self: answers.pop(0))
    now_s = [0.0]
    reader = JtopReader(SysfsReader(find(root)), clock=lambda: now_s[0])
    assert reader.open(5.0)
    by_files = pytest.approx(12.48)
    assert [reader.sample()["power_w"] for _ in range(3)] == [13.1, by_files, by_files]
    assert (reader.source, reader.limits()) == ("jtop", Limits(1020.0, None, 0.5, "VDD_IN"))
    now_s[0] = 10.0
    assert reader.sample()["power_w"] == by_files
    assert (reader.source, reader.limits()) == (
        f"{FILES} (jtop stopped)",
        Limits(1020.0, None, 0.5, "INA3221 VDD_IN"),
    )


@pytest.mark.parametrize(
    ("gpu", "mhz"),
    [
        ({"gv11b": {"freq": {"cur": 318750}}}, 318.75),
        ({"Orin (nvgpu)": {"freq": {"cur": 1300, "max": 0}}}, 1300.0),  # by NVML
        ({"Orin (nvgpu)": {"freq": {"cur": 0}}}, None),
        ({"gv11b": {"freq": {}}}, None),
        ({}, None),
    ],
)
def test_a_clock_is_told_in_kilohertz_or_megahertz_and_0_is_none(gpu: dict[str, Any], mhz: float | None) -> None:
    client = type("Other", (Client,), {"gpu": gpu})()
    assert fields_of(client, on_gpu=True).get("sm_mhz") == mhz
    assert limits_of(client, True, Limits(900.0)) == Limits(900.0, power_of="VDD_IN")


# --- its dictionaries ---


@pytest.mark.parametrize(
    ("power", "watts", "rails", "power_of"),
    [
        pytest.param(
            {"rail": {"GPU": rail(10), "CPU": rail(20), "SOC": rail(30), "CV": rail(40), "VDDRQ": rail(50)}}
            | {"tot": rail(150)},
            None,
            {"GPU": 0.01, "CPU": 0.02, "SOC": 0.03, "CV": 0.04, "VDDRQ": 0.05},
            None,
            id="a sum over a set that is not whole",
        ),
        pytest.param(
            {"rail": {"VDD_SOC": rail(2900)}, "tot": rail(12500)},
            12.5,
            {"VDD_SOC": 2.9},
            "jtop's total",
            id="a total that is no sum",
        ),
        pytest.param({"rail": {}, "tot": {"power": 0}}, None, None, None, id="no rail answered"),
        pytest.param(
            {"rail": {"VDD_SOC": rail(2900)}, "tot": {**rail(13100), "name": "VDD_IN"}},
            13.1,
            {"VDD_SOC": 2.9, "VDD_IN": 13.1},
            "VDD_IN",
            id="an input",
        ),
        pytest.param(
            {
                "rail": {
                    "VDD_GPU_SOC": rail(2400),
                    "VDD_CPU_CV": rail(400),
                    "VIN_SYS_5V0": rail(4000),
                    "VDDQ_VDD2_1V8AO": rail(300),
                },
                "tot": rail(7100),
            },
            6.8,
            {"VDD_GPU_SOC": 2.4, "VDD_CPU_CV": 0.4, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.3},
            "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0",
            id="a total that counts a rail twice",
        ),
        pytest.param({"tot": {"power": 5000}}, 5.0, None, "jtop's total", id="the total alone"),
        pytest.param({"rail": {"VDD_IN": rail(5000)}, "tot": {}}, 5.0, {"VDD_IN": 5.0}, "VDD_IN", id="no total"),
        pytest.param({"rail": {"VDD_IN": rail(5000, online=False)}}, None, None, None, id="a rail that is off"),
        pytest.param({"rail": {"VDD_IN": rail(None)}, "tot": {"power": "5 W"}}, None, None, None, id="no numbers"),
        pytest.param({"rail": {"VDD_IN": rail(-5)}, "tot": {"power": float("nan")}}, None, None, None, id="bad ones"),
        pytest.param({"rail": [1, 2], "tot": 7}, None, None, None, id="another shape"),
    ],
)
def test_the_boards_power_by_jtop(
    power: dict[str, Any], watts: float | None, rails: dict[str, float] | None, power_of: str | None
) -> None:
    fields, of = board_power(power)
    assert (fields["power_w"], fields["rails_w"], of) == (
        None if watts is None else pytest.approx(watts),
        rails,
        power_of,
    )


def test_zones_of_old_and_new_versions_without_those_that_are_off() -> None:
    told = {"CPU": 45.5, "GPU": {"temp": 44.0}, "PMIC": 100.0, "CV0": -256, "AO": {"temp": None}, "tj": {"temp": 45.5}}
    assert zones_c(told) == {"CPU": 45.5, "GPU": 44.0, "tj": 45.5}


def test_following_jtop_costs_under_1_percent_of_a_core(root: Path, install: Callable[..., Any]) -> None:
    install(ok=lambda self: True)  # it never waits
    reader = board_reader(root)
    assert not isinstance(reader, Absent)
    with Sampler(reader) as sampler:
        began, cpu = time.monotonic(), time.process_time()
        time.sleep(2.0)
        used_s, lasted_s = time.process_time() - cpu, time.monotonic() - began
    close_reader(reader)
    assert len(sampler.state(Windows((began, began + lasted_s))).samples) >= 8
    assert used_s / lasted_s < 0.01
