"""scripts/audit.py: what it says of pip-audit's answers, and pip-audit itself against a service of this test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.audit import Audit, first, read

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.prefix) / "check" / "bin" / "python"
HASHED = "".join(f"{one} \\\n    --hash=sha256:{'0' * 64}\n    # via torch\n" for one in ("idna==3.20", "six==1.17.0"))
OSV = {"id": "GHSA-0", "modified": "2026-01-01T00:00:00Z", "summary": "It is said.", "affected": []}


@pytest.mark.parametrize(
    ("found", "said", "status", "strict_status"),
    [
        (Audit(2), "audited: r.txt: 2 packages, known vulnerabilities: none", 0, 0),
        (Audit(2, ("six 1: A",)), "r.txt: six 1: A\naudited: r.txt: 2 packages, known vulnerabilities: 1", 1, 1),
        (Audit(0, unreachable="gone"), "not audited: r.txt: gone", 0, 1),
        (Audit(0, broken="no such file"), "error: r.txt: no such file", 1, 1),
        (
            Audit(0, skipped=tuple("abcdefg")),
            "not audited: r.txt: the service has no entry for a, b, c, d, e and 2 more",
            0,
            1,
        ),
    ],
)
def test_what_is_known_fails_and_what_was_not_audited_is_said_and_fails_where_that_is_asked_for(
    found: Audit, said: str, status: int, strict_status: int
) -> None:
    assert ("\n".join(found.lines("r.txt")), found.status(False), found.status(True)) == (said, status, strict_status)


def test_packages_that_the_service_does_not_know_are_not_audited_although_pip_audit_finds_no_vulnerability() -> None:
    answer = json.dumps({"dependencies": [{"name": "idna", "skip_reason": "not found"}], "fixes": []})
    assert read(answer, "No known vulnerabilities found") == Audit(0, skipped=("idna",))


def test_a_service_that_cannot_be_reached_is_told_from_a_mistake() -> None:
    assert read("", "a\nrequests.exceptions.ConnectionError: no") == Audit(
        0, unreachable="requests.exceptions.ConnectionError: no"
    )
    assert read("", "error: invalid requirements input: r.txt") == Audit(
        0, broken="error: invalid requirements input: r.txt"
    )
    assert read("", "") == Audit(0, broken="pip-audit said nothing")


def test_the_first_package_of_a_file_comes_with_its_hashes(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("# compiled\n" + HASHED)
    assert first(tmp_path / "r.txt") == f"idna==3.20 \\\n    --hash=sha256:{'0' * 64}\n"


class Service(BaseHTTPRequestHandler):
    """As osv.dev answers: one vulnerability of six, none of anything else."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = asked["package"]["name"] == "six" and self.server.vulnerable  # type: ignore[attr-defined]
        body = json.dumps({"vulns": [OSV]} if bad else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not PYTHON.exists(), reason="pip-audit is not here: `make audit` installs it")
@pytest.mark.parametrize(
    ("vulnerable", "strict", "status", "said"),
    [
        (False, "1", 0, "audited: r.txt: 2 packages, known vulnerabilities: none\n"),
        (
            True,
            "0",
            1,
            "r.txt: six 1.17.0: GHSA-0, mended in no version\naudited: r.txt: 2 packages, known vulnerabilities: 1\n",
        ),
        (None, "0", 0, "not audited: r.txt: "),
        (None, "1", 1, "not audited: r.txt: "),
    ],
)
def test_a_real_audit_fails_on_a_vulnerability_and_says_when_the_service_is_away(
    service: ThreadingHTTPServer, tmp_path: Path, vulnerable: bool | None, strict: str, status: int, said: str
) -> None:
    (tmp_path / "r.txt").write_text(HASHED)
    service.vulnerable = vulnerable  # type: ignore[attr-defined]
    port = service.server_port if vulnerable is not None else 9  # nobody listens at 9
    options = ["-s", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query"]
    done = subprocess.run(
        [PYTHON, ROOT / "scripts" / "audit.py", tmp_path / "r.txt", "--", *options],
        env={**os.environ, "CI_AUDIT": strict},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith(said), done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (status, "")
