"""A sweep's results taken back from MLflow, and its report made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcsweep.mistakes import Mistake
from tcsweep.report.again import FETCHED
from tcsweep.report.again import main as report
from tcsweep.store import load_sweep
from tcsweep.tracking import open_client, upload
from tcsweep.tracking_saved import fetch
from tcsweep.tracking_uri import Target, sqlite_uri

from . import sweeps


def sent(tmp_path: Path) -> tuple[Path, Target, str]:
    """A sweep's folder, the store that it was sent to, and the id of its run there."""
    folder = sweeps.write_sweep(tmp_path / "outputs" / "day")
    target = Target(None, store=tmp_path / "outputs")
    uploaded = upload(folder, target)
    assert (uploaded.error, uploaded.parent_run_id is None) == (None, False)
    return folder, target, str(uploaded.parent_run_id)


def test_every_result_comes_back_as_it_was_by_the_run_of_the_sweep_or_of_a_job(tmp_path: Path) -> None:
    folder, target, parent = sent(tmp_path)
    back = fetch(parent, target, tmp_path / "back")
    assert load_sweep(back) == load_sweep(folder)
    client = open_client(sqlite_uri(tmp_path / "outputs" / "mlflow.db"))
    (child, *_) = client.search_runs([client.get_run(parent).info.experiment_id], "tags.`tcsweep.kind` = 'result'")
    assert fetch(child.info.run_id, target, tmp_path / "back") == back


def test_the_report_of_a_run_is_that_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, parent = sent(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert report([str(folder)]) == 0
    assert report([parent]) == 0
    written = Path(capsys.readouterr().out.splitlines()[-1])
    assert written.is_relative_to(tmp_path / FETCHED)
    for name in ("summary.csv", "report.md"):
        assert (written.parent / name).read_text() == (folder / name).read_text()


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    _, target, parent = sent(tmp_path)
    with pytest.raises(Mistake, match=f"has no run {'0' * 32}"):
        fetch("0" * 32, target, tmp_path)
    with pytest.raises(Mistake, match=r"no MLflow store at .*: name the server, tracking.uri=ADDRESS"):
        fetch(parent, Target(None, store=tmp_path / "nowhere"), tmp_path)
    with pytest.raises(Mistake, match="does not answer"):
        fetch(parent, Target("http://127.0.0.1:9", store=tmp_path), tmp_path)
    client = open_client(sqlite_uri(tmp_path / "outputs" / "mlflow.db"))
    other = client.create_run(client.create_experiment("mine")).info.run_id
    with pytest.raises(Mistake, match=f"run {other} is none of tcsweep's"):
        fetch(other, target, tmp_path)
