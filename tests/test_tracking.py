"""The MLflow sink, against real MLflow on sqlite files of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import http.server
import json
import logging
import multiprocessing
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tcsweep import tracking, tracking_runs
from tcsweep.job import Environment
from tcsweep.speedup import rows
from tcsweep.store import load_sweep, save_outcome, save_sweep
from tcsweep.tracking import prepare, ui_lines, upload
from tcsweep.tracking_runs import Whole, child_run
from tcsweep.tracking_uri import Target, check, resolved_uri, sqlite_uri
from tests import sweeps

SECRET = "S3cr"
CREDENTIALS = "bob:S3cr%40t%2F"


@pytest.fixture(scope="session")
def new_database(tmp_path_factory):
    """An empty database made by tcsweep: 3 s, so once."""
    path = tmp_path_factory.mktemp("new") / "mlflow.db"
    tracking.open_client(sqlite_uri(path))
    return path


@pytest.fixture
def store(tmp_path, new_database):
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(new_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def target(store):
    return Target(None, store=store)


def client_of(target):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=resolved_uri(target))


def runs_of(target, experiment_id="1", view=1):
    """Name -> all that MLflow holds of the run."""
    return {r.info.run_name: r for r in client_of(target).search_runs([experiment_id], run_view_type=view)}


def plain(run, client):
    """All of a run that does not depend on when or by which ids it was sent."""
    tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
    history = {
        k: [(m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, k)] for k in run.data.metrics
    }
    files = sorted(f.path for f in client.list_artifacts(run.info.run_id))
    info = run.info
    return info.status, info.start_time, info.end_time, run.data.params, run.data.metrics, history, tags, files


def files_below(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.json")}


@contextlib.contextmanager
def a_port(listen):
    """A port that refuses, or accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listen:
            server.listen()
        yield server.getsockname()[1]


