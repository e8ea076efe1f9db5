"""What MLflow's pages show of a sweep without a click: saved views, links, the notes that carry them. Pure.

A saved view is an experiment's tag. Its format is MLflow's own page's, found by reading back what that page saves (3.17
and 3.18); fields that are missing get the page's defaults."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

TAG = "mlflow.sharedViewState."
MARK = "tcsweep."  # what the keys of our views begin with
VIEWS_KEPT = 20  # of one owner: the menu of views lists them all
NOTE_OWNERS = 10  # in the experiment's note
# MLflow starts in its GenAI mode, whatever the experiment is, unless the address says otherwise.
MODE = "workflowType=machine_learning"

METRICS = (
    *("throughput_img_s", "speedup", "speedup_ci95_low", "speedup_ci95_high"),
    *("latency_ms_p50", "tensor_core_time_fraction"),
)
VERDICT, NAME = "tags.`tcsweep.verdict`", "attributes.`Run Name`"
CREATED, NOTE = "attributes.`Created`", "attributes.`Description`"
WIDTHS = {"throughput_img_s": 135, "speedup": 85, "latency_ms_p50": 120, "tensor_core_time_fraction": 185}


def slug(text: str) -> str:
    """A name fit for a view's key."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-") or "unknown"


def owner_of(user: str | None, host: str | None) -> str:
    """Whose views they are: a user of a machine, since every Jetson has the same user."""
    return f"{slug(user or 'unknown')}_{slug(host or 'unknown')}"


def sweep_key(owner: str, sweep_id: str) -> str:
    """The key of a sweep's view."""
    return f"{MARK}{owner}.{slug(sweep_id)}"


def latest_key(owner: str) -> str:
    """The key of the view of an owner's latest sweep, which stays the same."""
    return f"{MARK}{owner}.latest"


def view(
    name: str, sweep_id: str, axes: Sequence[str], varying: Sequence[str], metrics: Sequence[str], at_ms: int
) -> str:
    """The tag's value: a table of one sweep's results, best first, and charts of it. `axes` are the parameters to be
    shown, `varying` those with more than one value; of `metrics`, all that its runs have, those without a chart of
    ours get none."""
    shown = [m for m in METRICS if m in metrics]
    columns = [*(_param(a) for a in axes), *(_metric(m) for m in shown), VERDICT]
    state = {
        "searchFilter": f"tags.`tcsweep.sweep_id` = '{sweep_id}' and tags.`tcsweep.kind` != 'sweep'",
        "orderByKey": _metric("throughput_img_s"),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*columns, NOTE],
        "columnOrder": [NAME, *columns, NOTE],
        "columnWidths": {
            NAME: 235,
            CREATED: 115,
            **{_param(a): 135 if a == "model" else 85 for a in axes},
            **{_metric(m): WIDTHS.get(m, 130) for m in shown},
            VERDICT: 120,
            NOTE: 420,
        },
        "runsHiddenMode": "SHOW_ALL",  # the charts would show 10 runs
        "groupBy": None,
        **_charts(varying or axes[:1], metrics),
    }
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    text = "deflate;" + base64.b64encode(packed).decode()
    return json.dumps({"name": name, "createdAt": at_ms, "updatedAt": at_ms, "state": text})


def _param(name: str) -> str:
    return f"params.`{name}`"


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _charts(varying: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    main, other = "tcsweep-main", "tcsweep-other"

    def card(kind: str, uuid: str, section: str = main, deleted: bool = False, **more: Any) -> dict[str, Any]:
        common = {"uuid": uuid, "type": kind, "runsCountToCompare": 100, "metricSectionId": section}
        return {**common, "deleted": deleted, "isGenerated": False, **more}

    def parallel(uuid: str, params: Sequence[str], metric: str) -> dict[str, Any]:
        chosen: dict[str, Any] = {"selectedParams": list(params), "selectedMetrics": [metric], "showAllRuns": False}
        return card("PARALLEL", uuid, **chosen)

    cards = [card("BAR", "throughput", metricKey="throughput_img_s")]
    if "speedup" in metrics:
        cards.append(card("BAR", "speedup", metricKey="speedup"))
    cards.append(parallel("axes", varying, "throughput_img_s"))
    if "speedup" in metrics:
        cards.append(
            parallel("speedup-axes", [a for a in ("precision", "batch") if a in varying] or varying, "speedup")
        )
    if "latency_ms_p50" in metrics:
        x, y = ({"key": k, "type": "METRIC"} for k in ("latency_ms_p50", "throughput_img_s"))
        cards.append(card("SCATTER", "latency", xaxis=x, yaxis=y))
    # Each metric without a card gets one by itself.
    drawn = {c.get("metricKey") for c in cards}
    cards += [card("BAR", f"no-{m}", other, True, metricKey=m) for m in metrics if m not in drawn]
    section = {"isReordered": True, "deleted": False}
    return {
        "compareRunCharts": cards,
        "compareRunSections": [
            {"uuid": main, "name": "tcsweep", "display": True, "isGenerated": False, **section},
            {"uuid": other, "name": "Model metrics", "display": False, "isGenerated": True, **section},
        ],
        "isAccordionReordered": True,
    }


def created_at_ms(value: str) -> int:
    """When the sweep of a view was, 0 where its tag does not tell."""
    try:
        return int(json.loads(value)["createdAt"])
    except (ValueError, TypeError, KeyError):
        return 0


def outdated(tags: Mapping[str, str], owner: str, keep: int = VIEWS_KEPT) -> list[str]:
    """The tags of the owner's oldest views beyond those that are kept. Nobody else's, and not the latest one."""
    prefix = f"{TAG}{MARK}{owner}."
    own = [tag for tag in tags if tag.startswith(prefix) and tag != TAG + latest_key(owner)]
    return sorted(own, key=lambda tag: created_at_ms(tags[tag]), reverse=True)[keep:]


# --- links, relative to the server: they are good at whatever address it is reached by ---


def table_page(experiment_id: str, key: str) -> str:
    """The prepared table."""
    return f"#/experiments/{experiment_id}/runs?{MODE}&viewStateShareKey={key}"


def charts_page(experiment_id: str, key: str) -> str:
    """The prepared charts."""
    return f"{table_page(experiment_id, key)}&compareRunsMode=CHART"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's comparison of runs; its columns keep their order."""
    runs, experiments = (quote(json.dumps(list(ids)), safe="") for ids in (run_ids, [experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{MODE}"


def links(experiment_id: str, key: str, compared: Sequence[str]) -> str:
    """The three of them, in Markdown."""
    found = {"Table": table_page(experiment_id, key), "Charts": charts_page(experiment_id, key)}
    if len(compared) > 1:
        found["Compare"] = compare_page(experiment_id, compared)
    return " · ".join(f"[{title}]({page})" for title, page in found.items())


# --- the experiment's note ---


def experiment_note(known: str, owner: str, line: str) -> str:
    """The note with an owner's line first, those of others as they were, and whatever else was written below."""
    key = latest_key(owner)
    others = [one for one in known.splitlines() if _is_ours(one) and not _names(one, key)]
    rest = "\n".join(one for one in known.splitlines() if not _is_ours(one)).strip("\n")
    lines = [line, *others][:NOTE_OWNERS]
    return "\n\n".join([*lines, rest] if rest else lines)


def _is_ours(line: str) -> bool:
    return f"viewStateShareKey={MARK}" in line


def _names(line: str, key: str) -> bool:
    return re.search(re.escape(f"viewStateShareKey={key}") + r"(?![\w.-])", line) is not None
