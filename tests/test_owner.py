"""Whether a process is gone: on trees of /proc made by hand, and on real processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tcsweep.owner import Owner, is_dead, this_process

HERE = this_process()


def test_this_process_is_alive_and_known_by_everything_that_tells_it_apart() -> None:
    assert HERE.pid == os.getpid()
    assert None not in (HERE.boot_id, HERE.pid_namespace, HERE.started)
    assert not is_dead(HERE)


def test_a_process_that_ended_is_dead_and_one_that_waits_to_be_asked_for_too() -> None:
    code = (
        "from tcsweep.owner import *; import dataclasses, json; print(json.dumps(dataclasses.asdict(this_process())))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    import json

    owner = Owner(**json.loads(child.stdout.read()))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    assert is_dead(owner)
    child.wait()
    assert is_dead(owner)


def test_a_pid_that_was_used_again_is_another_process() -> None:
    assert is_dead(dataclasses.replace(HERE, started="1"))


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(HERE, started="1", host="another"),
        dataclasses.replace(HERE, started="1", pid_namespace="pid:[1]"),
        dataclasses.replace(HERE, started="1", pid_namespace=None),
        dataclasses.replace(HERE, started="1", boot_id=None),
        dataclasses.replace(HERE, started=None),
        dataclasses.replace(HERE, boot_id="another", machine="another"),  # a board of the same name
        dataclasses.replace(HERE, boot_id="another", machine=None),
        Owner("another"),
    ],
)
def test_what_cannot_be_told_is_not_dead(other: Owner) -> None:
    assert not is_dead(other)


def test_what_ran_before_the_last_boot_of_this_machine_is_dead(tmp_path: Path) -> None:
    for name, text in {
        "etc/machine-id": "0123\n",
        "proc/device-tree/serial-number": "1421\0",
        "proc/sys/kernel/random/boot_id": "second\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    now = this_process(tmp_path)
    before = dataclasses.replace(now, boot_id="first", pid_namespace="pid:[7]")
    assert is_dead(before, tmp_path)
    (tmp_path / "proc/device-tree/serial-number").write_text("1422\0")  # a copied image has the machine id, too
    assert not is_dead(before, tmp_path)
