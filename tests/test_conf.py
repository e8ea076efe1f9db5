"""Every config option composes into a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from tcsweep import config
from tcsweep.catalog import classifiers, conf_dir, groups, options
from tcsweep.engines import ENGINES
from tcsweep.job import Job, Measure
from tcsweep.mistakes import Mistake
from tcsweep.precision import PRECISIONS

from .test_search import needs_optuna


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    config.register()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        yield


def loaded(*overrides: str) -> config.Loaded:
    return config.load(compose("config", overrides=list(overrides)))


def every_option() -> list[object]:
    marks = {"fastest_batch": needs_optuna}
    return [pytest.param(group, option, marks=marks.get(option, ())) for group in groups() for option in options(group)]


def quoted(group: str, option: str) -> list[str]:
    plus = "+" if group == "experiment" else ""
    name = ["model.name=swin_t"] if option == "torchvision" else []
    return [f"{plus}{group}='{option}'", *name]


def test_the_groups_are_those_of_the_readme() -> None:
    assert groups() == [
        "batch", "device", "engine", "experiment", "isolation", "layout", "measure", "model", "power", "precision",
            "tracking",
    ]  # fmt: skip


@pytest.mark.parametrize(("group", "option"), every_option())
def test_every_option_composes(group: str, option: str) -> None:
    job = loaded(*quoted(group, option)).job
    values = {
        "batch": str(job.batch),
        "model": job.model if option != "torchvision" else "torchvision",
        "measure": job.measure.name,
        **{name: getattr(job, name) for name in ("device", "engine", "layout", "precision")},
    }
    assert values.get(group, option) == option


def test_options_and_tables_agree() -> None:
    assert set(options("precision")) == set(PRECISIONS)
    assert set(options("engine")) == set(ENGINES)
    assert set(options("model")) - {"torchvision"} <= set(classifiers())


def test_the_default_job_is_resnet50_in_fp32() -> None:
    assert loaded().job == Job(batch=32)


def test_quick_is_one_round_within_two_percent() -> None:
    measure = loaded("measure=quick").job.measure
    assert (measure.rounds, measure.rounds_max, measure.within_ci, measure.timed_s_max) == (1, 1, 0.02, 0.4)


def test_default_is_three_to_five_rounds_within_half_a_percent() -> None:
    assert loaded().job.measure == Measure()
    assert (Measure().rounds, Measure().rounds_max, Measure().within_ci, Measure().budget_s) == (3, 5, 0.005, 20.0)


def test_thorough_is_seven_rounds_of_thirty_seconds() -> None:
    measure = loaded("measure=thorough").job.measure
    assert (measure.rounds, measure.within_ci, measure.timed_s_min, measure.budget_s) == (7, 0.002, 30.0, 600.0)


def test_an_o_level_has_an_amp_backend_and_no_other_precision_has() -> None:
    assert loaded("precision=o1").job.amp_backend == "auto"
    assert loaded("precision=o1", "amp_backend=torch").job.amp_backend == "torch"
    assert loaded("precision=fp16", "amp_backend=torch").job.amp_backend is None


@pytest.mark.parametrize(
    ("model", "weights", "size"),
    [
        ("resnet50", "null", 224),
        ("inception_v3", "null", 299),
        ("vit_h_14", "null", 224),
        ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1", 518),
        ("swin_v2_t", "IMAGENET1K_V1", 256),
    ],
)
def test_the_image_size_is_what_the_model_as_built_expects(model: str, weights: str, size: int) -> None:
    assert loaded("model=torchvision", f"model.name={model}", f"model.weights={weights}").job.image_size == size


def test_a_size_of_ones_own_wins() -> None:
    assert loaded("model.image_size=160").job.image_size == 160


def test_a_state_dicts_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert loaded("model.weights='a b.pt'").job.weights == str(tmp_path / "a b.pt")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.name=nope"], "model=nope is unknown. Allowed: "),
        (["model=torchvision"], "model.name is missing: give it a value"),
        (["~precision"], "precision.name is missing: give it a value"),
        (["model.weights=IMAGENET1K_V9"], "model.weights=IMAGENET1K_V9 is unknown; did you mean IMAGENET1K_V2?"),
        (["model.weights=/no/such.pt"], "model.weights=/no/such.pt: no such file"),
        (["model.image_size=0"], "model.image_size=0: must be 1 or more, at most 1048576"),
        (["batch.size=0"], "batch=0: must be 1 or more"),
        (["precision.name=o9"], "precision=o9 is unknown; did you mean o3?"),
        (["amp_backend=apexx"], "amp_backend=apexx is unknown; did you mean apex? Allowed: auto, apex, torch"),
        (["device.name=cuda:x"], "device=cuda:x is unknown"),
        (["measure.rounds=0"], "measure.rounds=0: must be 1 or more"),
        (["measure.rounds=9"], "measure.rounds_max=5: must be 9 or more"),
        (["measure.budget_s=0"], "measure.budget_s=0.0: must be over 0"),
        (["tracking.uri='http://bob:secret@host'"], "tracking.uri in a config file holds a password"),
    ],
)
def test_a_value_that_can_never_be_right_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(Mistake) as caught:
        loaded(*overrides)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_published_recipe_is_the_published_tables_setting() -> None:
    job = loaded("+experiment=published").job
    assert (job.model, job.batch, job.layout, job.engine, job.measure.iterations) == (
        "resnet50",
        100,
        "nchw",
        "eager",
        30,
    )


def test_what_a_user_chooses_beside_a_recipe_wins() -> None:
    job = loaded("+experiment=published", "batch='8'", "measure=quick").job
    assert (job.batch, job.measure.name, job.measure.iterations) == (8, "quick", None)


def test_keys_name_groups_and_their_fields() -> None:
    assert {"model", "seed", "model.weights", "measure.budget_s", "tracking.uri"} <= set(config.keys())
