from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from torchvision.models import list_models

from tcsweep import catalog
from tcsweep.catalog import Classifier, classifiers, conf_dir, groups, options
from tcsweep.mistakes import Mistake

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", Classifier(224, {"IMAGENET1K_V1": 224, "IMAGENET1K_V2": 224})),
        ("inception_v3", Classifier(299, {"IMAGENET1K_V1": 299})),
        ("efficientnet_b1", Classifier(224, {"IMAGENET1K_V1": 240, "IMAGENET1K_V2": 240})),
        (
            "vit_b_16",
            Classifier(224, {"IMAGENET1K_V1": 224, "IMAGENET1K_SWAG_E2E_V1": 384, "IMAGENET1K_SWAG_LINEAR_V1": 224}),
        ),
    ],
)
def test_a_classifier_has_its_input_size_as_built_and_with_each_of_its_weights(name: str, expected: Classifier) -> None:
    assert classifiers()[name] == expected


def test_the_list_is_that_of_the_torchvision_it_was_written_from() -> None:
    written = json.loads((catalog.PACKAGE / "data" / "torchvision.json").read_text())["torchvision"]
    if torchvision.__version__.split("+")[0] != written:
        pytest.skip(f"the list is of torchvision {written}")
    assert list(classifiers()) == sorted(list_models(module=torchvision.models))


def test_the_list_is_read_once() -> None:
    assert classifiers() is classifiers()


def test_the_conf_folder_of_a_checkout_lies_beside_the_package() -> None:
    assert conf_dir() == ROOT / "conf"


def test_an_installed_conf_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "tcsweep")
    for path in (tmp_path / "conf", tmp_path / "tcsweep" / "conf"):
        path.mkdir(parents=True)
        assert conf_dir() == path


def test_a_missing_conf_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "tcsweep")
    with pytest.raises(Mistake) as caught:
        conf_dir()
    assert str(caught.value) == (
        f"tcsweep's conf folder is neither in {tmp_path / 'tcsweep'} nor beside it: install again, a zip will not do"
    )


def test_options_that_are_numbers_stand_in_order_of_size_before_the_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "tcsweep")
    own, mine = tmp_path / "conf" / "batch", tmp_path / "mine" / "batch"
    for folder, names in (
        (own, ("16.yaml", "b.yaml", "2.yaml", "notes.txt")),
        (mine, ("100.yaml", "a.yaml", "2.yaml")),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("")
    assert options("batch") == ["2", "16", "b"]
    assert options("batch", [tmp_path / "mine"]) == ["2", "16", "100", "a", "b"]
    assert options("model", [tmp_path / "mine"]) == []


def test_groups_are_the_folders_of_conf_and_of_the_folders_searched_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PACKAGE", tmp_path / "tcsweep")
    for path in ("conf/model", "conf/batch", "mine/batch", "mine/extra"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("")
    assert groups() == ["batch", "model"]
    assert groups([tmp_path / "mine"]) == ["batch", "extra", "model"]


def test_the_shipped_groups_can_be_chosen_from() -> None:
    assert options("layout") == ["nchw", "nhwc"]
    assert options("batch")[:4] == ["1", "2", "4", "8"]
    assert {"model", "batch", "precision", "layout", "engine", "device", "measure"} <= set(groups())


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys; from tcsweep import catalog as c; c.classifiers(); c.groups(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "False\n"
