from __future__ import annotations

import dataclasses

import pytest

from tcsweep.devices import Resolved
from tcsweep.engines import ENGINES
from tcsweep.job import Environment, Job
from tcsweep.plan import Planned, order, plan

from .test_sweep import jobs

CPU = Environment(device="cpu")
GPU = Environment(device="cuda:0", compute_capability="9.0", apex="amp", apex_version="0.1")
DEVICES = {
    "cpu": Resolved("cpu", CPU),
    "auto": Resolved("auto", GPU),
    "cuda:0": Resolved("cuda:0", GPU),
    "cuda:7": Resolved("cuda:7", None, "cuda:7 does not exist"),
}


@pytest.fixture
def absent_engine(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(
        ENGINES, "absent", dataclasses.replace(ENGINES["eager"], name="absent", missing=lambda _: "no engine here")
    )
    return "absent"


def rows(planned: list[Planned]) -> list[tuple[str, str, int, int]]:
    return [(p.job.precision, p.role, p.index, p.job.repeat) for p in planned]


def test_a_lone_precision_gets_its_baseline() -> None:
    asked = Job(precision="fp16", device="cpu")
    assert plan([asked], DEVICES) == [
        Planned(asked, "asked", 0, CPU),
        Planned(Job(device="cpu"), "baseline", 1, CPU),
    ]


def test_baselines_come_before_references_and_both_after_what_was_asked() -> None:
    asked = [Job(precision="bf16", device="cpu", layout="nhwc"), Job(precision="bf16", device="cpu", batch=8)]
    assert plan(asked, DEVICES) == [
        Planned(asked[0], "asked", 0, CPU),
        Planned(asked[1], "asked", 1, CPU),
        Planned(Job(device="cpu", layout="nhwc"), "baseline", 2, CPU),
        Planned(Job(device="cpu", batch=8), "baseline", 3, CPU),
        Planned(Job(device="cpu"), "reference", 4, CPU),
    ]


def test_a_baseline_that_is_a_reference_too_is_added_once_as_a_baseline() -> None:
    asked = [Job(precision="fp16", device="cpu", layout=layout) for layout in ("nhwc", "nchw")]
    assert rows(plan(asked, DEVICES)) == [
        ("fp16", "asked", 0, 0),
        ("fp16", "asked", 1, 0),
        ("fp32", "baseline", 2, 0),
        ("fp32", "baseline", 3, 0),
    ]


def test_a_baseline_that_was_asked_for_is_not_added_again() -> None:
    asked = jobs("fp16", "fp32", device="cpu")
    assert plan(asked, DEVICES) == [Planned(job, "asked", n, CPU) for n, job in enumerate(asked)]


def test_an_engine_of_its_own_is_referred_to_eager_nchw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "other", dataclasses.replace(ENGINES["eager"], name="other"))
    asked = Job(device="cpu", engine="other", layout="nhwc")
    assert plan([asked], DEVICES) == [
        Planned(asked, "asked", 0, CPU),
        Planned(Job(device="cpu"), "reference", 1, CPU),
    ]


def test_the_same_point_asked_for_again_is_a_numbered_repeat() -> None:
    fp32, fp16 = jobs("fp32", "fp16", device="cpu")
    assert rows(plan([fp32, fp16, fp32, fp16, fp32], DEVICES)) == [
        ("fp32", "asked", 0, 0),
        ("fp16", "asked", 1, 0),
        ("fp32", "asked", 2, 1),
        ("fp16", "asked", 3, 1),
        ("fp32", "asked", 4, 2),
    ]


def test_two_names_of_one_device_are_one_device() -> None:
    planned = plan([Job(device="auto"), Job(device="cuda:0")], DEVICES)
    assert [p.job for p in planned] == [Job(device="cuda:0"), Job(device="cuda:0", repeat=1)]


def test_each_device_has_baselines_of_its_own_environment() -> None:
    asked = [Job(precision="fp16", device="cpu"), Job(precision="fp16", device="auto")]
    assert plan(asked, DEVICES)[2:] == [
        Planned(Job(device="cpu"), "baseline", 2, CPU),
        Planned(Job(device="cuda:0"), "baseline", 3, GPU),
    ]


