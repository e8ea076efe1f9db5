"""The addresses of MLflow: found wrong before measuring, and shown without passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcsweep.tracking_uri import ELSEWHERE, Target, check, redact, resolved_uri, safe_uri


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://bob@host:5000/x", "http://bob@host:5000/x"),
        ("http://bob:S3cr%40t%2F@host:5000/x", "http://bob@host:5000/x"),
        ("http://bob@corp.com:p:w/@#?@host", "http://bob@corp.com@host"),
        ("http://:pw@host", "http://@host"),
        ("http://bob:p w\n@host", "http://bob@host"),
        ("postgresql+psycopg2://bob:pw@nohost/db?sslpassword=pw&x=1", "postgresql+psycopg2://bob@nohost/db?sslpassword=***&x=1"),
        ("sqlite:////a:b@c/mlflow.db", "sqlite:////a:b@c/mlflow.db"),
    ],
)  # fmt: skip
def test_safe_addresses_hold_no_password(uri, safe):
    assert safe_uri(uri) == safe


def test_text_is_redacted_wherever_an_address_stands_in_it():
    text = "from http://bob:p%40w@h:1/x and 'mysql://u:p@w@h' at 12:30, mail x@y.z, sqlite:////a:b@c"
    assert redact(text) == "from http://bob@h:1/x and 'mysql://u@h' at 12:30, mail x@y.z, sqlite:////a:b@c"


def test_the_address_is_the_one_asked_for_then_the_environments_then_the_embedded_store(monkeypatch):
    assert resolved_uri(Target(None, store=Path("/o p"))) == "sqlite:////o p/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env")
    assert resolved_uri(Target(None, store=Path("/o"))) == "http://env"
    assert resolved_uri(Target("http://asked", store=Path("/o"))) == "http://asked"


FOLDER = "MLflow since 3.13 refuses a folder ({uri}): use {better}, or set MLFLOW_ALLOW_FILE_STORE=true"
STORES = "use http(s)://host:port, sqlite:////path/mlflow.db or a database"
NO_HOST = "{uri} names no host: use http://host:port; characters such as @ / # in a password as %40 %2F %23"
IN_MEMORY = "sqlite:// is a database in memory, lost at once: use sqlite:////path/mlflow.db"
READ_ONLY = f"cannot write MLflow's store /proc/x/m.db: /proc is not writable; {ELSEWHERE}"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (None, None),
        ("http://host:5000", None),
        ("https://bob:p%40w@host/mlflow", None),
        ("postgresql://u:p@h/db", None),
        ("databricks", None),
        ("/a/mlruns", FOLDER.format(uri="/a/mlruns", better="sqlite:////a/mlruns/mlflow.db")),
        ("./mlruns", FOLDER.format(uri="./mlruns", better=f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")),
        ("file:///a%20b/m", FOLDER.format(uri="file:///a%20b/m", better="sqlite:////a b/m/mlflow.db")),
        ("s3://b:k@bucket", f"MLflow has no store for s3://b@bucket: {STORES}"),
        ("http:///x", NO_HOST.format(uri="http:///x")),
        ("http://h:x1", NO_HOST.format(uri="http://h:x1")),
        ("sqlite://", IN_MEMORY),
        ("sqlite:////proc/x/m.db", READ_ONLY),
    ],
)
def test_an_address_that_cannot_work_is_found_before_measuring(tmp_path, monkeypatch, uri, reason):
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != "/proc")
    assert check(Target(uri, store=tmp_path / "new")) == reason


def test_a_folder_is_taken_where_mlflow_is_told_to_allow_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert check(Target("./mlruns", store=tmp_path)) is None
