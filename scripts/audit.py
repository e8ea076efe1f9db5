"""Known vulnerabilities in hashed requirements files, by pip-audit; run with the Python that has it.

    python scripts/audit.py requirements.txt [more files] [-- pip-audit's options]

Status 1 where one is known, or where CI_AUDIT=1 and anything was not audited. pip-audit alone won't do: it reports "No
known vulnerabilities found", with status 0, for packages that the service has never heard of, a mirror's for example.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

OFFLINE = re.compile(r"ConnectionError|Could not connect|timed out|not redirecting properly|ServiceError")
SHOWN = 5  # names in a line


class Audit(NamedTuple):
    """What one run of pip-audit found."""

    audited: int
    known: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unreachable: str | None = None
    broken: str | None = None

    def lines(self, file: str) -> list[str]:
        if self.broken:
            return [f"error: {file}: {self.broken}"]
        if self.unreachable:
            return [f"not audited: {file}: {self.unreachable}"]
        lines = [f"{file}: {one}" for one in self.known]
        if self.skipped:
            more = f" and {len(self.skipped) - SHOWN} more" if len(self.skipped) > SHOWN else ""
            lines.append(f"not audited: {file}: the service has no entry for {', '.join(self.skipped[:SHOWN])}{more}")
        if self.audited:
            lines.append(
                f"audited: {file}: {self.audited} packages, known vulnerabilities: {len(self.known) or 'none'}"
            )
        return lines

    def status(self, strict: bool) -> int:
        return int(bool(self.known or self.broken or (strict and (self.skipped or self.unreachable))))


def read(stdout: str, stderr: str) -> Audit:
    """pip-audit's JSON, or why there is none."""
    if not stdout.strip():
        why = stderr.strip() or "pip-audit said nothing"
        return Audit(0, unreachable=why.splitlines()[-1]) if OFFLINE.search(why) else Audit(0, broken=why)
    packages = json.loads(stdout)["dependencies"]
    skipped = tuple(one["name"] for one in packages if "skip_reason" in one)
    known = tuple(
        f"{one['name']} {one['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for one in packages
        for found in one.get("vulns", ())
    )
    return Audit(len(packages) - len(skipped), known, skipped)


def run(file: Path, options: list[str]) -> Audit:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command += ["--format", "json", "--requirement", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return read(done.stdout, done.stderr)


def first(file: Path) -> str:
    """The file's first package: where the service doesn't answer for it, there is no use in asking for a hundred."""
    found = re.search(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:[ ]+--hash[^\n]*\n?)*", file.read_text(), re.MULTILINE)
    return found[0] if found else ""


def audit(file: Path, options: list[str]) -> Audit:
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "requirements.txt")
        probe.write_text(first(file))
        answer = run(probe, options)
    if answer.unreachable or answer.broken:
        return answer
    if answer.skipped:
        return Audit(
            0, unreachable="the vulnerability service doesn't know even its first package, " + answer.skipped[0]
        )
    return run(file, options)


def main() -> None:
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    strict = os.environ.get("CI_AUDIT", "0") not in ("", "0")
    status = 0
    for file in map(Path, arguments[:end]):
        found = audit(file, arguments[end + 1 :])
        print("\n".join(found.lines(file.name)), flush=True)
        status |= found.status(strict)
    sys.exit(status)


if __name__ == "__main__":
    main()
