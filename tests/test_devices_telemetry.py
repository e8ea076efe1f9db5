import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tcsweep.devices.energy import joules
from tcsweep.devices.telemetry import (
    Absent,
    Limits,
    Look,
    NvmlReader,
    Reader,
    Sampler,
    Users,
    Windows,
    device_state,
    foreign_memory,
    load_of_processes,
    load_while_idle,
    occupants,
    open_reader,
    over_current,
    thinned,
)
from tcsweep.evidence.facts import DeviceSample, DeviceState

OURS = "GPU-11111111-2222-3333-4444-555555555555"
OTHER = "GPU-99999999-2222-3333-4444-555555555555"


class NVMLError(Exception):
    """As pynvml's: its number, and its text."""

    def __init__(self, value: int, text: str = "Not Supported") -> None:
        super().__init__(text)
        self.value = value


def gpu(**answers: Any) -> dict[str, Any]:
    """What one GPU answers to each getter; an exception is raised, a callable called."""
    return {
        "nvmlDeviceGetClockInfo": lambda kind: {"sm": 1980, "mem": 2619}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda kind: {"sm": 1980, "mem": 2619}[kind],
        "nvmlDeviceGetTemperature": lambda kind: 45,
        "nvmlDeviceGetPowerUsage": lambda: 350_500,
        "nvmlDeviceGetEnforcedPowerLimit": lambda: 700_000,
        "nvmlDeviceGetUtilizationRates": lambda: SimpleNamespace(gpu=97, memory=30),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda: 4,
        "nvmlDeviceGetTotalEnergyConsumption": lambda: 12_345_678,
        "nvmlDeviceGetProcessUtilization": lambda since: [],
        "nvmlDeviceGetComputeRunningProcesses": list,
        "nvmlDeviceGetGraphicsRunningProcesses": list,
        "nvmlDeviceGetSamples": lambda kind, since: (0, []),
        "nvmlDeviceGetMigMode": NVMLError(3),
    } | answers


