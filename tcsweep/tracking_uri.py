"""MLflow's addresses: which one is meant, whether it can work, and how it is shown, never with its password."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shlex
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

DATABASES = ("postgresql", "mysql", "mssql")
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}

_CREDENTIALS = re.compile(r"^(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^:]*):(?P<secret>.*)@(?P<rest>[^@]*)$", re.DOTALL)
_IN_TEXT = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^\s:]*):\S*@")
_QUERY = re.compile(r"(?i)([?&;](?:[\w.-]*(?:passw(?:or)?d|pwd|secret|token|api_?key))=)[^&#\s]*")
ELSEWHERE = "set tracking.uri or MLFLOW_TRACKING_URI to another address, sqlite:////FOLDER/mlflow.db"
_PASSWORDLESS = ("sqlite", "file")  # a path may hold both ":" and "@"


@dataclass(frozen=True)
class Target:
    """Where a sweep is sent. `uri` None: MLFLOW_TRACKING_URI, else the embedded store, `mlflow.db` in `store`."""

    uri: str | None = field(repr=False)  # may hold a password
    experiment: str = "tcsweep"
    store: Path = field(kw_only=True)  # the folder of all sweeps, absolute


def resolved_uri(target: Target) -> str:
    """The address as MLflow takes it: asked for, or from the environment, or the embedded store's. May hold a
    password."""
    uri = target.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or sqlite_uri(target.store / "mlflow.db")


def safe_uri(uri: str) -> str:
    """The address without its password; user and host stay. Passwords may hold any character, even unquoted."""
    found = None if uri.startswith(_PASSWORDLESS) else _CREDENTIALS.match(uri)
    bare = f"{found['scheme']}{found['user']}@{found['rest']}" if found else uri
    return _QUERY.sub(r"\1***", bare)


def redact(text: str) -> str:
    """Any text without the passwords of the addresses in it."""

    def without(found: re.Match[str]) -> str:
        kept = found["scheme"].startswith(_PASSWORDLESS)
        return found[0] if kept else f"{found['scheme']}://{found['user']}@"

    return _QUERY.sub(r"\1***", _IN_TEXT.sub(without, text))


def sqlite_uri(path: Path) -> str:
    """The address of an sqlite file. Quotes no more than it must: MLflow makes the folder of the quoted path, too."""
    text = str(path.absolute())
    if _sqlalchemy_unquotes(text):
        text = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", text).replace("?", "%3F")
    return f"sqlite:///{text}"


def sqlite_path(uri: str) -> Path | None:
    """The file behind an sqlite address; None for any other address."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    text = uri.partition(":///")[2].partition("?")[0]
    return Path(unquote(text) if _sqlalchemy_unquotes(text) else text).absolute()


def _sqlalchemy_unquotes(text: str) -> bool:
    """Whether SQLAlchemy unquotes the path of an address: since 2.1. Asked only where it matters."""
    return ("%" in text or "?" in text) and _version("sqlalchemy") >= (2, 1)


@functools.cache
def _version(package: str) -> tuple[int, ...]:
    from importlib import metadata

    try:
        return tuple(int(n) for n in re.findall(r"\d+", metadata.version(package))[:2])
    except metadata.PackageNotFoundError:
        return ()


def is_http(uri: str) -> bool:
    """Whether it is a server's address."""
    return uri.startswith(("http://", "https://"))


def split_credentials(uri: str) -> tuple[str, str | None, str | None]:
    """Address without credentials, user, password. `host:5000/a@b` is a port and a path."""
    found = _CREDENTIALS.match(uri)
    if found is None or re.match(r"\d+/", found["secret"]):
        return uri, None, None
    return found["scheme"] + found["rest"], unquote(found["user"]), unquote(found["secret"])


def without_secrets(text: str, uri: str) -> str:
    """A text redacted, the address's own password wherever it stands, too; on one line."""
    found = _CREDENTIALS.match(uri)
    secrets = {os.environ.get("MLFLOW_TRACKING_PASSWORD", ""), os.environ.get("MLFLOW_TRACKING_TOKEN", "")}
    if found and not uri.startswith(_PASSWORDLESS):
        secrets |= {found["secret"], unquote(found["secret"])}
    text = redact(text.replace(uri, safe_uri(uri)))
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) > 2 else text
    return " ".join(text.split())


# --- before measuring ---


