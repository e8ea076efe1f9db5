from __future__ import annotations

import os
from pathlib import Path

import pytest

from tcsweep.config import keys
from tcsweep.mistakes import Mistake
from tcsweep.overrides import rewrite, split


def rewritten(*argv: str) -> list[str]:
    return rewrite(argv, keys())


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        (["-m", "batch=1,8,32"], ["-m", "batch='1','8','32'"]),
        (["batch=8"], ["batch='8'"]),
        (["batch=48"], ["batch.size=48"]),
        (["-m", "batch=1,48"], ["-m", "batch.size=1,48"]),
        (["-m", "batch=range(1,4)"], ["-m", "batch.size=1,2,3"]),
        (["-m", "batch=range(1,9,7)"], ["-m", "batch='1','8'"]),
        (["-m", "batch=choice(1,8)"], ["-m", "batch='1','8'"]),
        (["-m", 'batch="8",16'], ["-m", "batch='8','16'"]),
        (["-m", "batch=1,1,1"], ["-m", "batch='1','1','1'"]),
        (["model=vit_b_16"], ["model='vit_b_16'"]),
        (["model=inception_v3"], ["model=torchvision", "model.name='inception_v3'"]),
        (["-m", "model=resnet18,swin_t"], ["-m", "model=torchvision", "model.name='resnet18','swin_t'"]),
        (["device=cuda:1"], ["device.name='cuda:1'"]),
        (["-m", "device=cpu,cuda:0"], ["-m", "device.name='cpu','cuda:0'"]),
        (["-m", "precision=o0,o1"], ["-m", "precision=o0,o1"]),
        (["-m", "precision=choice(o1,fp32)"], ["-m", "precision=choice(o1,fp32)"]),
        (["+experiment=published"], ["+experiment=published"]),
        (["experiment=published"], ["+experiment=published"]),
        (["precision=o1", "-m", "batch=1"], ["-m", "precision=o1", "batch='1'"]),
        (["--cfg", "job", "batch=3"], ["--cfg", "job", "batch.size=3"]),
        (["measure.rounds=2", "seed=3", "hydra.run.dir=x"], ["measure.rounds=2", "seed=3", "hydra.run.dir=x"]),
        (["name='a,,b=c #1'"], ["name='a,,b=c #1'"]),
        (["--info", "defaults"], ["--info", "defaults"]),
        (
            ["+experiment=published", "precision=fp32,o1"],
            ["hydra.sweeper.params=null", "+experiment=published", "precision=fp32,o1"],
        ),
    ],
)
def test_what_hydra_cannot_take_is_put_right(typed: list[str], written: list[str]) -> None:
    assert rewritten(*typed) == written


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("precision=o0,o1", "precision=o0,o1 is a sweep: add -m"),
        ("-m precision=fp32,fp61,o1", "precision=fp61 is unknown; did you mean fp16? Allowed: bf16, fp16, fp32, o0,"),
        ("-m precision=O1,FP32", "precision=O1 is unknown; did you mean o1? Allowed: "),
        ("-m precision=fp32,,o1", "precision=fp32,,o1: an empty value between commas"),
        ("precision=null", "precision=null is unknown. Allowed: "),
        ("-m precision=fp32 batch=", "batch=: a value is missing after '='"),
        ("-m batch=1,0", "batch=1,0: '0' is not a whole number of 1 or more; several as a comma list, batch=1,8,32"),
        ("batch=-3", "batch=-3: '-3' is not a whole number of 1 or more"),
        ("batch=1.5", "batch=1.5: '1.5' is not a whole number"),
        ("-m batch=1e1,8", "batch=1e1,8: '10.0' is not a whole number"),
        ("batch=08", "batch=08: '08' is not a whole number"),
        ("batch=0x10", "batch=0x10: '0x10' is not a whole number"),
        ("batch=8.0", "batch=8.0: '8.0' is not a whole number"),
        ("batch=abc", "batch=abc: 'abc' is not a whole number"),
        ("batch=[1,8]", "batch=[1,8]: a list or dictionary is one value; sweep with a comma list, batch=A,B"),
        ("-m batch=range(4,4)", "batch=range(4,4): the range is empty (STOP is not included)"),
        ("-m batch=range(1,4,0.5)", "batch=range(1,4,0.5): range takes whole numbers"),
        ("modle=resnet18", "unknown key modle; did you mean model? Allowed: model, precision,"),
        ("model.nam=resnet18", "unknown key model.nam; did you mean model.name? Allowed: model.name,"),
        ("-m model=resnet18,resnet5", "model=resnet5 is unknown; did you mean resnet50? Allowed: alexnet,"),
        ("device=gpu", "device=gpu is unknown; did you mean cpu? Allowed: auto, cpu, cuda, cuda:0, cuda:1"),
        ("layout=nhcw", "layout=nhcw is unknown; did you mean nhwc? Allowed: nchw, nhwc"),
        (
            "+experiment=publish",
            "experiment=publish is unknown; did you mean published? Allowed: fastest_batch, published",
        ),
        ("+precision=o1", "+precision=o1: precision is set already; change it without the plus"),
        ("-m batch=1,2 hydra.run.dir=x", "hydra.run.dir=x: the folder of a sweep is hydra.sweep.dir=x"),
        ("batch=1 hydra.sweep.dir=x", "hydra.sweep.dir=x: the folder of a single run is hydra.run.dir=x"),
        ("-m batch=1,2 hydra.sweep.dir=out/${model}", "hydra.sweep.dir=out/${model}: model is a group of settings, no"),
        (
            "batch=1 hydra.run.dir=${batch}",
            "hydra.run.dir=${batch}: batch is a group of settings, no name: write",
        ),
        ("precision=o1 batch", "'batch' is neither a command nor an override: overrides are written GROUP=OPTION"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_match(typed: str, said: str) -> None:
    with pytest.raises(Mistake) as caught:
        rewritten(*typed.split(" "))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_name_with_a_space_is_shown_quoted() -> None:
    with pytest.raises(Mistake, match=r"precision='fp32 ' is unknown; did you mean fp32\?"):
        rewritten("precision='fp32 '")


def test_a_password_in_the_tracking_address_never_reaches_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert rewritten("tracking.uri='http://bob:S3cr%40t@127.0.0.1:5999'", "seed=1") == ["seed=1"]
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://bob:S3cr%40t@127.0.0.1:5999"
    assert rewritten("tracking.uri='http://127.0.0.1:5999?token=S3cr'") == []


def test_an_address_without_a_password_stays_an_override() -> None:
    assert rewritten("tracking.uri=http://127.0.0.1:5000") == ["tracking.uri=http://127.0.0.1:5000"]


def test_a_users_own_config_folder_adds_options(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: resnet18\n")
    typed = ["--config-dir", str(tmp_path), "model=mine"]
    assert rewritten(*typed) == ["--config-dir", str(tmp_path), "model='mine'"]


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    """The words for a recipe of one's own that sweeps two keys with a dot."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "ours.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      batch.size: choice(1,2)\n      model.name: resnet18,vgg11\n      measure.rounds: 1,2\n"
    )
    return ["--config-dir", str(tmp_path), "+experiment=ours"]


@pytest.mark.parametrize(
    ("typed", "released"),
    [
        ("seed=1", []),
        ("measure=quick", []),
        ("batch='8'", ["hydra.sweeper.params=null", "model.name=resnet18,vgg11", "measure.rounds=1,2"]),
        ("batch.size=8,16", ["hydra.sweeper.params=null", "model.name=resnet18,vgg11", "measure.rounds=1,2"]),
        ("model='resnet18'", ["hydra.sweeper.params=null", "batch.size=choice(1,2)", "measure.rounds=1,2"]),
        ("measure.rounds=3", ["hydra.sweeper.params=null", "batch.size=choice(1,2)", "model.name=resnet18,vgg11"]),
    ],
)
def test_what_is_typed_wins_over_what_a_recipe_sweeps(recipe: list[str], typed: str, released: list[str]) -> None:
    assert rewritten(*recipe, typed) == [*recipe[:2], *released, recipe[2], typed]


@pytest.mark.parametrize("mode", ["hydra.mode=RUN", "--run"])
def test_a_recipe_that_sweeps_can_be_told_not_to(recipe: list[str], mode: str) -> None:
    typed = [*recipe, "hydra.run.dir=x", mode, "batch='8'"]
    assert sorted(rewritten(*typed)) == sorted(typed)


def test_flags_and_overrides_may_be_mixed() -> None:
    line = split(["a=1", "-m", "b=2", "-c", "job", "~c", "--resolve"])
    assert (line.flags, line.overrides) == (("-m", "-c", "job", "--resolve"), ("a=1", "b=2", "~c"))
