"""The command line as a person uses it: real processes, real small sweeps on the CPU, a real MLflow store."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["device=cpu", "model=resnet18", "model.image_size=32", "measure=quick"]
FAST = ["measure.timed_s_min=0.02", "measure.timed_s_max=0.1", "measure.warmup_s_max=0.2", "measure.latency_s_max=0.05"]


def tcsweep(cwd: Path, *argv: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tcsweep", *argv],
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Here:
    """The command line in this process: its fork server, and so torch, is started once for all tests."""

    def __init__(self, cwd: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._cwd, self._capsys, self._patch = cwd, capsys, patch

    def __call__(self, *argv: str, **env: str) -> Done:
        from tcsweep.__main__ import main

        for name in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI"):
            self._patch.delenv(name, raising=False)
        for name, value in env.items():
            self._patch.setenv(name, value)
        self._patch.chdir(self._cwd)
        self._patch.setattr(sys, "argv", ["tcsweep", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def here(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path, capsys, monkeypatch)


def environment(**env: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **env}


def start(cwd: Path, *argv: str) -> subprocess.Popen[str]:
    """A small sweep that runs on while the test goes on; what it prints and its errors in one stream."""
    return subprocess.Popen(
        [sys.executable, "-m", "tcsweep", *SMALL, *argv],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def disturbed(rows: list[dict[str, str]]) -> bool:
    """Whether this machine did something else beside the sweep: such rows are suspect, and give no speed-up."""
    return any(re.search("others used|times changed", row["reason"]) for row in rows)


def sweep_folder(cwd: Path) -> Path:
    (found,) = (p.parent for p in cwd.glob("outputs/*/*/sweep.json"))
    return found


def results(cwd: Path) -> list[dict[str, object]]:
    folder = sweep_folder(cwd)
    names = json.loads((folder / "sweep.json").read_text())["folders"]
    return [json.loads((folder / name / "result.json").read_text()) for name in names]


def summary(cwd: Path) -> list[dict[str, str]]:
    with open(sweep_folder(cwd) / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_precisions_and_batches_ends_in_the_mlflow_store(tmp_path: Path) -> None:
    done = tcsweep(tmp_path, "-m", "precision=o0,o1,o2,o3,fp32", "batch=1,3", *SMALL, *FAST)
    assert done.returncode == 0, done.stderr
    rows = summary(tmp_path)
    assert [(r["precision"], r["batch"]) for r in rows] == [
        (p, b) for p in ("o0", "o1", "o2", "o3", "fp32") for b in ("1", "3")
    ]
    assert {r["status"] for r in rows} == {"ok"}
    assert {r["half_dtype"] for r in rows if r["precision"] in ("o1", "o2", "o3")} == {"bfloat16"}
    assert "batch 1" in done.stdout
    assert "batch 3" in done.stdout
    assert (sweep_folder(tmp_path) / "throughput.png").stat().st_size > 10_000

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["tcsweep"])
    children = runs[runs["tags.tcsweep.kind"] == "result"]
    assert len(children) == 10
    assert set(children["params.precision"]) == {"o0", "o1", "o2", "o3", "fp32"}
    assert set(children["params.device"]) == {"cpu"}
    assert children["metrics.throughput_img_s"].notna().all()
    assert disturbed(rows) or children["metrics.speedup"].notna().all()
    assert (children["status"] == "FINISHED").all()
    assert len(runs[runs["tags.tcsweep.kind"] == "sweep"]) == 1
    logged = {r["params.precision"] + r["params.batch"]: r["metrics.throughput_img_s"] for _, r in children.iterrows()}
    for row in rows:
        assert logged[row["precision"] + row["batch"]] == pytest.approx(float(row["throughput_img_s"]), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "batches"),
    [
        (["batch=8"], [8]),
        (["batch=48"], [48]),
        (["-m", "batch=1,48"], [1, 48]),
        (["-m", "batch=range(1,4)"], [1, 2, 3]),
    ],
)
def test_batches_of_any_size_are_measured(tmp_path: Path, here: Here, overrides: list[str], batches: list[int]) -> None:
    done = here(*overrides, *SMALL, *FAST, "tracking=none")
    assert done.returncode == 0, done.stderr
    assert [int(r["batch"]) for r in summary(tmp_path)] == batches
    assert not (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_single_run_gets_its_baseline(tmp_path: Path, here: Here) -> None:
    done = here("precision=o3", "batch=2", *SMALL, *FAST, "tracking=none")
    assert done.returncode == 0, done.stderr
    rows = summary(tmp_path)
    assert [(r["role"], r["precision"]) for r in rows] == [("asked", "o3"), ("baseline", "fp32")]
    assert disturbed(rows) or float(rows[0]["speedup"]) > 0


def test_a_model_that_does_not_exist_refuses_the_whole_sweep(tmp_path: Path, here: Here) -> None:
    start = time.monotonic()
    done = here("-m", "model.name=resnet18,nope,resnet34,resnet50,vgg11", "batch=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tcsweep: job 2 of 5: model=nope is unknown")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/**/result.json"))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["precision=o0,o1"], "tcsweep: precision=o0,o1 is a sweep: add -m"),
        (["batch.size=abc"], "tcsweep: Error merging override batch.size=abc: Value 'abc' of type 'str' could not be"),
        (["-m", "batch.size=1,abc"], "tcsweep: Error merging override batch.size=abc"),
        (["measure.rounds=0"], "tcsweep: measure.rounds=0: must be 1 or more"),
        (["snyc"], "tcsweep: unknown command snyc; did you mean sync?"),
        (["sync", "nowhere"], "tcsweep: nowhere is no sweep's folder: it has no sweep.json"),
        (["precision=tf32", "device=cpu"], "tcsweep: nothing can be measured here: tf32 on cpu"),
        (["precision=o1", "device=cpu", "amp_backend=apex"], "tcsweep: nothing can be measured here: o1 on cpu: apex"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, here: Here, argv: list[str], said: str) -> None:
    done = here(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("outputs/**/*.json"))


@pytest.mark.parametrize("argv", [["--help"], ["--cfg", "job"], ["-m", "precision=fp61,o1", "batch=1"]])
def test_help_the_composed_config_and_a_mistake_take_half_a_second(tmp_path: Path, argv: list[str]) -> None:
    """Of a processor's time, not the clock's, which others share; on a slow one no longer than Hydra's own import
    accounts for."""

    def least_s(run: Callable[[], object]) -> float:
        def once() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return min(once() for _ in range(3))

    bare = least_s(
        lambda: subprocess.run([sys.executable, "-c", "import hydra.main, hydra._internal.hydra"], check=True)
    )
    assert least_s(lambda: tcsweep(tmp_path, *argv)) < max(0.5, 3.5 * bare)


def test_a_sweep_itself_never_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['tcsweep', 'model=resnet18', 'measure=quick', 'model.image_size=32']\n"
        "from tcsweep.__main__ import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('torch', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")


def test_help_and_mistakes_import_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys; sys.argv = ['tcsweep', '-m', 'precision=fp61']\n"
        "from tcsweep.__main__ import main\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 2\n"
        "print([m for m in ('torch', 'torchvision', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_batch_too_big_for_memory_is_one_failure_among_four_results(tmp_path: Path, here: Here) -> None:
    done = here("-m", "batch=1,2,3,4,1000000000", "fit=try", *SMALL, *FAST)
    assert done.returncode == 1
    rows = summary(tmp_path)
    assert [r["status"] for r in rows] == ["ok", "ok", "ok", "ok", "failed"]
    assert "out of host memory" in rows[4]["reason"]
    assert "out of host memory" in done.stdout
    assert "batch=1000000000" in done.stderr  # said when it happened, with its overrides


def test_a_worker_killed_with_sigkill_is_one_failure_among_four_results(tmp_path: Path) -> None:
    sweep = start(tmp_path, "-m", "batch=1,2,3,4,5", "measure.timed_s_min=1", "measure.timed_s_max=1")
    worker = wait_for_worker(sweep.pid, tmp_path, done=1)
    os.kill(worker, signal.SIGKILL)
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 1, said
    assert sorted(str(r["status"]) for r in results(tmp_path)) == ["failed", "ok", "ok", "ok", "ok"]
    assert said.count("killed by SIGKILL, probably out of memory") >= 2  # when it happened, and at the end
    assert "1 failed" in said


def test_ctrl_c_keeps_everything_measured(tmp_path: Path) -> None:
    sweep = start(tmp_path, "-m", "batch=1,2,3", "measure.timed_s_min=1", "measure.timed_s_max=1")
    worker = wait_for_worker(sweep.pid, tmp_path, done=1)
    sweep.send_signal(signal.SIGINT)
    said, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 130, said
    assert sorted(str(r["status"]) for r in results(tmp_path)) == ["ok", "skipped", "skipped"]
    assert not Path(f"/proc/{worker}").exists()

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    runs = mlflow.search_runs(experiment_names=["tcsweep"])
    assert sorted(runs["status"]) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]


def wait_for_worker(pid: int, cwd: Path, done: int) -> int:
    """The pid of the worker that measures after `done` results are on disk."""
    for _ in range(600):
        saved = list(cwd.glob("outputs/*/*/*/result.json"))
        if len(saved) >= done and (worker := worker_of(pid)) is not None:
            time.sleep(0.3)
            if worker_of(pid) == worker:
                return worker
        time.sleep(0.1)
    raise AssertionError("no worker seen")


def worker_of(pid: int) -> int | None:
    """The fork server's child: the grandchild that leads a session of its own."""
    for child in children(pid):
        for grandchild in children(child):
            try:
                if os.getsid(grandchild) == grandchild:
                    return grandchild
            except ProcessLookupError:
                continue
    return None


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def test_a_state_dict_that_does_not_fit_is_a_failure_with_its_reason(tmp_path: Path, here: Here) -> None:
    import torch

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.pt")
    done = here("batch=1", *SMALL, *FAST, f"model.weights={tmp_path / 'wrong.pt'}", "tracking=none")
    assert done.returncode == 1
    assert re.search(
        r"Error\(s\) in loading state_dict for ResNet: (Missing key|size mismatch)", done.stdout + done.stderr
    )


