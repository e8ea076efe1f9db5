"""Trees of the sensors' files of five Jetsons, below a folder that stands for `/`. Labels, layout and figures are those
of real boards at their L4T release."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

IIO = "sys/bus/i2c/devices"
HWMON = "sys/class/hwmon"
THERMAL = "sys/class/thermal"


def write(root: Path, files: Mapping[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def _iio(root: Path, device: str, rails_mw: Mapping[str, int]) -> None:
    folder = f"{IIO}/{device}/iio:device{device[-1]}"
    for channel, (name, milliwatts) in enumerate(rails_mw.items()):
        write(root, {f"{folder}/rail_name_{channel}": name, f"{folder}/in_power{channel}_input": milliwatts})


def _ina3221(root: Path, hwmon: int, channels: Mapping[str, tuple[int, int]]) -> None:
    """Labels in the order of channels, each with millivolts and milliamperes."""
    folder = f"{HWMON}/hwmon{hwmon}"
    write(root, {f"{folder}/name": "ina3221", f"{folder}/in7_label": "sum of shunt voltages"})
    write(root, {f"{folder}/in7_input": 760, f"{folder}/curr4_input": 360})
    for channel, (name, (millivolts, milliamperes)) in enumerate(channels.items(), 1):
        write(root, {f"{folder}/in{channel}_label": name.split("#")[0]})
        write(root, {f"{folder}/in{channel}_input": millivolts, f"{folder}/curr{channel}_input": milliamperes})


def _zones(root: Path, zones: Mapping[str, int], trips: Mapping[str, tuple[str, int]] | None = None) -> None:
    for number, (kind, millidegrees) in enumerate(zones.items()):
        folder = f"{THERMAL}/thermal_zone{number}"
        write(root, {f"{folder}/type": kind, f"{folder}/temp": millidegrees})
        write(root, {f"{folder}/trip_point_0_type": "critical", f"{folder}/trip_point_0_temp": 104500})
        if trips and kind in trips:
            trip, celsius = trips[kind]
            write(root, {f"{folder}/trip_point_1_type": trip, f"{folder}/trip_point_1_temp": celsius})


def _cooling(root: Path, states: Mapping[str, int]) -> None:
    for number, (kind, state) in enumerate(states.items()):
        folder = f"{THERMAL}/cooling_device{number}"
        write(root, {f"{folder}/type": kind, f"{folder}/cur_state": state, f"{folder}/max_state": 3})


def _gpu(root: Path, name: str, now_hz: int, highest_hz: int, load: str | None, per_mille: int = 0) -> None:
    folder = f"sys/class/devfreq/{name}"
    write(root, {f"{folder}/cur_freq": now_hz, f"{folder}/max_freq": highest_hz, f"{folder}/min_freq": 306000000})
    if load is not None:
        write(root, {load: per_mille})


def _over_current(root: Path, hwmon: int, counts: tuple[int, int, int]) -> None:
    folder = f"{HWMON}/hwmon{hwmon}"
    write(root, {f"{folder}/name": "soctherm_oc"})
    for number, count in enumerate(counts, 1):
        write(root, {f"{folder}/oc{number}_event_cnt": count, f"{folder}/oc{number}_throt_en": 1})


def nano_r32(root: Path) -> None:
    write(root, {"etc/nv_tegra_release": "# R32 (release), REVISION: 4.3, GCID: 21589087, BOARD: t210ref"})
    _iio(root, "6-0040", {"POM_5V_IN": 1022, "POM_5V_GPU": 0, "POM_5V_CPU": 204})
    _zones(root, {"AO-therm": 39500, "CPU-therm": 36500, "GPU-therm": 36000, "PMIC-Die": 100000})
    _cooling(root, {"pwm-fan": 2, "gpu_vts": 1})
    _gpu(root, "57000000.gpu", 76800000, 921600000, "sys/devices/gpu.0/load", 0)


def xavier_r32(root: Path) -> None:
    write(root, {"etc/nv_tegra_release": "# R32 (release), REVISION: 4.3, GCID: 21589087, BOARD: t186ref"})
    _iio(root, "1-0040", {"GPU": 0, "CPU": 311, "SOC": 932})
    _iio(root, "1-0041", {"CV": 0, "VDDRQ": 621, "SYS5V": 1482})
    _zones(
        root,
        {"AO-therm": 37500, "GPU-therm": 37500, "Tdiode_tegra": 40000, "PMIC-Die": 100000, "CPU-therm": 37500},
        {"GPU-therm": ("passive", 95500)},
    )
    _cooling(root, {"pwm-fan": 1, "gpu-balanced": 0, "cpu-balanced": 0})
    _gpu(root, "17000000.gv11b", 318750000, 1377000000, "sys/devices/gpu.0/load", 625)


def xavier_r35(root: Path) -> None:
    write(root, {"etc/nv_tegra_release": "# R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref"})
    _ina3221(root, 3, {"GPU": (19120, 80), "CPU": (19120, 40), "SOC": (19120, 120)})
    _ina3221(root, 4, {"CV": (19120, 0), "VDDRQ": (19120, 40), "SYS5V": (4968, 328)})
    _zones(root, {"CPU-therm": 41000, "GPU-therm": 40500, "AO-therm": 39000, "thermal-fan-est": 40250})
    _cooling(root, {"pwm-fan": 1, "thermal-cpufreq-0": 0})
    _gpu(root, "17000000.gv11b", 1377000000, 1377000000, "sys/devices/platform/gpu.0/load", 990)


def agx_orin_r35(root: Path) -> None:
    write(root, {"etc/nv_tegra_release": "# R35 (release), REVISION: 3.1, GCID: 32790763, BOARD: t186ref"})
    write(root, {f"{HWMON}/hwmon0/name": "pwmfan", f"{HWMON}/hwmon0/pwm1": 77})
    _ina3221(root, 1, {"VDD_GPU_SOC": (20000, 120), "VDD_CPU_CV": (20000, 20), "VIN_SYS_5V0": (5000, 806)})
    _ina3221(root, 2, {"NC#1": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 60), "NC#3": (0, 0)})
    _over_current(root, 3, (0, 15, 37))
    _zones(
        root, {"CPU-therm": 42593, "GPU-therm": -256000, "CV0-therm": -256000, "tj-therm": 42593, "SOC0-therm": 39375}
    )
    _cooling(root, {"pwm-fan": 0, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "hot-surface-alert": 1})
    _gpu(root, "17000000.ga10b", 1300500000, 1300500000, "sys/devices/platform/gpu.0/load", 120)


def orin_nano_r36(root: Path) -> None:
    compatible = root / "proc/device-tree/compatible"
    compatible.parent.mkdir(parents=True)
    compatible.write_bytes(b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0")
    _ina3221(root, 1, {"VDD_IN": (5000, 2496), "VDD_CPU_GPU_CV": (5000, 934), "VDD_SOC": (5000, 563)})
    write(root, {f"{HWMON}/hwmon2/name": "ucsi_source_psy_usbc00", f"{HWMON}/hwmon2/in1_label": "VIN"})
    write(root, {f"{HWMON}/hwmon2/in1_input": 5000, f"{HWMON}/hwmon2/curr1_input": 3000})
    _over_current(root, 3, (0, 0, 0))
    _zones(
        root,
        {"cpu-thermal": 53968, "gpu-thermal": 53343, "cv0-thermal": -256000, "tj-thermal": 53968},
        {"cpu-thermal": ("passive", 99000), "tj-thermal": ("active", 51000)},
    )
    _cooling(root, {"pwm-fan": 1, "cpufreq-cpu0": 0, "devfreq-17000000.gpu": 0})
    _gpu(root, "17000000.gpu", 621000000, 1020000000, "sys/class/devfreq/17000000.gpu/device/load", 630)


def thor_r38(root: Path) -> None:
    write(root, {"etc/nv_tegra_release": "# R38 (release), REVISION: 2.2, GCID: 42205042, BOARD: generic"})
    write(root, {f"{HWMON}/hwmon1/name": "ina238", f"{HWMON}/hwmon1/power1_input": 124486000})
    write(root, {f"{HWMON}/hwmon1/in1_input": 20000, f"{HWMON}/hwmon1/curr1_input": 6224})
    _ina3221(root, 2, {"VDD_GPU": (20000, 1896), "VDD_CPU_SOC_MSS": (20000, 1502), "VIN_SYS_5V0": (5000, 3096)})
    _over_current(root, 5, (0, 0, 179))
    _zones(root, {"cpu-thermal": 58250, "gpu-thermal": 56937, "tj-thermal": 66625})
    _cooling(root, {"pwm-fan": 2})
    _gpu(root, "gpu-gpc-0", 1575000000, 1575000000, None)
    write(root, {"sys/class/devfreq/gpu-nvd-0/cur_freq": 1692000000})


BOARDS: Mapping[str, Callable[[Path], None]] = {
    tree.__name__: tree for tree in (nano_r32, xavier_r32, xavier_r35, agx_orin_r35, orin_nano_r36, thor_r38)
}


def board(root: Path, name: str) -> Path:
    """The files of a board's sensors, written below `root`."""
    BOARDS[name](root)
    return root