@pytest.mark.parametrize(
    ("device", "asked", "backend"),
    [("auto", "auto", "apex"), ("auto", "torch", "torch"), ("cpu", "auto", "torch")],
)
def test_the_amp_backend_is_resolved_with_the_device(device: str, asked: str, backend: str) -> None:
    (planned, _) = plan([Job(precision="o1", amp_backend=asked, device=device)], DEVICES)
    environment = DEVICES[device].environment
    assert environment is not None
    expected = Job(precision="o1", amp_backend=backend, device=environment.device)
    assert planned == Planned(expected, "asked", 0, environment)


def test_auto_and_the_backend_it_came_to_are_one_point() -> None:
    planned = plan([Job(precision="o2", amp_backend=a, device="cpu") for a in ("auto", "torch")], DEVICES)
    assert rows(planned) == [("o2", "asked", 0, 0), ("o2", "asked", 1, 1), ("fp32", "baseline", 2, 0)]


def test_a_device_that_is_not_there_gives_its_reason_and_no_baseline() -> None:
    asked = Job(precision="fp16", device="cuda:7")
    assert plan([asked], DEVICES) == [
        Planned(asked, "asked", 0, Environment(device="cuda:7"), "cuda:7 does not exist"),
    ]


def test_what_the_machine_cannot_do_gives_its_reason_and_no_baseline() -> None:
    asked = [Job(precision="tf32", device="cpu"), Job(precision="fp16", device="cpu", batch=2)]
    assert plan(asked, DEVICES) == [
        Planned(asked[0], "asked", 0, CPU, "tf32 needs an NVIDIA GPU: a CPU has no TF32"),
        Planned(asked[1], "asked", 1, CPU),
        Planned(Job(device="cpu", batch=2), "baseline", 2, CPU),
    ]


def test_apex_asked_for_by_name_where_it_cannot_run_is_skipped() -> None:
    (planned,) = plan([Job(precision="o1", amp_backend="apex", device="cpu")], DEVICES)
    assert planned.reason == "apex levels need CUDA (amp_backend=torch runs the torch-native twin)"


def test_the_precisions_reason_goes_before_the_engines(absent_engine: str) -> None:
    planned = plan(jobs("tf32", "fp32", device="cpu", engine=absent_engine), DEVICES)
    assert [p.reason for p in planned] == ["tf32 needs an NVIDIA GPU: a CPU has no TF32", "no engine here"]


def test_asked_jobs_keep_the_config_that_they_were_composed_from() -> None:
    asked = [Job(precision="fp16", device="cpu"), Job(precision="fp16", device="cuda:7")]
    assert [p.composed for p in plan(asked, DEVICES, ["one", "two"])] == ["one", "two", None]


def a_plan() -> list[Planned]:
    return plan([j for b in (1, 2, 4, 8) for j in jobs("o1", "fp16", "bf16", "fp32", batch=b, device="cpu")], DEVICES)


def test_a_round_measures_every_job_once() -> None:
    planned = a_plan()
    assert sorted(order(planned, 7, 1), key=lambda p: p.index) == planned


def test_the_jobs_of_a_cell_follow_each_other() -> None:
    ordered = [p.job.batch for number in (1, 2, 3) for p in order(a_plan(), 7, number)]
    groups = [ordered[i : i + 4] for i in range(0, len(ordered), 4)]
    assert [set(g) for g in groups] == [{g[0]} for g in groups]


def test_a_repeat_stays_within_its_cell() -> None:
    asked = [j for b in (1, 2, 4) for j in jobs("fp32", "fp16", batch=b, device="cpu")] * 2
    batches = [p.job.batch for p in order(plan(asked, DEVICES), 3, 1)]
    groups = [batches[i : i + 4] for i in range(0, 12, 4)]
    assert sorted(groups) == [[1] * 4, [2] * 4, [4] * 4]


def test_the_order_follows_from_seed_and_round() -> None:
    planned = a_plan()
    assert order(planned, 7, 1) == order(planned, 7, 1)
    ways = [tuple(p.index for p in order(planned, seed, number)) for seed in (7, 8) for number in (1, 2)]
    assert len(set(ways)) == 4


def test_cells_and_the_jobs_within_them_are_both_shuffled() -> None:
    planned = a_plan()
    orders = [order(planned, 0, number) for number in range(1, 21)]
    assert {p[0].job.batch for p in orders} == {1, 2, 4, 8}
    assert {p[0].job.precision for p in orders} == {"o1", "fp16", "bf16", "fp32"}


def test_order_leaves_the_plan_as_it_was() -> None:
    planned = a_plan()
    before = [dataclasses.replace(p) for p in planned]
    order(planned, 7, 1)
    assert planned == before
