"""report.html and report.md: the answer first, every figure the saved one, one file without a network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tcsweep import report, speedup
from tcsweep.mistakes import Mistake
from tcsweep.report import page
from tcsweep.report.again import main as _report
from tcsweep.why import explain

from .test_report import failed, job, measured, published, save, sweep_of
from .test_why import SWEEPS


class Figures(HTMLParser):
    """The exact values behind the table's cells, and what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("data-value"):
            self.values.append(float(found["data-value"] or "nan"))
        self.fetched += [url for name in ("src", "href") if (url := found.get(name)) and not url.startswith("data:")]


def parsed(text: str) -> Figures:
    found = Figures()
    found.feed(text)
    return found


def test_a_real_gpu_sweep_has_every_saved_figure_and_fetches_nothing(tmp_path: Path) -> None:
    rows = SWEEPS["r50"]
    text = page.html(sweep_of(*(row.outcome for row in rows)), rows, tmp_path)
    found = parsed(text)
    expected = []
    for row in rows:
        assert row.figures is not None
        figures = (row.figures.throughput_img_s, row.speedup.value, row.figures.latency_ms_p50)
        expected += [value for value in figures if value is not None]
    assert found.values == pytest.approx(expected, rel=1e-12)
    assert found.fetched == []
    assert "http" not in text
    assert len(text) < 5_000_000
    assert text.count("data:image/png") == 3  # waterfall, latency, roofline; the sweep's own picture is not there


def test_where_the_time_went_is_told_for_the_best_job_and_is_the_whole() -> None:
    one = page.where(SWEEPS["r50"])
    assert one.name == "resnet50 fp16, batch 128, nhwc, cudagraph"
    assert one.parts[0].name == "convolution/GEMM"
    text = page.html(sweep_of(*(row.outcome for row in SWEEPS["r50"])), SWEEPS["r50"], Path("nowhere"))
    assert "Where the time went, by kind of work" in text
    assert "went, by layer" not in text  # a result of an older version
    assert "4.74x" in text.partition('<th scope="row">all</th>')[2].partition("</tr>")[0]
    assert page.where(speedup.rows(published())) == page.Where()


@pytest.mark.parametrize("sweep", ["r50-layers", "cpu"])
def test_a_sweep_with_layers_tells_them_and_what_holds_each_job_back(sweep: str) -> None:
    rows = SWEEPS[sweep]
    by_layer = page.where_by_layer(rows)
    assert len(by_layer.parts) == page.LAYERS + 1
    assert by_layer.parts[-1].name.startswith("the other ")
    text = page.html(sweep_of(*(row.outcome for row in rows)), rows, Path("nowhere"))
    plain = page.markdown(sweep_of(*(row.outcome for row in rows)), rows)
    for said in ("Where the time went, by layer", by_layer.parts[0].name, "unsteady"):
        assert said in text
        assert said in plain
    for row, line in zip(rows, page.table(rows)):
        assert line.cells[-1].text == next((cause.name for cause in explain(row, rows)), "—")


def test_the_answer_comes_first_with_what_holds_the_best_job_back() -> None:
    best, held, gap = page.answer(SWEEPS["r50"])
    assert best == (
        "Best: resnet50 fp16, batch 128, nhwc, cudagraph, 13484 img/s, 4.74x the fp32 of its batch, layout and engine."
    )
    assert held.startswith("What holds it back: elementwise-bound: 70% of device time moves data (batch norm 31%)")
    assert "15% of the published 88462" in gap
    assert page.answer([]) == ["Nothing was measured that can be believed."]
    with_interval, *_ = page.answer(speedup.rows(published()))
    assert with_interval.endswith("2.86x the fp32 of its batch, layout and engine (95% interval 2.85 to 2.88).")


def test_both_files_are_written_beside_the_picture_and_text_is_never_markup(tmp_path: Path) -> None:
    outcomes = [measured(job("fp32"), 0, 100, 101, 99), failed(job("fp16"), 1, reason="<b>|broken</b>")]
    save(tmp_path, outcomes)
    report.write(tmp_path)
    text, plain = (tmp_path / page.HTML).read_text(), (tmp_path / page.MARKDOWN).read_text()
    assert "&lt;b&gt;|broken&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "failed: <b>\\|broken</b> |" in plain
    assert text.count("data:image/png") == 2
    assert '<tr class="failed">' in text
    assert plain.startswith("# resnet50 on NVIDIA H200, ")
    assert re.search(r"^- torch: 2\.8\.0$", plain, re.MULTILINE)


def test_the_command_makes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, published())
    assert _report([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    with pytest.raises(Mistake, match="report takes a sweep's folder or its run in MLflow"):
        _report([])
