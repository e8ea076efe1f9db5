"""Sweeps as they were measured: `data/recorded_*.json.xz`, results as saved, the host's name taken out.

h100: 2026-11-27, H100 80GB HBM3, torch 2.11.0+cu130, measure=quick, before times by layer were seen. h100_layers: the
same jobs later that day on another such machine, whose host was slower and noisier; `again` with measure=default.
cpu: that day, AMD EPYC with 2 cores, torch 2.14.1, measure=quick."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from tcsweep import speedup
from tcsweep.job import outcome_from_json
from tcsweep.speedup import Row

DATA = Path(__file__).parent / "data"


def recorded(name: str, suffix: str = "") -> dict[str, list[Row]]:
    """The rows of each sweep of a file, by its name and the suffix."""
    found: dict[str, list[Any]] = {}
    for one in json.loads(lzma.decompress((DATA / f"recorded_{name}.json.xz").read_bytes())):
        found.setdefault(one.pop("sweep") + suffix, []).append(outcome_from_json(one))
    return {sweep: speedup.rows(outcomes) for sweep, outcomes in found.items()}