def test_an_unreachable_server_costs_seconds_and_loses_nothing(tmp_path: Path, here: Here) -> None:
    done = here("batch=1", *SMALL, *FAST, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0
    assert "python -m tcsweep sync" in done.stdout
    assert [r["status"] for r in summary(tmp_path)] == ["ok"]
    again = here("sync", str(sweep_folder(tmp_path)))
    assert again.returncode == 0, again.stdout
    assert (tmp_path / "outputs" / "mlflow.db").exists()


def test_a_password_in_the_tracking_address_is_nowhere(tmp_path: Path, here: Here) -> None:
    done = here("batch=1", *SMALL, *FAST, "tracking.uri='http://bob:S3cr%40t@127.0.0.1:9'")
    assert done.returncode == 0
    for text in (done.stdout, done.stderr):
        assert "S3cr" not in text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"S3cr" not in path.read_bytes(), path


def test_a_poisoned_apex_stops_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "poison" / "apex").mkdir(parents=True)
    (tmp_path / "poison" / "apex" / "__init__.py").write_text(
        "from pyramid.session import UnencryptedCookieSessionFactoryConfig\nimport sys; sys.exit(1)\n"
    )
    path = os.pathsep.join([str(tmp_path / "poison"), str(ROOT)])
    done = tcsweep(tmp_path, "-m", "precision=o1,fp32", "batch=1", *SMALL, *FAST, "tracking=none", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert {str(r["environment"]["apex"]) for r in results(tmp_path)} == {"not-nvidia"}  # type: ignore[index]


def test_a_second_sweep_on_the_device_waits_and_says_for_whom(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    long = ["batch=1", "measure.timed_s_min=2", "measure.timed_s_max=2", "tracking=none"]
    both = [start(tmp_path / name, *long) for name in ("a", "b")]
    said = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    waited = [s for s in said if "waiting for the device: process" in s]
    assert waited  # one for the other; both where a stranger was first
    assert any(f"-m tcsweep {' '.join([*SMALL, *long])}) is measuring on it" in s for s in waited)


def test_output_that_is_no_terminal_is_plain(tmp_path: Path, here: Here) -> None:
    done = here("batch=1", *SMALL, *FAST, "tracking=none", COLUMNS="100")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_anything_is_measured_ends_in_one_line(tmp_path: Path, number: signal.Signals) -> None:
    sweep = subprocess.Popen(
        [sys.executable, "-m", "tcsweep", "batch=1", *SMALL],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(200):
        if list(tmp_path.glob("outputs/*/*/sweep.json")):
            break
        time.sleep(0.02)
    os.killpg(sweep.pid, number)  # as a terminal does: the fork server, importing torch, gets it too
    out, err = sweep.communicate(timeout=60)
    assert (sweep.returncode, out) == (128 + number, "")
    assert err.splitlines()[-1] == f"tcsweep: {'interrupted' if number == signal.SIGINT else 'terminated'}"
    assert "Traceback" not in err
    assert not list(tmp_path.glob("outputs/*/*/sweep.json"))


def test_a_torch_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise OSError('libcurand.so.10: cannot open')\n")
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    done = tcsweep(tmp_path, "batch=1", *SMALL, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tcsweep: torch cannot be used: OSError: libcurand.so.10: cannot open\n"


@pytest.mark.parametrize("argv", [["hydra.run.dir=/proc/x"], ["-m", "hydra.sweep.dir=/proc/x"]])
def test_a_folder_that_cannot_be_written_is_one_line(here: Here, argv: list[str]) -> None:
    done = here(*argv, *SMALL)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tcsweep: cannot write in /proc/x")
    assert done.stderr.count("\n") == 1


def test_a_closed_output_does_not_cost_the_upload(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tcsweep batch=1 {' '.join([*SMALL, *FAST])} | true"
    subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), check=False, timeout=120)

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    assert len(mlflow.search_runs(experiment_names=["tcsweep"])) == 2
