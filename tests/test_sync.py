from __future__ import annotations

from pathlib import Path

import pytest

from tcsweep import sync
from tcsweep.mistakes import Mistake
from tcsweep.tracking_uri import Target, sqlite_uri
from tests import sweeps

from .test_tracking import client_of


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_folder_every_sweep_of_outputs_is_sent_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    for name in ("2025-11-24/16-00-00", "mine", "2025-11-25/10-00-00/3"):  # a trial of a search lies deeper
        sweeps.write_sweep(outputs, sweeps.outcomes()[:1], name=name)
    (outputs / "empty").mkdir()
    assert sync.main([]) == sync.main([]) == 0
    runs = client_of(Target(None, store=outputs)).search_runs(["1"])
    assert len(runs) == 6
    assert capsys.readouterr().out.count("viewStateShareKey") == 6


def test_a_sweep_goes_to_another_server_though_it_is_on_one_already(tmp_path: Path) -> None:
    folder = sweeps.write_sweep(tmp_path / "outputs")
    lab = sqlite_uri(tmp_path / "lab" / "mlflow.db")
    assert sync.main([str(folder)]) == 0
    assert sync.main([str(folder), f"tracking.uri={lab}", "tracking.experiment=moved"]) == 0
    found = client_of(Target(lab, store=tmp_path)).get_experiment_by_name("moved")
    assert len(client_of(Target(lab, store=tmp_path)).search_runs([found.experiment_id])) == 6


def test_what_is_pending_is_said_with_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweeps.write_sweep(tmp_path / "outputs")
    assert sync.main([str(folder), "tracking.uri=http://127.0.0.1:9"]) == 1
    assert "send it later: python -m tcsweep sync" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], r"no sweep in \./outputs"),
        (["nowhere"], r"nowhere is no sweep's folder"),
        (["--all"], r"sync has no option --all"),
        (["tracking.url=http://x"], r"unknown word tracking\.url; did you mean tracking\.uri\?"),
        (["tracking.uri=http://bob:pw@x"], r"a password in tracking\.uri is seen by every user"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        sync.main(arguments)
