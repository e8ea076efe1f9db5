from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcsweep import ui
from tcsweep.mistakes import Mistake
from tcsweep.tracking import upload
from tcsweep.tracking_uri import Target
from tests import sweeps

from .test_main import FAST, SMALL, environment, tcsweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two sweeps, the one sent last not the latest."""
    folder = tmp_path_factory.mktemp("ui") / "outputs"
    for name in ("20251124-2", "20251124-1"):
        assert upload(sweeps.write_sweep(folder, name=name), Target(None, store=folder)).error is None
    return folder


def test_the_store_is_the_folders_own_or_the_nearest_above(outputs: Path, tmp_path: Path) -> None:
    assert ui.find_store(outputs) == ui.find_store(outputs / "20251124-1") == outputs / "mlflow.db"
    with pytest.raises(Mistake, match=r"no mlflow\.db in .* or above: a sweep makes it"):
        ui.find_store(tmp_path)


def test_the_page_is_the_named_sweeps_or_the_latest_ones(outputs: Path, tmp_path: Path) -> None:
    database = outputs / "mlflow.db"
    assert ui.page(database, outputs / "20251124-1").endswith("_gpu-box.20251124-1")
    assert ui.page(database, outputs).endswith("_gpu-box.latest")
    assert ui.page(database, outputs).startswith(
        "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey="
    )
    assert ui.page(tmp_path / "none.db", outputs) == "#/experiments?workflowType=machine_learning"


def test_a_port_that_is_taken_is_not_taken_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ui.free_port(port) not in (0, port)


@pytest.mark.parametrize("arguments", [["a", "b"], ["--port"]])
def test_mistakes_are_said_at_once(arguments: list[str]) -> None:
    with pytest.raises(Mistake, match="ui takes one folder at most"):
        ui.main(arguments)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a real sweep of 15 jobs ended."""
    folder = tmp_path_factory.mktemp("swept")
    done = tcsweep(folder, "-m", "precision=o0,o1,o2,o3,fp32", "batch=1,2,3", *SMALL, *FAST)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def served(swept: Path) -> Iterator[str]:
    """The address that `tcsweep ui` prints there."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tcsweep", "ui"], cwd=swept, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"MLflow starts on {swept / 'outputs' / 'mlflow.db'}\n"
        address = server.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    port = int(address.split(":")[2].partition("/")[0])
    with pytest.raises(OSError, match="refused"):  # nothing of it is left
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


def seen(address: str, profile: Path, budget_s: int = 20) -> str:
    """The text of a page in a new browser, a line an element, as a person who clicks nothing sees it."""
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        *("--window-size=3000,1600", f"--virtual-time-budget={budget_s * 1000}", "--dump-dom"),
    ]
    command = [str(CHROMIUM), *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ})
    text = re.sub(r"<(script|style)\b.*?</\1>", "", done.stdout, flags=re.DOTALL)
    return "\n".join(line for one in re.sub(r"<[^>]+>", "\n", text).split("\n") if (line := one.strip()))


@needs_chromium
def test_the_printed_link_shows_columns_order_and_speedups_without_a_click(
    served: str, swept: Path, tmp_path: Path
) -> None:
    import csv

    (summary,) = swept.glob("outputs/*/*/summary.csv")
    with open(summary, newline="") as file:
        table = sorted(csv.DictReader(file), key=lambda row: -float(row["throughput_img_s"]))
    printed = next(line for line in (swept / "said.txt").read_text().splitlines() if line.startswith("http"))
    text = seen(served.partition("#")[0] + "#" + printed.partition("#")[2], tmp_path / "one")
    for column in ("model", "precision", "batch", "throughput_img_s", "speedup", "latency_ms_p50", "tcsweep.verdict"):
        assert f"\n{column}\n" in text
    names = re.findall(r"^resnet18 (\w+) b(\d+) 32px(?: \(\w+\))?$", text, re.MULTILINE)
    assert names[:15] == [(row["precision"], row["batch"]) for row in table]
    assert "15\nmatching runs" in text
    for row in table:
        if row["speedup"]:
            assert f"{float(row['speedup']):.6g}" in text


@needs_chromium
def test_the_experiments_own_page_begins_with_the_links(served: str, tmp_path: Path) -> None:
    text = seen(f"{served.partition('#')[0]}#/experiments/1?workflowType=machine_learning", tmp_path / "two")
    assert re.search(r"\nTable\n·\nCharts\n·\nCompare\n", text)
    assert "15 measured" in text


@needs_chromium
def test_the_charts_are_ours(served: str, tmp_path: Path) -> None:
    text = seen(f"{served}&compareRunsMode=CHART", tmp_path / "three", budget_s=90)  # plots are drawn late
    for title in ("throughput_img_s", "speedup", "Parallel Coordinates"):
        assert title in text
    assert "setup_s" not in text