MUTE = {name: NVMLError(3) for name in gpu()}
IDLE = NVMLError(6, "Not Found")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Install a fake pynvml with these GPUs, in this order."""

    def install(gpus: dict[str, dict[str, Any]], init: Exception | None = None) -> ModuleType:
        module: Any = ModuleType("pynvml")

        def start() -> None:
            if init is not None:
                raise init

        def by_uuid(uuid: str) -> str:
            if uuid not in gpus:
                raise NVMLError(6, "Not Found")
            return uuid

        def getter(name: str) -> Callable[..., Any]:
            def ask(handle: str, *about: Any) -> Any:
                answer = gpus[handle].get(name, NVMLError(13, "Function Not Found"))
                if isinstance(answer, Exception):
                    raise answer
                return answer(*about)

            return ask

        module.nvmlInit, module.nvmlDeviceGetHandleByUUID = start, by_uuid
        module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM, module.NVML_TEMPERATURE_GPU = "sm", "mem", "gpu"
        module.NVML_GPU_UTILIZATION_SAMPLES = 1
        for name in {name for answers in gpus.values() for name in answers}:
            setattr(module, name, getter(name))
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return module

    return install


def opened(uuid: str | None = OURS) -> Reader:
    reader = open_reader(uuid)
    assert not isinstance(reader, Absent), reader.reason
    return reader


# --- the reader ---


@pytest.mark.parametrize("uuid", [OURS, OURS.removeprefix("GPU-")], ids=["NVML's", "torch's"])
def test_the_gpu_is_found_by_its_uuid_wherever_it_stands(nvml: Callable[..., Any], uuid: str) -> None:
    others = gpu(nvmlDeviceGetClockInfo=lambda kind: 300, nvmlDeviceGetPowerUsage=lambda: 60_000)
    nvml({OTHER: others, OURS: gpu()})
    ours = {
        "sm_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "temperature_c": 45.0,
        "power_w": 350.5,
        "utilisation": 0.97,
        "throttle": 4,
    }
    assert opened(uuid).sample() == ours
    assert opened(OTHER).sample() == {**ours, "sm_mhz": 300.0, "memory_mhz": 300.0, "power_w": 60.0}
    assert opened(uuid).limits() == Limits(1980.0, 700.0, 1.0)


def test_a_gpu_that_nvml_does_not_have_is_absent(nvml: Callable[..., Any]) -> None:
    nvml({OTHER: gpu()})
    assert open_reader(OURS) == Absent(f"NVML does not find GPU {OURS}: Not Found")


def test_a_gpu_without_a_known_uuid_is_absent_rather_than_guessed(nvml: Callable[..., Any]) -> None:
    nvml({OTHER: gpu()})
    assert open_reader(None) == Absent("the GPU's UUID is not known (torch before 2.4 does not tell it)")


def test_a_mute_nvml_is_absent(nvml: Callable[..., Any]) -> None:
    nvml({OURS: MUTE})
    assert open_reader(OURS) == Absent("NVML initialises but answers nothing about this GPU")
    assert joules(OURS) is None


def test_a_library_that_does_not_match_its_driver_is_absent(nvml: Callable[..., Any]) -> None:
    nvml({OURS: gpu()}, init=NVMLError(18, "Driver/library version mismatch"))
    assert open_reader(OURS) == Absent("NVML does not initialise: Driver/library version mismatch")
    assert joules(OURS) is None


def test_a_missing_pynvml_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = open_reader(OURS)
    assert isinstance(found, Absent)
    assert found.reason.startswith("NVML cannot be used: ")


@pytest.mark.parametrize("uuid", ["MIG-11111111-2222-3333-4444-555555555555", OURS], ids=["instance", "divided GPU"])
def test_a_mig_instance_is_absent(nvml: Callable[..., Any], uuid: str) -> None:
    nvml({OURS: gpu(nvmlDeviceGetMigMode=lambda: [1, 1])})
    assert open_reader(uuid) == Absent("a MIG instance: NVML tells the state of whole GPUs")


@pytest.mark.parametrize(
    ("getters", "fields"),
    [
        (["nvmlDeviceGetClockInfo"], ["sm_mhz", "memory_mhz"]),
        (["nvmlDeviceGetTemperature"], ["temperature_c"]),
        (["nvmlDeviceGetPowerUsage"], ["power_w"]),
        (["nvmlDeviceGetUtilizationRates"], ["utilisation"]),
        (["nvmlDeviceGetCurrentClocksEventReasons"], ["throttle"]),
    ],
)
def test_a_getter_that_refuses_empties_its_own_field_alone(
    nvml: Callable[..., Any], getters: list[str], fields: list[str]
) -> None:
    nvml({OURS: gpu()})
    whole = opened().sample()
    nvml({OURS: gpu(**dict.fromkeys(getters, NVMLError(3)))})
    assert opened().sample() == whole | dict.fromkeys(fields)


def test_throttle_reasons_have_an_older_name_too(nvml: Callable[..., Any]) -> None:
    answers = gpu(nvmlDeviceGetCurrentClocksThrottleReasons=lambda: 0x40)
    del answers["nvmlDeviceGetCurrentClocksEventReasons"]
    nvml({OURS: answers})
    assert opened().sample()["throttle"] == 0x40


def test_limits_that_are_refused_are_none(nvml: Callable[..., Any]) -> None:
    refused = ("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetSamples")
    nvml({OURS: gpu(**dict.fromkeys(refused, NVMLError(3)))})
    assert opened().limits() == Limits(None, None, 1.0)


@pytest.mark.parametrize(
    ("stamps_us", "period_s"),
    [
        ([0, 5_000_000, 5_200_000, 5_400_000], 0.2),
        ([5_000_000, 5_020_000], 1 / 6),  # shorter and longer than NVML documents
        ([5_000_000, 9_000_000], 1.0),
        ([5_000_000], 1.0),
    ],
)
def test_the_period_of_the_utilisation_is_that_of_nvmls_buffer(
    nvml: Callable[..., Any], stamps_us: list[int], period_s: float
) -> None:
    values = [SimpleNamespace(timeStamp=stamp) for stamp in stamps_us]
    nvml({OURS: gpu(nvmlDeviceGetSamples=lambda kind, since: (0, values))})
    assert opened().limits().utilisation_period_s == pytest.approx(period_s)


def test_processes_are_told_with_their_share_since_the_last_call_and_their_memory(nvml: Callable[..., Any]) -> None:
    asked: list[int] = []

    def used(since: int) -> list[SimpleNamespace]:
        asked.append(since)
        return [
            SimpleNamespace(pid=7, timeStamp=2_000, smUtil=90),
            SimpleNamespace(pid=7, timeStamp=3_000, smUtil=70),
            SimpleNamespace(pid=8, timeStamp=3_000, smUtil=10),
            SimpleNamespace(pid=9, timeStamp=3_000, smUtil=4_000_000),  # an entry that NVML did not fill
        ]

    held = [SimpleNamespace(pid=7, usedGpuMemory=2**30), SimpleNamespace(pid=8, usedGpuMemory=None)]
    shown = [SimpleNamespace(pid=7, usedGpuMemory=2**31), SimpleNamespace(pid=5, usedGpuMemory=2**20)]
    nvml(
        {
            OURS: gpu(
                nvmlDeviceGetProcessUtilization=used,
                nvmlDeviceGetComputeRunningProcesses=lambda: held,
                nvmlDeviceGetGraphicsRunningProcesses=lambda: shown,
            )
        }
    )
    reader = opened()
    assert reader.processes() == Users({7: pytest.approx(0.8), 8: 0.1}, {7: 2048.0, 8: None, 5: 1.0})
    reader.processes()
    assert asked == [0, 3_000]


def test_an_idle_gpu_has_no_loads_and_a_refusal_is_not_idleness(nvml: Callable[..., Any]) -> None:
    nvml({OURS: gpu(nvmlDeviceGetProcessUtilization=IDLE)})
    assert opened().processes() == Users({}, {})
    refused = ("ProcessUtilization", "ComputeRunningProcesses", "GraphicsRunningProcesses")
    nvml({OURS: gpu(**{f"nvmlDeviceGet{name}": NVMLError(3) for name in refused})})
    assert opened().processes() == Users(None, None)


def test_joules_are_of_the_gpu_with_the_uuid(nvml: Callable[..., Any]) -> None:
    nvml({OTHER: gpu(nvmlDeviceGetTotalEnergyConsumption=lambda: 1), OURS: gpu()})
    read = joules(OURS)
    assert read is not None
    assert read() == 12_345.678


def test_one_failed_read_of_the_energy_is_tried_again_and_two_are_not_a_number(nvml: Callable[..., Any]) -> None:
    answers = iter([None, 5_000, 6_000, None, 7_000, None, None])

    def counter() -> int:
        answer = next(answers)
        if answer is None:
            raise NVMLError(999)
        return answer

    nvml({OURS: gpu(nvmlDeviceGetTotalEnergyConsumption=counter)})
    read = joules(OURS)  # its trial fails once
    assert read is not None
    assert [read(), read()] == [6.0, 7.0]
    assert math.isnan(read())


# --- the state, from numbers ---


def at(*seconds: float, **fields: Any) -> list[DeviceSample]:
    return [DeviceSample(second, **fields) for second in seconds]


def test_samples_are_told_from_the_start_of_the_timed_blocks() -> None:
    samples = [DeviceSample(99.5, sm_mhz=600.0, utilisation=0.5), DeviceSample(100.5, sm_mhz=1980.0, throttle=4)]
    assert device_state(samples, (), frozenset(), Limits(1980.0, 700.0), Windows((100.0, 102.0))) == DeviceState(
        samples=(DeviceSample(-0.5, sm_mhz=600.0, utilisation=0.5), DeviceSample(0.5, sm_mhz=1980.0, throttle=4)),
        timed_s=2.0,
        sm_mhz_max=1980.0,
        power_limit_w=700.0,
    )


def test_a_gpu_that_stopped_telling_is_missing() -> None:
    assert device_state((), (), frozenset(), Limits(1980.0), Windows((5.0, 7.0))) == DeviceState(
        timed_s=2.0, missing="the GPU stopped telling anything about itself"
    )


def test_a_utilisation_of_0_throughout_is_no_reading_and_no_evidence_of_an_idle_gpu() -> None:
    samples = at(1.0, 2.0, 11.0, sm_mhz=900.0, utilisation=0.0)
    state = device_state(samples, (), frozenset(), Limits(), Windows((10.0, 12.0), idle=[(-5.0, 5.0)]))
    assert state == DeviceState(
        samples=tuple(at(-9.0, -8.0, 1.0, sm_mhz=900.0)), timed_s=2.0, foreign_load=None, foreign_source=None
    )


def test_many_samples_are_thinned_evenly_and_the_extremes_of_the_clock_stay() -> None:
    samples = [DeviceSample(float(i), sm_mhz=1500.0 + i % 7, throttle=4) for i in range(5000)]
    samples[1234] = DeviceSample(1234.0, sm_mhz=210.0, throttle=4)
    samples[4001] = DeviceSample(4001.0, sm_mhz=1980.0, throttle=4)
    samples[4777] = DeviceSample(4777.0, sm_mhz=135.0, throttle=4)  # after the timed blocks
    samples[3333] = DeviceSample(3333.0, sm_mhz=1503.0, throttle=0x40)
    kept = thinned(samples, (1000.0, 4500.0))
    times = [s.at_s for s in kept]
    assert len(kept) == 200
    assert times == sorted(set(times))
    assert {1234.0, 4001.0, 4777.0, 3333.0} <= set(times)
    assert max(later - earlier for earlier, later in zip([-1.0, *times], [*times, 5000.0])) < 60
    assert thinned(samples[:200], (0.0, 100.0)) == tuple(samples[:200])


def test_samples_without_clocks_are_thinned_to_the_last_one_allowed() -> None:
    samples = at(*map(float, range(1000)), power_w=3.0)
    assert [len(thinned(samples, (0.0, 9.0), most)) for most in (1, 2, 999)] == [1, 2, 999]


# --- a Jetson's over-current counters ---


def counted(*told: tuple[float, dict[str, int] | None]) -> list[DeviceSample]:
    return [DeviceSample(when, over_current=counts) for when, counts in told]


@pytest.mark.parametrize(
    ("told", "risen"),
    [
        pytest.param([(9.0, {"oc2": 15, "oc3": 30}), (9.9, {"oc2": 15, "oc3": 37}), (10.5, {"oc2": 15, "oc3": 37}),
                      (12.1, {"oc2": 15, "oc3": 40}), (13.0, {"oc2": 99, "oc3": 99})],
                     {"oc2": 0, "oc3": 3}, id="from the last before to the first after"),
        pytest.param([(10.5, {"oc3": 1}), (11.5, {"oc3": 3})], {"oc3": 2}, id="only inside"),
        pytest.param([(9.9, {"oc3": 7}), (11.0, None), (12.1, {"oc3": 9})], {"oc3": 2}, id="one that did not answer"),
        pytest.param([(9.9, {"oc3": 7}), (11.0, {"oc3": 1}), (12.1, {"oc3": 3})], {"oc3": 3}, id="began anew"),
        pytest.param([(9.9, {"oc1": 0, "oc3": 7}), (12.1, {"oc3": 9})], {"oc3": 2}, id="a counter that is gone"),
        pytest.param([(9.9, {"oc3": 7})], None, id="a single look"),
        pytest.param([(9.9, None), (12.1, None)], None, id="no counters"),
    ],
)  # fmt: skip
def test_over_current_is_how_far_the_counters_rose_during_the_timed_blocks(
    told: list[Any], risen: dict[str, int] | None
) -> None:
    assert over_current(counted(*told), (10.0, 12.0)) == risen
    state = device_state(counted(*told), (), OWN, Limits(power_of="INA3221 VDD_IN"), Windows((10.0, 12.0)))
    assert (state.over_current, state.power_of) == (risen, "INA3221 VDD_IN")


def test_events_in_a_long_round_are_counted_before_its_samples_are_thinned() -> None:
    every = [DeviceSample(float(i), over_current={"oc3": int(i > 3001)}) for i in range(5000)]
    state = device_state(every, (), OWN, Limits(), Windows((3001.0, 3002.0)))
    assert (len(state.samples), state.over_current) == (200, {"oc3": 1})


def test_a_throttling_that_also_stood_before_is_kept_in_the_timed_blocks() -> None:
    held = [DeviceSample(float(i), throttle=0x20 if i in (3, 3003) else 0) for i in range(5000)]
    assert {3.0, 3003.0} <= {s.at_s for s in thinned(held, (3000.0, 4000.0))}


OWN = frozenset({50})


def looks(*told: tuple[float, dict[int, float] | None, dict[int, float | None] | None]) -> list[Look]:
    return [Look(when, Users(load, memory)) for when, load, memory in told]


@pytest.mark.parametrize(
    ("told", "load"),
    [
        pytest.param([(10.0, {}, {50: 1.0}), (12.0, {50: 0.9}, {50: 1.0})], 0.0, id="nobody else"),
        pytest.param([(10.0, {}, {}), (12.0, {50: 0.5, 70: 0.3, 71: 0.1}, {})], 0.4, id="two others"),
        pytest.param(
            [(10.0, {70: 0.9}, {}), (11.0, {50: 0.5, 70: 0.4}, {}), (12.0, {50: 0.9}, {})], 0.2, id="half the time"
        ),
        pytest.param(
            [(9.0, {}, {}), (11.0, {50: 0.5, 70: 0.4}, {}), (14.0, {50: 0.9, 70: 0.2}, {})], 0.3, id="overlaps"
        ),
        pytest.param([(10.0, {}, {50: 1.0}), (12.0, {70: 0.8, 71: 0.7}, {50: 1.0})], 1.0, id="never above 1"),
        pytest.param([(10.0, {}, {}), (12.0, {}, {})], None, id="an empty list though our worker runs"),
        pytest.param([(10.0, {}, {70: 5.0}), (12.0, {70: 0.9}, {70: 5.0})], None, id="another namespace's pids"),
        pytest.param([(10.0, {}, {50: 1.0}), (12.0, {}, {50: 1.0})], None, id="loads that show not even ours"),
        pytest.param([(10.0, None, {50: 1.0}), (12.0, None, {50: 1.0})], None, id="loads refused"),
        pytest.param([(1.0, {50: 0.5}, {}), (9.0, {50: 0.5, 70: 0.5}, {})], None, id="none in the timed blocks"),
        pytest.param([(11.0, {50: 0.5, 70: 0.5}, {})], None, id="a single look, of an unknown time"),
        pytest.param([], None, id="no look"),
    ],
)
def test_the_load_of_foreign_processes_is_their_share_during_the_timed_blocks(
    told: list[Any], load: float | None
) -> None:
    found = load_of_processes(looks(*told), OWN, (10.0, 12.0))
    assert found == (None if load is None else pytest.approx(load))


@pytest.mark.parametrize(
    ("told", "mib"),
    [
        pytest.param([(9.0, {}, {50: 9.0, 70: 500.0}), (10.5, {}, {50: 9.0, 70: 100.0, 71: 20.0})], 120.0, id="timed"),
        pytest.param([(8.0, {}, {50: 9.0}), (9.0, {}, {50: 9.0, 70: 5.0}), (13.0, {}, {70: 8.0})], 5.0, id="before"),
        pytest.param([(10.5, {}, {50: 9.0})], 0.0, id="nobody else"),
        pytest.param([(10.5, {}, {50: 9.0, 70: None})], None, id="one that is not told"),
        pytest.param([(10.5, {}, {})], None, id="an empty list though our worker runs"),
        pytest.param([(10.5, {}, {70: 9.0})], None, id="another namespace's pids"),
        pytest.param([(10.5, {50: 0.5}, None)], None, id="refused"),
    ],
)
def test_foreign_memory_is_what_the_others_held_during_the_timed_blocks(told: list[Any], mib: float | None) -> None:
    assert foreign_memory(looks(*told), OWN, (10.0, 12.0)) == mib


@pytest.mark.parametrize(
    ("samples", "load"),
    [
        pytest.param([(3.0, 0.4), (3.5, 0.3), (5.0, 0.0)], 0.3, id="the least of those inside"),
        pytest.param([(2.9, 0.4), (2.5, 0.2), (2.1, 0.1)], 0.4, id="those that could hold our last burst do not count"),
        pytest.param([(2.0, 0.7), (4.1, 0.0)], None, id="none wholly inside"),
        pytest.param([(3.0, None)], None, id="not told"),
    ],
)
def test_idle_utilisation_counts_only_where_two_whole_periods_before_it_were_idle(
    samples: list[tuple[float, float | None]], load: float | None
) -> None:
    told = [DeviceSample(when, utilisation=share) for when, share in samples]
    assert load_while_idle(told, 0.4, [(0.0, 0.5), (2.0, 4.0)]) == load


def test_processes_come_before_the_idle_utilisation_and_that_before_nothing() -> None:
    samples = at(2.0, 11.0, utilisation=0.25)
    windows = Windows((10.0, 12.0), idle=[(0.0, 4.0)])
    visible = looks((10.0, {}, {}), (12.0, {50: 0.5, 70: 0.5}, {}))

    def source(seen: list[Look], chosen: Windows) -> tuple[float | None, str | None]:
        state = device_state(samples, seen, OWN, Limits(), chosen)
        return state.foreign_load, state.foreign_source

    assert source(visible, windows) == (0.5, "processes")
    assert source([], windows) == (0.25, "utilisation while this sweep was idle")
    assert source([], Windows((10.0, 12.0))) == (None, None)


# --- the sampler ---


class FakeReader:
    """Answers by the number of the sample."""

    source = "fake"

    def __init__(self, answer: Callable[[int], dict[str, Any]], users: Callable[[], Users] = Users) -> None:
        self.answer, self.users, self.samples = answer, users, 0
        self.ready = threading.Event()  # after the 40th
        self.used: float | None = None

    def sample(self) -> dict[str, Any]:
        self.samples += 1
        if self.samples == 40:
            self.ready.set()
        return self.answer(self.samples - 1)

    def limits(self) -> Limits:
        return Limits(1980.0, 700.0)

    def processes(self) -> Users:
        return self.users()

    def used_memory_mib(self) -> float | None:
        return self.used


class TickingClock:
    """A clock of the sampler's thread alone: a tenth of a second at each sample, as that thread reads it twice."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.reads * 0.05