@contextlib.contextmanager
def a_server(answer):
    """An HTTP server on loopback; `answer(handler)` gives status and JSON. Yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            status, data = answer(self)
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def in_a_process(code, *arguments):
    """All that a fresh interpreter says."""
    root = Path(tracking.__file__).parents[1]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout


# --- what is sent ---


def test_a_sweep_becomes_a_parent_run_and_a_child_of_each_outcome(target):
    uploaded = upload(sweeps.write_sweep(target.store), target)
    runs = runs_of(target)
    children = {n: r for n, r in runs.items() if r.data.tags.get("mlflow.parentRunId") == uploaded.parent_run_id}
    assert {
        n: (r.info.status, r.data.tags["tcsweep.kind"], r.data.tags["tcsweep.role"]) for n, r in children.items()
    } == {
        "resnet50 o1 b8 nhwc": ("FINISHED", "result", "asked"),
        "resnet50 fp16 b8 nhwc cudagraph (best)": ("FINISHED", "result", "asked"),
        "resnet50 o3 b4096 (failed)": ("FAILED", "failure", "asked"),
        "resnet50 fp8 b8 (skipped)": ("FINISHED", "skipped", "asked"),
        "resnet50 fp32 b8 nhwc (baseline)": ("FINISHED", "result", "baseline"),
    }
    assert {n for n in runs if n not in children} == {"sweep 2025-11-24_16-00-00"}
    assert uploaded == tracking.Uploaded(
        experiment_id="1",
        parent_run_id=runs["sweep 2025-11-24_16-00-00"].info.run_id,
        uri=resolved_uri(target),
        runs=5,
        already=0,
        error=None,
        sweep_id="2025-11-24_16-00-00",
        view_key=f"tcsweep.{getpass.getuser()}_gpu-box.2025-11-24-16-00-00",
    )


def test_search_runs_shows_exactly_the_params_metrics_and_tags_of_a_result(target):
    import mlflow

    uploaded = upload(sweeps.write_sweep(target.store), target)
    mlflow.set_tracking_uri(resolved_uri(target))
    try:
        table = mlflow.search_runs(["1"], "params.precision = 'o1'", output_format="list")
    finally:
        mlflow.set_tracking_uri(None)
    (run,) = table
    assert run.data.params == {
        "model": "resnet50", "precision": "o1", "batch": "8", "layout": "nhwc", "engine": "eager", "device": "cuda:0"
    }  # fmt: skip
    assert run.data.metrics == {
        "throughput_img_s": 2860.0,
        "throughput_ci95_low": 2851.49,
        "throughput_ci95_high": 2868.54,
        "speedup": 2.86,
        "speedup_ci95_low": 2.86,
        "speedup_ci95_high": 2.86,
        "latency_ms_p50": 3.1724,
        "latency_ms_p90": 3.2508,
        "latency_ms_p95": 3.26154,
        "device_ms": 2.74126,
        "wall_ms": 2.7972,
        "peak_memory_mib": 515.0,
        "setup_s": 1.5,
        "series/latency_ms": run.data.metrics["series/latency_ms"],
    }
    history = client_of(target).get_metric_history(run.info.run_id, "series/latency_ms")
    assert sorted(m.step for m in history) == list(range(100))
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("synthetic-224", "benchmark")
    tags = dict(run.data.tags)
    assert len(tags.pop("tcsweep.digest")) == 12
    assert tags == {
        "tcsweep.sweep_id": "2025-11-24_16-00-00",
        "tcsweep.result_id": f"2025-11-24_16-00-00/{sweeps.a_job('o1', layout='nhwc').id}",
        "tcsweep.role": "asked",
        "tcsweep.kind": "result",
        "tcsweep.verdict": "unverified",
        "tcsweep.reason": "dtypes and kernels were not observed",
        "tcsweep.upload": "complete",
        "tcsweep.image_size": "224",
        "tcsweep.measure": "default",
        "env.gpu": "NVIDIA H100 80GB HBM3",
        "env.gpu_uuid": "GPU-3f5e",
        "env.compute_capability": "9.0",
        "env.driver": "570.86.15",
        "env.cuda": "12.8",
        "env.cudnn": "9.7.1",
        "env.torch": "2.9.1",
        "env.torchvision": "0.24.1",
        "env.apex": "amp",
        "env.apex_version": "0.1",
        "env.apex_build": "full",
        "env.amp_backend": "apex",
        "env.amp_version": "0.1",
        "env.half_dtype": "float16",
        "env.python": "3.11.7",
        "env.host": "gpu-box",
        "env.os": "Linux 6.8",
        "env.cpu_model": "AMD EPYC 9654",
        "env.cpu_threads": "32",
        "env.tcsweep": "0.1.0",
        "env.git_commit": "0869a29d1c5b",
        "mlflow.runName": "resnet50 o1 b8 nhwc",
        "mlflow.runColor": "#CC6677",
        "mlflow.parentRunId": uploaded.parent_run_id,
        "mlflow.source.name": "tcsweep",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0869a29d1c5b",
        "mlflow.user": getpass.getuser(),
        "mlflow.note.content": "2860 img/s, 2.86x fp32, unverified: dtypes and kernels were not observed",
    }
    assert (run.info.start_time, run.info.end_time) == (1_764_000_000_000, 1_764_000_012_500)


def test_all_metrics_go_in_one_batch_in_their_order_at_the_results_own_end(target, monkeypatch):
    from mlflow import MlflowClient

    batches, log_batch = [], MlflowClient.log_batch

    def spy(self, run_id, metrics=(), params=(), tags=(), **more):
        batches.append([(m.key, m.timestamp, m.step) for m in metrics])
        return log_batch(self, run_id, metrics=metrics, params=params, tags=tags, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    reference = sweeps.a_result(sweeps.a_job(), rounds=10)
    upload(sweeps.write_sweep(target.store, [dataclasses.replace(reference, ended_at=sweeps.STARTED + 9.25)]), target)
    names = [
        *("throughput_img_s", "throughput_ci95_low", "throughput_ci95_high"),
        *("speedup", "speedup_ci95_low", "speedup_ci95_high", "speedup_total"),
        *("latency_ms_p50", "latency_ms_p90", "latency_ms_p95", "latency_ms_p99"),
        *("device_ms", "wall_ms", "peak_memory_mib", "setup_s"),
    ]
    first, *others = [b for b in batches if b]
    assert first == [(name, 1_764_000_009_250, 0) for name in names]
    assert [{name for name, _, _ in b} for b in others] == [{"series/latency_ms"}]


def test_failures_and_skips_say_why_and_have_no_metrics(target):
    upload(sweeps.write_sweep(target.store), target)
    runs = runs_of(target)
    failed, skipped = runs["resnet50 o3 b4096 (failed)"].data, runs["resnet50 fp8 b8 (skipped)"].data
    assert (failed.metrics, failed.tags["tcsweep.reason"], failed.tags["mlflow.note.content"]) == (
        {}, "out of GPU memory: 90.0 GiB asked for", "failed: out of GPU memory: 90.0 GiB asked for"
    )  # fmt: skip
    assert (skipped.metrics, skipped.tags["tcsweep.reason"]) == ({}, "fp8 needs sm_89 or later")


def test_what_could_not_be_read_is_absent(target):
    result = sweeps.a_result(sweeps.a_job(device="cpu"), rounds=1, environment=Environment())
    silent = dataclasses.replace(result.rounds[0], block_device_ms=None, peak_memory_mib=None, latency_ms=())
    upload(sweeps.write_sweep(target.store, [dataclasses.replace(result, rounds=(silent,))]), target)
    data = runs_of(target)["resnet50 fp32 b8 cpu (best)"].data
    assert sorted(data.metrics) == [
        "setup_s", "speedup", "speedup_ci95_high", "speedup_ci95_low", "speedup_total", "throughput_img_s", "wall_ms"
    ]  # fmt: skip
    assert {k: v for k, v in data.tags.items() if k.startswith("env.")} == {"env.apex": "none"}


def test_artifacts_lie_where_they_belong(target):
    sweep_dir = sweeps.write_sweep(target.store)
    (sweep_dir / "summary.csv").write_text("a\n")
    (sweep_dir / "throughput.png").write_bytes(b"png")
    (sweep_dir / sweeps.outcomes()[0].job.folder / "config.yaml").write_text("model: resnet50\n")
    upload(sweep_dir, target)
    client, runs = client_of(target), runs_of(target)
    files = {name: sorted(f.path for f in client.list_artifacts(r.info.run_id)) for name, r in runs.items()}
    assert files == {
        "sweep 2025-11-24_16-00-00": ["summary.csv", "sweep.json", "throughput.png"],
        "resnet50 o1 b8 nhwc": ["config.yaml", "result.json", "samples.csv"],
        "resnet50 fp16 b8 nhwc cudagraph (best)": ["result.json", "samples.csv"],
        "resnet50 fp32 b8 nhwc (baseline)": ["result.json", "samples.csv"],
        "resnet50 o3 b4096 (failed)": ["result.json"],
        "resnet50 fp8 b8 (skipped)": ["result.json"],
    }
    assert {r.info.artifact_uri.startswith((target.store / "mlartifacts").as_uri()) for r in runs.values()} == {True}


@pytest.mark.parametrize(
    ("status", "shown"), [("finished", "FINISHED"), ("interrupted", "KILLED"), ("running", "RUNNING")]
)
def test_the_parent_says_how_the_sweep_ended(target, status, shown):
    uploaded = upload(sweeps.write_sweep(target.store, sweeps.outcomes()[:1], status=status), target)
    info = client_of(target).get_run(uploaded.parent_run_id).info
    ended = None if status == "running" else 1_764_000_013_500
    assert (info.status, info.start_time, info.end_time) == (shown, 1_763_999_998_000, ended)


def test_long_values_are_cut_with_a_mark_and_whole_in_a_tag(target):
    model = "/models/" + "x" * 600
    job = sweeps.a_job(model=model)
    made = dataclasses.replace(sweeps.a_failure(sweeps.a_job("o1")), reason="y" * 9000)
    sweep_dir = sweeps.write_sweep(target.store, [made])
    sweep, outcomes = load_sweep(sweep_dir)
    child = child_run(Whole.of(sweep, ()), rows([sweeps.a_result(job)])[0], sweep_dir)
    assert child.tags["tcsweep.param.model"] == model
    run_id = client_of(target).create_run("0").info.run_id
    tracking._log_facts(client_of(target), run_id, child, at_ms=0)
    assert client_of(target).get_run(run_id).data.params["model"] == model[:499] + "…"
    reason = child_run(Whole.of(sweep, ()), rows(outcomes)[0], sweep_dir).tags["tcsweep.reason"]
    assert (len(reason), reason[-1]) == (5000, "…")


def test_metrics_survive_a_server_that_refuses_a_long_parameter(tmp_path, monkeypatch):
    sent = []

    def answer(handler):
        if "get-by-name" in handler.path:
            return 200, {"experiment": {"experiment_id": "1", "name": "tcsweep", "lifecycle_stage": "active"}}
        if "log-batch" in handler.path:
            params = handler.body.get("params", [])
            if any(len(p["value"]) > 30 for p in params):
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "exceeded length limit"}
            sent.append((len(handler.body.get("metrics", [])), [p["value"] for p in params if p["key"] == "model"]))
        run = {"info": {"run_id": "r", "artifact_uri": (tmp_path / "there").as_uri(), "lifecycle_stage": "active"}}
        return 200, {"run": run} if "runs/create" in handler.path or "runs/get" in handler.path else {}

    monkeypatch.setattr(tracking_runs, "PARAM_LIMITS", (60, 30))
    sweep_dir = sweeps.write_sweep(tmp_path / "o", [sweeps.a_result(sweeps.a_job(model="x" * 90))])
    with a_server(answer) as port:
        uploaded = upload(sweep_dir, Target(f"http://127.0.0.1:{port}", store=tmp_path))
    assert (uploaded.error, uploaded.runs) == (None, 1)
    assert [one for one in sent if one != (0, [])] == [(14, []), (0, ["x" * 29 + "…"]), (100, [])]


def test_a_run_refused_for_good_does_not_keep_the_others_back(target, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_artifact = MlflowClient.log_artifact

    def picky(self, run_id, path):
        if "fp16" in path:
            raise MlflowException("not this one", error_code=1000)  # INVALID_PARAMETER_VALUE
        log_artifact(self, run_id, path)

    sweep_dir = sweeps.write_sweep(target.store)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", picky)
        uploaded = upload(sweep_dir, target)
    wanted = f"resnet50 fp16 b8 nhwc cudagraph (best): MLflow at {resolved_uri(target)}: not this one"
    assert (uploaded.error, uploaded.runs) == (wanted, 4)
    again = upload(sweep_dir, target)
    assert (again.error, again.runs, again.already) == (None, 1, 4)


# --- exactly once ---


def test_a_second_upload_sends_nothing(target):
    sweep_dir = sweeps.write_sweep(target.store)
    first, second = upload(sweep_dir, target), upload(sweep_dir, target)
    assert second == dataclasses.replace(first, runs=0, already=5)
    assert len(client_of(target).search_runs(["1"])) == 6


@pytest.mark.parametrize(
    ("call", "at"), [("create_run", 3), ("log_batch", 2), ("log_batch", 4), ("log_artifact", 3), ("set_terminated", 6)]
)
def test_an_upload_cut_off_anywhere_is_taken_up_again(target, monkeypatch, call, at):
    from mlflow import MlflowClient

    sweep_dir = sweeps.write_sweep(target.store)
    expected_target = dataclasses.replace(target, experiment="expected")
    upload(sweep_dir, expected_target)
    original, calls = getattr(MlflowClient, call), []

    def cut(*args, **more):
        calls.append(1)
        done = original(*args, **more)
        if len(calls) == at:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, cut)
        with pytest.raises(KeyboardInterrupt):
            upload(sweep_dir, target)
    again = upload(sweep_dir, target)
    assert (again.error, again.runs + again.already) == (None, 5)
    client = client_of(target)
    expected = {name: plain(run, client) for name, run in runs_of(target, "1").items()}
    found = client.search_runs(["2"])
    assert len(found) == 6
    different = {"mlflow.note.content", "tcsweep.digest"}  # the parent's: its link names the experiment
    for run in found:
        got, want = plain(run, client), expected[run.info.run_name]
        if run.data.tags["tcsweep.kind"] == "sweep":
            for one in (got, want):
                for tag in different:
                    one[6].pop(tag, None)
        assert got == want


def test_a_resumed_sweep_brings_its_runs_up_to_date(target):
    o1, baseline = sweeps.a_job("o1"), sweeps.a_job()
    made = [sweeps.a_result(o1, 2000.0), sweeps.a_skip(baseline, 1, "interrupted")]
    sweep_dir = sweeps.write_sweep(target.store, made, status="interrupted")
    upload(sweep_dir, target)
    later = dataclasses.replace(sweeps.a_result(baseline, 1000.0, index=1), ended_at=sweeps.STARTED + 90)
    save_outcome(sweep_dir, later)
    sweep, _ = load_sweep(sweep_dir)
    save_sweep(sweep_dir, dataclasses.replace(sweep, status="finished", ended_at=sweeps.STARTED + 91))
    assert dataclasses.astuple(upload(sweep_dir, target))[3:6] == (2, 0, None)
    runs = runs_of(target)
    assert {n: (r.info.status, r.info.end_time, r.data.metrics.get("speedup")) for n, r in runs.items()} == {
        "sweep 2025-11-24_16-00-00": ("FINISHED", 1_764_000_091_000, None),
        "resnet50 o1 b8 (best)": ("FINISHED", 1_764_000_012_500, 2.0),
        "resnet50 fp32 b8": ("FINISHED", 1_764_000_090_000, 1.0),
    }
    assert runs["resnet50 fp32 b8"].data.tags["tcsweep.reason"] == "dtypes and kernels were not observed"
    assert upload(sweep_dir, target).runs == 0


def test_a_figure_that_changed_is_shown_even_where_it_fell(target):
    baseline = sweeps.a_result(sweeps.a_job(), 1000.0, index=1)
    sweep_dir = sweeps.write_sweep(target.store, [sweeps.a_result(sweeps.a_job("o1"), 2000.0), baseline])
    upload(sweep_dir, target)
    save_outcome(sweep_dir, sweeps.a_result(sweeps.a_job(), 1250.0, index=2))
    upload(sweep_dir, target)
    assert {n: r.data.metrics.get("speedup") for n, r in runs_of(target).items() if "resnet50" in n} == {
        "resnet50 o1 b8 (best)": 1.6,
        "resnet50 fp32 b8": 1.0,
    }


def test_a_run_deleted_by_the_user_stays_deleted(target):
    sweep_dir = sweeps.write_sweep(target.store)
    upload(sweep_dir, target)
    client = client_of(target)
    client.delete_run(runs_of(target)["resnet50 o1 b8 nhwc"].info.run_id)
    assert dataclasses.astuple(upload(sweep_dir, target))[3:6] == (0, 5, None)
    assert len(client.search_runs(["1"])) == 5


def test_two_uploaders_of_one_sweep_do_not_meet(target, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(tracking, "WAIT_S", 0.1)
    sweep_dir = sweeps.write_sweep(target.store)
    with FileLock(sweep_dir / ".upload.lock"):
        assert upload(sweep_dir, target).error == "another process is sending this sweep to MLflow"


# --- stores ---


def test_a_new_store_is_made_quietly_in_a_folder_with_an_odd_name(tmp_path):
    odd = tmp_path / "a b" / "c%20d 100% x" / "e?f#g"
    target = Target(None, store=odd)
    sweep_dir = sweeps.write_sweep(odd, sweeps.outcomes()[:1])
    code = (
        "import sys, threading; from pathlib import Path; "
        "from tcsweep.tracking import upload; from tcsweep.tracking_uri import Target; "
        "done = upload(Path(sys.argv[1]), Target(None, store=Path(sys.argv[2])));"
        "print(done.parent_run_id, done.error, len(threading.enumerate()))"  # a second thread would be telemetry's
    )
    said = in_a_process(code, str(sweep_dir), str(odd))
    run_id = said.partition(" ")[0]
    assert said == f"{run_id} None 1\n"
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*/*")} == {"a b/c%20d 100% x/e?f#g"}
    with contextlib.closing(sqlite3.connect(odd / "mlflow.db")) as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)
    saved = client_of(target).download_artifacts(run_id, "sweep.json")
    assert Path(saved).read_bytes() == (sweep_dir / "sweep.json").read_bytes()


def test_prepare_makes_the_embedded_store_and_raises_nothing_where_it_cannot(tmp_path):
    target = Target(None, experiment="mine", store=tmp_path / "new")
    prepare(target)
    assert (target.store / "mlflow.db").is_file()
    found = client_of(target).get_experiment_by_name("mine")
    assert (found.experiment_id, found.artifact_location) == ("1", (target.store / "mlartifacts").as_uri())
    for uri in ("sqlite:////proc/x/m.db", "http://h:x1", "nonsense://host"):
        prepare(Target(uri, store=tmp_path / "hopeless"))
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_processes_that_open_one_new_store_at_once_all_succeed(tmp_path, new_database):
    target = Target(None, store=tmp_path)
    dirs = [sweeps.write_sweep(tmp_path, sweeps.outcomes()[:1], name=f"s{n}") for n in range(4)]
    fork = multiprocessing.get_context("fork")  # mlflow is imported here already: a fresh one takes seconds each
    errors = fork.Queue()
    started = [fork.Process(target=lambda d=d: errors.put(upload(d, target).error)) for d in dirs]
    for process in started:
        process.start()
    assert [errors.get(timeout=60) for _ in started] == [None] * 4
    for process in started:
        process.join()
    assert len(client_of(target).search_runs(["1"])) == 8


def test_a_locked_store_is_an_error_and_results_stay(target, monkeypatch):
    sweep_dir = sweeps.write_sweep(target.store, sweeps.outcomes()[:1])
    upload(sweep_dir, dataclasses.replace(target, experiment="first"))
    before = files_below(sweep_dir)
    monkeypatch.setattr(
        "sqlite3.connect", lambda *a, **k: (_ for _ in ()).throw(sqlite3.OperationalError("database is locked"))
    )
    assert upload(sweep_dir, target).error == f"MLflow's store {resolved_uri(target)} is locked by another process"
    assert files_below(sweep_dir) == before


def test_a_deleted_experiment_is_an_error_that_says_how_to_restore_it(target):
    sweep_dir = sweeps.write_sweep(target.store)
    assert check(target) is None
    upload(sweep_dir, target)
    client_of(target).delete_experiment("1")
    wanted = (
        "MLflow's experiment 'tcsweep' was deleted, and its name stays taken: restore it by "
        f"`MLFLOW_TRACKING_URI={resolved_uri(target)} mlflow experiments restore -x 1` or choose another name"
    )
    assert (check(target), upload(sweep_dir, target).error) == (wanted, wanted)


# --- servers that fail ---


@pytest.mark.parametrize(("listen", "why"), [(False, "connection refused"), (True, "timed out")])
def test_a_server_that_does_not_answer_is_given_up_in_time(tmp_path, listen, why):
    sweep_dir = sweeps.write_sweep(tmp_path)
    before = files_below(tmp_path)
    with a_port(listen) as port:
        begun = time.monotonic()
        uploaded = upload(sweep_dir, Target(f"http://127.0.0.1:{port}", store=tmp_path))
        took = time.monotonic() - begun
    assert uploaded.error == f"MLflow at http://127.0.0.1:{port} does not answer ({why})"
    assert took < 8
    assert files_below(tmp_path) == before


def test_a_server_that_stops_answering_in_between_is_given_up_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def answer(handler):
        if "get-by-name" in handler.path:
            return 200, {"experiment": {"experiment_id": "1", "name": "tcsweep", "lifecycle_stage": "active"}}
        time.sleep(0 if "health" in handler.path else 3)
        return 200, {}

    with a_server(answer) as port:
        begun = time.monotonic()
        uploaded = upload(sweeps.write_sweep(tmp_path), Target(f"http://127.0.0.1:{port}", store=tmp_path))
        assert time.monotonic() - begun < 4
    assert uploaded.error == f"MLflow at http://127.0.0.1:{port} does not answer (timed out)"
    assert (uploaded.experiment_id, uploaded.runs) == ("1", 0)


def test_the_password_reaches_the_server_and_nothing_else(tmp_path, capfd, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    seen = []

    def answer(handler):
        seen.append(handler.headers.get("Authorization"))
        return 500, {"message": f"no luck with {handler.path}, http://bob:S3cr@t/@h"}

    with a_server(answer) as port, a_port(listen=False) as closed:
        uris = [
            f"http://{CREDENTIALS}@127.0.0.1:{port}",
            f"http://bob:S3cr@t/@127.0.0.1:{port}",
            f"http://{CREDENTIALS}@127.0.0.1:{closed}",
            "http://bob:S3cr@t/#?@:x@nohost.invalid:5999",
            "http://bob:S3cr et@",
            "postgresql://bob:S3cret@nohost.invalid/db",
            f"postgresql://bob:S3cret@127.0.0.1:{port}/db",
            "nonsense://bob:S3cret@host",
        ]
        sweep_dir = sweeps.write_sweep(tmp_path)
        monkeypatch.setattr(tracking, "WAIT_S", 1.0)
        done = [upload(sweep_dir, Target(uri, store=tmp_path)) for uri in uris]
        lines = [line for u, uri in zip(done, uris, strict=True) for line in ui_lines(u, Target(uri, store=tmp_path))]
    assert [one for one in seen if one] == ["Basic Ym9iOlMzY3JAdC8="] * 2  # bob:S3cr@t/, for the first two addresses
    said = capfd.readouterr()
    everything = [repr(done), repr(Target(uris[0], store=tmp_path)), *lines, *said, caplog.text]
    everything += [p.read_bytes().decode(errors="replace") for p in tmp_path.rglob("*") if p.is_file()]
    assert [text for text in everything if SECRET in text] == []
    assert all(u.error and "\n" not in u.error for u in done)
    assert said == ("", "")


# --- around it ---


def test_without_mlflow_results_are_kept_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wanted = "mlflow is not installed: `pip install mlflow`, or turn tracking off; results are kept on disk"
    target = Target(None, store=tmp_path)
    assert (check(target), upload(sweeps.write_sweep(tmp_path), target).error) == (wanted, wanted)


def test_neither_the_import_nor_the_check_imports_mlflow_or_anything_slow():
    code = (
        "import sys, tcsweep.tracking; from pathlib import Path; from tcsweep.tracking_uri import Target, check; "
        "check(Target(None, store=Path('/x')));"
        "print([m for m in ('mlflow', 'torch', 'requests', 'filelock', 'sqlalchemy') if m in sys.modules])"
    )
    assert in_a_process(code) == "[]\n"


def test_the_lines_for_a_person_start_the_pages_and_open_this_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    uploaded = tracking.Uploaded("3", "r", "", 1, 0, None, "day_1", "tcsweep.me_box.day-1")
    page = "#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=tcsweep.me_box.day-1"
    link = f"http://127.0.0.1:5000/{page}"
    assert ui_lines(uploaded, Target(None, store=Path("/o p"))) == ["python -m tcsweep ui", link]
    assert ui_lines(uploaded, Target("sqlite:////o p/m/mlflow.db", store=Path("/o p"))) == [
        "python -m tcsweep ui '/o p/m'",
        link,
    ]
    assert ui_lines(uploaded, Target("postgresql://bob:S3cret@db/mlflow", store=Path("/o"))) == [
        "mlflow server --backend-store-uri postgresql://bob@db/mlflow",
        link,
    ]
    assert ui_lines(uploaded, Target("https://bob:pw@host:80/ml/", store=tmp_path)) == [f"https://host:80/ml/{page}"]
    assert ui_lines(dataclasses.replace(uploaded, experiment_id=None), Target(None, store=tmp_path)) == []


def refusal(code):
    from mlflow.exceptions import ErrorCode, MlflowException

    return MlflowException("no", error_code=ErrorCode.Value(code))


@pytest.mark.parametrize(("refused", "calls"), [(0, 1), (2, 3)])
def test_what_another_process_makes_at_the_same_moment_is_tried_again(refused, calls):
    made = []

    def make():
        made.append(None)
        if len(made) <= refused:
            raise refusal("BAD_REQUEST")

    tracking._made_once(make)
    assert len(made) == calls


@pytest.mark.parametrize(("code", "calls"), [("BAD_REQUEST", 3), ("INTERNAL_ERROR", 1)])
def test_what_is_refused_every_time_or_for_another_reason_is_raised(code, calls):
    made = []

    def make():
        made.append(None)
        raise refusal(code)

    with pytest.raises(type(refusal(code)), match="no"):
        tracking._made_once(make)
    assert len(made) == calls


def test_more_values_than_a_server_takes_in_one_call_are_sent_in_several(target, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH_METRICS", 30)
    sent = []

    class Client:
        def log_batch(self, run_id, metrics):
            sent.append(len(metrics))

    points = {name: tuple(tracking_runs.Point(n, n, 1.0) for n in range(40)) for name in ("a", "b")}
    tracking._log_series(Client(), "id", tracking_runs.Run("id", "name", "FINISHED", 0.0, 1.0, {}, series=points))
    assert sent == [30, 30, 20]
