"""tcsweep from Python: real small sweeps through the public functions, and the notebook, run top to bottom."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tcsweep import Results, load_results, run_sweep
from tcsweep.mistakes import Mistake

from .test_main import FAST, SMALL

ROOT = Path(__file__).resolve().parent.parent
TINY = [*SMALL, *FAST]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("api"))
        patch.setenv("PYTHONPATH", str(ROOT))
        return run_sweep("precision=bf16,fp32", "batch=1", *TINY, "tracking=none")


def test_a_sweep_from_python_is_the_command_line_s(measured: Results) -> None:
    assert measured.folder.parents[1].name == "outputs"
    assert measured.sweep.command.startswith("python -m tcsweep -m precision=bf16,fp32 batch=1 ")
    assert [(row.job.precision, row.outcome.status) for row in measured.rows] == [("bf16", "ok"), ("fp32", "ok")]
    assert measured.picture.is_file()
    assert "95%" in str(measured)


def test_the_frame_has_the_figures_of_the_csv_file(measured: Results) -> None:
    lines = list(csv.DictReader((measured.folder / "summary.csv").open()))
    assert list(measured.frame.columns) == list(lines[0])
    for line, (_, row) in zip(lines, measured.frame.iterrows(), strict=True):
        assert float(line["throughput_img_s"]) == pytest.approx(row["throughput_img_s"])
        assert (line["precision"], int(line["batch"])) == (row["precision"], row["batch"])


def test_every_verdict_is_a_line_with_its_reasons(measured: Results) -> None:
    expected = [(row.job.label, v.name) for row in measured.rows for v in row.verdicts]
    assert list(zip(measured.verdicts["job"], measured.verdicts["verdict"])) == expected


def test_every_cause_is_a_line_with_its_gain(measured: Results) -> None:
    assert list(measured.causes.columns) == ["job", "cause", "text", "gain", "advice"]
    assert set(measured.causes["job"]) <= {row.job.label for row in measured.rows}


def test_saved_results_are_found_by_folder_or_as_the_newest_below_one(measured: Results, tmp_path: Path) -> None:
    above = measured.folder.parents[1]
    assert load_results(measured.folder).frame.equals(load_results(above).frame)
    with pytest.raises(Mistake, match="no sweep is saved there"):
        load_results(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(Mistake, match="cannot be read: JSONDecodeError"):
        load_results(tmp_path)


def test_a_mistake_is_raised_in_the_words_of_the_command_line(
    measured: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Mistake, match=r"^precision=fp61 is unknown; did you mean fp16\?"):
        run_sweep("precision=fp61", *TINY, folder=measured.folder.parent / "new")
    with pytest.raises(Mistake, match="holds a sweep already"):
        run_sweep("batch=1", *TINY, folder=measured.folder)
    with pytest.raises(Mistake, match=r"name the folder as run_sweep"):
        run_sweep("hydra.sweep.dir=x")


def test_importing_tcsweep_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, tcsweep; print([m for m in ('torch', 'pandas', 'tcsweep.api') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_notebook_runs_from_top_to_bottom_on_a_small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "tcsweep.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source = f"OVERRIDES = {['precision=fp32,bf16', 'batch=1,2', *TINY]!r}"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [kind for cell in done.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())]
    assert shown.count("image/png") == 2  # the sweep's picture, and the plot
    assert shown.count("text/html") == 3  # the frame, the causes, the verdicts
    printed = "".join(o.text for c in done.cells for o in c.get("outputs", ()) if o.output_type == "stream")
    assert printed.count("baseline") >= 2
    assert list(tmp_path.glob("outputs/*/*/summary.csv"))