def test_a_clock_that_halves_in_the_timed_blocks_is_seen_there() -> None:
    reader = FakeReader(lambda i: {"sm_mhz": 1980.0 if i < 20 else 990.0})
    with Sampler(reader, 0.0005, TickingClock()) as sampler:
        assert reader.ready.wait(10)
    state = sampler.state(Windows((1.0, 3.0)))
    timed = [s for s in state.samples if 0 <= s.at_s <= state.timed_s]
    assert (state.source, state.sm_mhz_max, state.power_limit_w) == ("fake", 1980.0, 700.0)
    assert [s.sm_mhz for s in timed] == sorted((s.sm_mhz for s in timed if s.sm_mhz), reverse=True)
    assert {s.sm_mhz for s in timed} == {1980.0, 990.0}
    assert len(timed) >= 18


def test_a_worker_that_is_gone_by_the_end_is_known_as_our_own() -> None:
    shown = Users({50: 0.6, 70: 0.2}, {50: 900.0, 70: 64.0})
    own = [{50}]
    reader = FakeReader(lambda i: {"sm_mhz": 1.0}, lambda: shown)
    with Sampler(reader, 0.0005, TickingClock(), lambda: own[0]) as sampler:
        assert reader.ready.wait(10)
        own[0] = set()
    state = sampler.state(Windows((1.0, 2.0)))
    assert (state.foreign_load, state.foreign_source, state.foreign_memory_mib) == (
        pytest.approx(0.2),
        "processes",
        64.0,
    )