def check(target: Target) -> str | None:
    """Why tracking would not work, in a line, or None. Cheap: neither mlflow nor the network is touched."""
    if importlib.util.find_spec("mlflow") is None:
        return "mlflow is not installed: `pip install mlflow`, or turn tracking off; results are kept on disk"
    uri = resolved_uri(target)
    scheme = uri.partition("://")[0] if "://" in uri else uri.partition(":")[0] if re.match(r"\w{2,}:", uri) else ""
    scheme = scheme.partition("+")[0].lower()
    if uri.startswith("databricks"):
        return None
    if scheme in ("", "file"):
        return _check_folder(uri)
    if scheme == "sqlite":
        return _check_sqlite(uri, target.experiment)
    if scheme in ("http", "https"):
        return _check_host(uri)
    if scheme in DATABASES or scheme in _plugin_schemes():
        return None
    return f"MLflow has no store for {safe_uri(uri)}: use http(s)://host:port, sqlite:////path/mlflow.db or a database"


def _check_folder(uri: str) -> str | None:
    if _version("mlflow") < (3, 13) or os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return None
    better = sqlite_uri(Path(unquote(urlsplit(uri).path) if uri.startswith("file:") else uri) / "mlflow.db")
    return f"MLflow since 3.13 refuses a folder ({uri}): use {better}, or set MLFLOW_ALLOW_FILE_STORE=true"


def _check_host(uri: str) -> str | None:
    try:
        parts = urlsplit(split_credentials(uri)[0])
        if parts.hostname and (parts.port is None or parts.port > 0):
            return None
    except ValueError:
        pass
    return f"{safe_uri(uri)} names no host: use http://host:port; characters such as @ / # in a password as %40 %2F %23"


def _check_sqlite(uri: str, experiment: str) -> str | None:
    path = sqlite_path(uri)
    if path is None:
        return f"{uri} is a database in memory, lost at once: use sqlite:////path/mlflow.db"
    if "?" in str(path) and not _sqlalchemy_unquotes("?"):
        return f"SQLAlchemy before 2.1 cannot open {path}, with a '?' in it: use another folder for MLflow's store"
    # sqlite writes its log beside the file, MLflow the artifacts.
    for needed in (path, path.parent, path.parent / "mlartifacts"):
        # lexists: what lies behind a folder that may not be entered counts as not there, and the folder is named
        nearest = next(p for p in (needed, *needed.parents) if os.path.lexists(p))
        if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
            return f"cannot write MLflow's store {path}: {nearest} is not writable; {ELSEWHERE}"
    return _deleted_in_sqlite(path, experiment, uri)


def _deleted_in_sqlite(path: Path, experiment: str, uri: str) -> str | None:
    """The reason if the experiment is deleted there. Anything unreadable is left for MLflow to judge."""
    import sqlite3

    query = "select experiment_id from experiments where name = ? and lifecycle_stage = 'deleted'"
    with contextlib.suppress(sqlite3.Error), contextlib.closing(connect_sqlite(path, "ro", timeout_s=1)) as database:
        found = database.execute(query, (experiment,)).fetchone()
        return deleted_reason(experiment, found[0], uri) if found else None
    return None


def connect_sqlite(path: Path, mode: str, timeout_s: float) -> Any:
    """The database of an existing file, opened as `mode` says (ro, rw)."""
    import sqlite3

    return sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=timeout_s)


def deleted_reason(experiment: str, experiment_id: Any, uri: str) -> str:
    """The line that says an experiment was deleted and how to restore it."""
    address = shlex.quote(safe_uri(uri))
    return (
        f"MLflow's experiment {experiment!r} was deleted, and its name stays taken: restore it by "
        f"`MLFLOW_TRACKING_URI={address} mlflow experiments restore -x {experiment_id}` or choose another name"
    )


def _plugin_schemes() -> set[str]:
    from importlib import metadata

    return {point.name for point in metadata.entry_points(group="mlflow.tracking_store")}


def unreachable(uri: str, wait_s: float) -> str | None:
    """Why the address's host can't be talked to, in `wait_s` at most, names looked up included. Asked before the
    import of mlflow, which takes seconds on a small machine."""
    try:
        parts = urlsplit(split_credentials(uri)[0])
        scheme = parts.scheme.partition("+")[0]
        host, port = parts.hostname, parts.port or PORTS.get(scheme)
    except ValueError:
        return None
    if scheme not in PORTS or not host or not port or _proxied(scheme, host):
        return None
    outcome: list[str | None] = []

    def knock() -> None:
        try:
            with socket.create_connection((host, port), timeout=wait_s) as connection:
                if scheme == "http":  # any answer will do
                    connection.sendall(f"HEAD {parts.path}/health HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
                    connection.recv(65536)
            outcome.append(None)
        except OSError as error:
            outcome.append((error.strerror or str(error)).lower())

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(wait_s)
    why = outcome[0] if outcome else "timed out"
    return None if why is None else f"MLflow at {safe_uri(uri)} does not answer ({why})"


def _proxied(scheme: str, host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return scheme in getproxies() and not proxy_bypass(host)
