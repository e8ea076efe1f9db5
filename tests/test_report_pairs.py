from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from tcsweep.job import Result
from tcsweep.report import table
from tcsweep.report.pairs import Pair, conclusion, lines, paired
from tcsweep.speedup import Row, rows

from .evident import O1_PATCHED, clean, operators
from .sweeps import a_failure, a_job, a_skip, write_sweep

LEVELS = ("o3", "o1", "fp32")
ALONE = {"o3": 2000.0, "o1": 2100.0, "fp32": 1000.0}


def one(precision: str, img_s: float, *, isolation: str = "process", lies: bool = False) -> Result:
    """A job in its own process, or in the shared one with what O1 left behind there."""
    seen = {"dtypes": dataclasses.replace(clean().evidence.dtypes, operators=operators("float16"))} if lies else {}
    switches = {"arithmetic_before": O1_PATCHED, "arithmetic_after": O1_PATCHED} if lies else {}
    made = clean(precision, img_s, job={"isolation": isolation}, round_changes=switches, **seen)
    first = made.rounds[0]
    unprofiled = dataclasses.replace(
        first.evidence, kernels=dataclasses.replace(first.evidence.kernels, union_ms=None, span_ms=None)
    )
    return dataclasses.replace(made, rounds=(dataclasses.replace(first, evidence=unprofiled), *made.rounds[1:]))


def puzzle(lies: bool = True) -> list[Result]:
    together = [one(p, 2050.0, isolation="none", lies=lies and p == "fp32") for p in LEVELS]
    return [dataclasses.replace(r, index=n) for n, r in enumerate([*together, *(one(p, ALONE[p]) for p in LEVELS)])]


def pair_of(found: list[Row]) -> Pair:
    (pair,) = paired(table.grouped(found))
    assert isinstance(pair, Pair)
    return pair


def text(pair: Pair, width: int) -> str:
    return "\n".join(line.plain.rstrip() for line in lines(pair, width))


def test_two_cells_that_differ_in_isolation_only_stand_side_by_side() -> None:
    assert text(pair_of(rows(puzzle())), 120) == (
        "                in one process                      a process each\n"
        "precision  img/s  speed-up  verdict  img/s  ±95%  speed-up  95% interval  verdict\n"
        "─────────  ────────────────────────  ────────────────────────────────────────────\n"
        "o3          2050         —  ok        2000  0.3%     2.00x     2.00–2.00  ok\n"
        "o1          2050         —  ok        2100  0.3%     2.10x     2.10–2.10  ok\n"
        "fp32        2050         —  suspect   1000  0.3%     1.00x             —  ok"
    )


@pytest.mark.parametrize("width", [60, 75, 80, 82, 100])
def test_columns_go_until_the_table_fits_and_the_figures_never(width: int) -> None:
    shown = text(pair_of(rows(puzzle())), width)
    assert max(map(len, shown.splitlines())) <= width
    assert all(figure in shown for figure in ("2050", "2000", "2.00x", "suspect"))


def test_the_conclusion_is_the_lie_and_the_truth() -> None:
    assert conclusion(pair_of(rows(puzzle()))) == [
        "in one process fp32 ran at 2050 img/s, 2.05 times what it does alone: "
        "observed float16 in 54 of 54 operators, labelled float32",
        "true speed-up over fp32: o3 2.00x, o1 2.10x",
    ]


def test_without_a_lie_the_conclusion_says_so() -> None:
    made = [dataclasses.replace(r, rounds=one(r.job.precision, ALONE[r.job.precision]).rounds) for r in puzzle(False)]
    assert conclusion(pair_of(rows(made))) == [
        "in one process no job was suspect: what one left behind changed none of the next",
        "true speed-up over fp32: o3 2.00x, o1 2.10x",
    ]


def test_a_half_that_failed_or_was_skipped_keeps_its_row() -> None:
    made = puzzle()
    made[1] = a_failure(made[1].job, 1)  # type: ignore[call-overload]
    made[5] = a_skip(made[5].job, 5)  # type: ignore[call-overload]
    pair = pair_of(rows(made))
    shown = text(pair, 120).splitlines()
    assert shown[4].split()[:4] == ["o1", "—", "—", "failed"]
    assert shown[5].split()[-1] == "skipped"
    assert conclusion(pair) == [
        "in one process some jobs were suspect: see below",
        "no true speed-up: see the notes below",
    ]


def test_cells_that_are_no_pair_are_tables_of_their_own_with_titles_that_tell_them_apart(tmp_path) -> None:
    made = [
        dataclasses.replace(r, index=n)
        for n, r in enumerate([one("fp32", 1000.0, isolation="none"), clean("fp32", job={"layout": "nhwc"})])
    ]
    found = rows(made)
    assert [len(group) for group in paired(table.grouped(found))] == [1, 1]  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=120)
    from tcsweep.store import load_sweep

    table.render(load_sweep(write_sweep(tmp_path, made))[0], found, console)
    titles = [line for line in console.file.getvalue().splitlines() if " · batch 8 · " in line]  # type: ignore[attr-defined]
    assert titles == [
        "resnet50 · 224×224 · batch 8 · nchw · eager · cuda:0 · one process",
        "resnet50 · 224×224 · batch 8 · nhwc · eager · cuda:0 · a process each",
    ]


def test_the_summary_has_the_pair_once_and_the_reasons_below_it(tmp_path) -> None:
    from tcsweep.store import load_sweep

    made = puzzle()
    console = Console(file=io.StringIO(), width=80)
    table.render(load_sweep(write_sweep(tmp_path, made))[0], rows(made), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("precision  img/s") == 1
    assert said.index("true speed-up over fp32") < said.index("suspect: resnet50-fp32-b8-nchw-eager-cuda0-one-process")
    assert a_job().model in said