def test_without_a_reader_the_state_says_why() -> None:
    with Sampler(Absent("NVML is not here")) as sampler:
        pass
    assert sampler.state(Windows((3.0, 4.5))) == DeviceState(timed_s=1.5, missing="NVML is not here")


def test_nothing_that_fails_in_the_thread_reaches_the_sweep() -> None:
    def fail(*about: Any) -> Any:
        raise NVMLError(15, "GPU is lost")

    reader = FakeReader(lambda i: fail() if i % 2 else {"sm_mhz": 5.0, "no_such_field": 1}, fail)
    reader.limits = fail  # type: ignore[method-assign]
    with Sampler(reader, 0.0005, TickingClock(), fail) as sampler:
        assert reader.ready.wait(10)
    assert sampler.state(Windows((1.0, 2.0))) == DeviceState(
        timed_s=1.0, missing="the GPU stopped telling anything about itself"
    )


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_reader_that_hangs_is_left_behind(release: threading.Event) -> None:
    reader = FakeReader(lambda i: {"sm_mhz": 5.0} if i < 39 else {"sm_mhz": float(release.wait(30))})
    began = time.monotonic()
    with Sampler(reader, 0.0005, TickingClock()) as sampler:
        assert reader.ready.wait(10)
    assert len(sampler.state(Windows((0.0, 100.0))).samples) == 39
    assert time.monotonic() - began < 5


