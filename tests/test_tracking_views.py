from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from tcsweep.tracking_views import (
    MODE,
    TAG,
    charts_page,
    compare_page,
    created_at_ms,
    experiment_note,
    latest_key,
    links,
    outdated,
    owner_of,
    sweep_key,
    table_page,
    view,
)

METRICS = ["throughput_img_s", "speedup", "speedup_ci95_low", "speedup_ci95_high", "latency_ms_p50", "setup_s"]


def state(value: str) -> dict[str, Any]:
    packed = json.loads(value)["state"]
    assert packed.startswith("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;")))))


def test_a_view_is_a_table_of_one_sweep_with_its_axes_first_and_the_best_on_top() -> None:
    value = view("v", "20261126-1", ["model", "precision", "batch"], ["precision", "batch"], METRICS, 5)
    assert (json.loads(value)["name"], created_at_ms(value)) == ("v", 5)
    found = state(value)
    assert found["searchFilter"] == "tags.`tcsweep.sweep_id` = '20261126-1' and tags.`tcsweep.kind` != 'sweep'"
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`throughput_img_s`", False)
    assert found["columnOrder"] == [
        "attributes.`Run Name`",
        *("params.`model`", "params.`precision`", "params.`batch`"),
        *("metrics.`throughput_img_s`", "metrics.`speedup`"),
        *("metrics.`speedup_ci95_low`", "metrics.`speedup_ci95_high`", "metrics.`latency_ms_p50`"),
        *("tags.`tcsweep.verdict`", "attributes.`Description`"),
    ]
    assert set(found["columnWidths"]) == {*found["columnOrder"], "attributes.`Created`"}


def test_every_metric_has_a_chart_of_ours_or_none() -> None:
    cards = state(view("v", "s", ["model"], ["precision", "batch", "layout"], METRICS, 0))["compareRunCharts"]
    assert [(c["type"], c["uuid"]) for c in cards if not c["deleted"]] == [
        *(("BAR", "throughput"), ("BAR", "speedup"), ("PARALLEL", "axes")),
        *(("PARALLEL", "speedup-axes"), ("SCATTER", "latency")),
    ]
    parallel = {c["uuid"]: (c["selectedParams"], c["selectedMetrics"]) for c in cards if c["type"] == "PARALLEL"}
    assert parallel == {
        "axes": (["precision", "batch", "layout"], ["throughput_img_s"]),
        "speedup-axes": (["precision", "batch"], ["speedup"]),
    }
    assert [c["metricKey"] for c in cards if c["deleted"]] == METRICS[2:]


def test_a_sweep_without_speedups_or_latencies_has_no_chart_of_them() -> None:
    cards = state(view("v", "s", ["model", "batch"], [], ["throughput_img_s"], 0))["compareRunCharts"]
    assert [c["uuid"] for c in cards] == ["throughput", "axes"]
    assert cards[1]["selectedParams"] == ["model"]


def test_a_view_of_many_metrics_fits_a_tag_of_20000_characters() -> None:
    many = [*METRICS, *(f"kernel_ms_{n}" for n in range(200))]
    assert len(view("v", "s", [f"axis{n}" for n in range(12)], [f"axis{n}" for n in range(12)], many, 0)) < 20_000


def test_owners_are_told_apart_by_user_and_host() -> None:
    assert owner_of("anna", "gpu-box.lan") == "anna_gpu-box-lan"
    assert owner_of(None, None) == "unknown_unknown"
    assert sweep_key("anna_box", "2026_1") == "tcsweep.anna_box.2026-1"


def test_of_an_owners_views_the_newest_are_kept_and_nobody_elses_is_touched() -> None:
    def tag(owner: str, n: int) -> tuple[str, str]:
        return TAG + sweep_key(owner, f"s{n}"), view("v", f"s{n}", ["model"], [], METRICS, n)

    own = dict(tag("anna_box", n) for n in range(5))
    others = dict([tag("anna_box-2", 0), tag("anna", 0), tag("ben_box", 0)])
    kept = {TAG + latest_key("anna_box"): view("v", "s", ["model"], [], METRICS, 0), TAG + "1795591433996": "{}"}
    gone = outdated({**own, **others, **kept}, "anna_box", keep=2)
    assert gone == [tag("anna_box", n)[0] for n in (2, 1, 0)]
    assert outdated({**own, TAG + sweep_key("anna_box", "broken"): "no view"}, "anna_box", keep=5) == [
        TAG + sweep_key("anna_box", "broken")
    ]


def test_no_link_leads_into_the_genai_pages() -> None:
    pages = [table_page("7", "k"), charts_page("7", "k"), compare_page("7", ["a", "b"])]
    assert all(MODE in page for page in pages)
    assert pages[2] == f"#/compare-runs?runs=%5B%22a%22%2C%20%22b%22%5D&experiments=%5B%227%22%5D&{MODE}"
    assert links("7", "k", ["a"]) == f"[Table]({pages[0]}) · [Charts]({pages[1]})"
    assert links("7", "k", ["a", "b"]).endswith(f" · [Compare]({pages[2]})")


def line(owner: str, text: str) -> str:
    return f"{links('7', latest_key(owner), [])} {text}"


def test_an_owners_line_comes_first_others_stay_and_so_does_what_people_wrote() -> None:
    first = experiment_note("Our lab's numbers.\n\nAsk Anna.", "anna_box", line("anna_box", "one"))
    assert first == f"{line('anna_box', 'one')}\n\nOur lab's numbers.\n\nAsk Anna."
    second = experiment_note(first, "ben_box", line("ben_box", "two"))
    third = experiment_note(second, "anna_box", line("anna_box", "three"))
    assert third == (f"{line('anna_box', 'three')}\n\n{line('ben_box', 'two')}\n\nOur lab's numbers.\n\nAsk Anna.")
    assert experiment_note(third, "anna_box-2", line("anna_box-2", "four")).count("Charts") == 3


def test_a_note_holds_the_lines_of_ten_owners() -> None:
    note = ""
    for n in range(15):
        note = experiment_note(note, f"user_host{n}", line(f"user_host{n}", str(n)))
    assert [one.rpartition(" ")[2] for one in note.split("\n\n")] == [str(n) for n in range(14, 4, -1)]