def test_a_reader_that_hung_is_known_when_the_sampler_is_left(release: threading.Event) -> None:
    reader = FakeReader(lambda i: {"sm_mhz": 5.0} if i < 39 else {"sm_mhz": float(release.wait(30))})
    with Sampler(reader, 0.0005, TickingClock()) as hung:
        assert reader.ready.wait(10)
        assert not hung.hangs
    with Sampler(FakeReader(lambda i: {"sm_mhz": 5.0}), 0.0005) as fine:
        pass
    assert (hung.hangs, fine.hangs) == (True, False)


def test_even_a_round_shorter_than_the_period_has_a_sample_at_each_end() -> None:
    reader = FakeReader(lambda i: {"sm_mhz": 5.0})
    with Sampler(reader, period_s=60.0):
        while reader.samples == 0:
            time.sleep(0.001)
    assert reader.samples == 2


def test_nvml_sampling_costs_under_1_percent_of_a_core(nvml: Callable[..., Any]) -> None:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=2**30) for pid in range(20)]
    used = [SimpleNamespace(pid=pid, timeStamp=1, smUtil=4) for pid in range(20)]
    nvml(
        {
            OURS: gpu(
                nvmlDeviceGetComputeRunningProcesses=lambda: running,
                nvmlDeviceGetProcessUtilization=lambda since: used,
            )
        }
    )
    reader = opened()
    assert isinstance(reader, NvmlReader)
    with Sampler(reader, own_pids=lambda: {3}) as sampler:
        began, cpu = time.monotonic(), time.process_time()
        time.sleep(2.0)
        used_s, lasted_s = time.process_time() - cpu, time.monotonic() - began
    assert len(sampler.state(Windows((began, began + lasted_s))).samples) >= 15
    assert used_s / lasted_s < 0.01


# --- who is there before the sweep ---


@pytest.mark.parametrize(
    ("users", "used_mib", "said"),
    [
        (Users(), 600.0, None),
        (Users(memory_mib={}), 600.0, None),
        (Users(memory_mib={}), 30720.0, "30.0 GiB held by processes that cannot be seen from here"),
        (Users(memory_mib={7: 2048.0, 5: None}), None, "held by others: pid 5 an unknown part, pid 7 2.0 GiB"),
    ],
)
def test_who_holds_memory_before_the_first_round_is_said(
    users: Users, used_mib: float | None, said: str | None
) -> None:
    reader = FakeReader(lambda i: {}, lambda: users)
    reader.used = used_mib
    assert occupants(reader) == said


@pytest.mark.parametrize(
    ("users", "busy", "said"),
    [
        (Users(), 0.25, "25% busy with processes that cannot be seen from here"),
        (Users(), 0.04, None),
        (Users(), None, None),
        (Users(load={}), 0.25, None),  # NVML's utilisation is of up to a second ago: ours
    ],
)
def test_a_busy_gpu_whose_processes_cannot_be_seen_is_said(users: Users, busy: float | None, said: str | None) -> None:
    assert occupants(FakeReader(lambda i: {"utilisation": busy}, lambda: users)) == said


def test_a_reader_that_fails_knows_of_nobody() -> None:
    def fail() -> Users:
        raise OSError

    assert occupants(FakeReader(lambda i: {}, fail)) is None


def test_what_others_held_at_any_look_is_known_without_timed_blocks() -> None:
    users = Users(memory_mib={1: 500.0, 9: 1024.0})
    reader = FakeReader(lambda i: {}, lambda: users)
    with Sampler(reader, 0.0005, own_pids=lambda: {1}) as sampler:
        assert reader.ready.wait(10)
    assert sampler.foreign_memory_mib() == 1024.0
