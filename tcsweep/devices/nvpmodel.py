"""Switching a Jetson's power mode, and always back. The mode is the whole machine's: it outlives a process, so what was
found is noted in a file until it is restored."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tcsweep.devices import jetson
from tcsweep.devices.root import text
from tcsweep.job import from_json, to_json
from tcsweep.mistakes import unknown
from tcsweep.owner import Owner, is_dead, this_process

SWITCH_TIMEOUT_S = 30.0
TAKES_S = 5.0  # until nvpmodel's answer is the new mode
SETTLE_S = (0.5, 10.0)  # between looks at the clocks' limits until three agree, and at most in all
SUDOERS = "/etc/sudoers.d/nvpmodel: `USER ALL=(root) NOPASSWD: /usr/sbin/nvpmodel -m *`"


@dataclass(frozen=True)
class Mode:
    """A power mode of the board's table."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.number})"

    @property
    def short(self) -> str:
        """The name as it is typed: "MODE_30W_ALL" is "30w_all"."""
        return self.name.lower().removeprefix("mode_")


@dataclass(frozen=True)
class Target:
    """What a `power=` came to: a mode, or the reason why there is none."""

    mode: Mode | None
    reason: str | None = None


@dataclass(frozen=True)
class Note:
    """What is kept on disk while a sweep is in another mode than it found."""

    number: int
    name: str
    owner: Owner


def modes(root: Path) -> tuple[Mode, ...]:
    """The board's modes; none where it has no table."""
    return tuple(Mode(*item) for item in jetson.parse_modes(text(root / jetson.MODES) or "").items())


def targets(names: Iterable[str], root: Path) -> dict[str, Target]:
    """The mode of each name typed. Raises Mistake for a name that the board's table lacks."""
    known = modes(root)
    if not known:
        reason = f"needs a Jetson with its nvpmodel: there is no {root / jetson.MODES}"
        return {name: Target(None, f"power={name} {reason}") for name in names}
    return {name: Target(_named(name, known)) for name in names}


def _named(name: str, known: Iterable[Mode]) -> Mode:
    """By its name in any case, with or without MODE_; "30w" is MODE_30W_ALL, too, where there is no plain one."""
    by_name = {mode.short: mode for mode in known}
    wanted = name.lower().removeprefix("mode_")
    found = by_name.get(wanted) or by_name.get(f"{wanted}_all")
    if found is None:
        raise unknown("power", name, by_name)
    return found


def reachable(found: Mapping[str, Target], root: Path, tell: Callable[[str], None]) -> dict[str, Target]:
    """The same without the right to switch: only the present mode is left, with the reason for the others. Where no
    name means the present mode, the first stands for it."""
    now = current(root)
    if now is None or all(t.mode in (None, now) for t in found.values()) or _may_switch(now):
        return dict(found)
    left = {name: Target(None, _stays(t.mode, root)) if t.mode not in (None, now) else t for name, t in found.items()}
    if not any(t.mode == now for t in left.values()):
        first = next(name for name, target in found.items() if target.mode is not None)
        tell(f"power={first} is measured in {now}: {left[first].reason}")
        left[first] = Target(now)
    return left


def _may_switch(mode: Mode) -> bool:
    """Whether nvpmodel may be run as root; nothing is switched to learn it."""
    return os.geteuid() == 0 or _run(["sudo", "-n", "-l", "nvpmodel", "-m", str(mode.number)])[0] == 0


def current(root: Path) -> Mode | None:
    """The mode that the board is in; None where that cannot be read."""
    found = re.fullmatch(r"(.+) \((\d+)\)", jetson.power_mode(root) or "")
    return Mode(int(found[2]), found[1]) if found else None


def switch(mode: Mode, root: Path) -> str | None:
    """Switch, see that it took and let the clocks settle. A reason where it did not take. Never answers a question,
    and so never reboots."""
    for command in (["nvpmodel"], ["sudo", "-n", "nvpmodel"]):
        _, said = _run([*command, "-m", str(mode.number)])
        if _takes(mode, root):
            _settle(root)
            return None
        if "reboot" in said.lower():
            return f"{mode.name} needs a reboot: {_by_hand(mode)}, reboot, and sweep in that mode"
    return _stays(mode, root)


def _by_hand(mode: Mode) -> str:
    return f"sudo nvpmodel -m {mode.number}"


def _stays(mode: Mode | None, root: Path) -> str:
    by_hand = _by_hand(mode) if mode else "sudo nvpmodel -m"
    return f"the board stays in {current(root) or 'its mode'}: switch by hand, {by_hand}, or allow it in {SUDOERS}"


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and what the command says. In a session of its own: Ctrl-C in a terminal would end it half way."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SWITCH_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 1, ""
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _takes(mode: Mode, root: Path) -> bool:
    began = time.monotonic()
    while (now := current(root)) is None or now.number != mode.number:
        if now is not None or time.monotonic() - began >= TAKES_S:  # another mode is an answer
            return False
        time.sleep(0.2)
    return True


def _settle(root: Path) -> None:
    """Wait until the limits of the clocks stand still."""
    every_s, most_s = SETTLE_S
    began, alike, last = time.monotonic(), 1, None
    while alike < 3 and time.monotonic() - began < most_s:
        now = {name: value for name, value in jetson.state(root).items() if name != "power_mode"}
        alike = alike + 1 if now == last else 1
        last = now
        time.sleep(every_s)


class Keeper:
    """Switches modes for a sweep, and goes back to the one it found when its block ends, however it ends."""

    def __init__(self, root: Path, tell: Callable[[str], None]) -> None:
        self._root, self._tell = root, tell
        self._found: Mode | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *error: object) -> None:
        if self._found is not None:
            with _undisturbed():
                give_back(self._found, self._root, self._tell)

    def switch(self, mode: Mode) -> str | None:
        """Go to a mode; the reason why not, where it cannot be."""
        now = current(self._root)
        if now is None:
            return "the present power mode cannot be read, so it could not be restored: not switched"
        if now.number == mode.number:
            return None
        if self._found is None:
            if jetson.state(self._root)["clocks_locked"]:
                self._tell("a switch of the power mode ends jetson_clocks' lock: run it again afterwards")
            self._found = now
            with contextlib.suppress(OSError):
                _note_file().parent.mkdir(parents=True, exist_ok=True)
                _note_file().write_text(json.dumps(to_json(Note(now.number, now.name, this_process()))))
        return switch(mode, self._root)


def give_back(found: Mode, root: Path, tell: Callable[[str], None]) -> None:
    """Back to the mode that was found; where that fails the note stays, and the command that does it is told."""
    now = current(root)
    reason = None if now is not None and now.number == found.number else switch(found, root)
    if reason is None:
        with contextlib.suppress(OSError):
            _note_file().unlink()
    else:
        tell(f"the power mode is not back at {found}: {_by_hand(found)}")


def left_behind() -> Mode | None:
    """The mode that a sweep found and, killed, did not go back to; None where no sweep did, or it still runs."""
    try:
        note = from_json(Note, json.loads(_note_file().read_text()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return Mode(note.number, note.name) if is_dead(note.owner) else None


def tidy(root: Path, tell: Callable[[str], None]) -> None:
    """Go back to the mode that a killed sweep left behind."""
    found = left_behind()
    if found is not None:
        tell(f"a sweep that was killed left another power mode: back to {found}")
        give_back(found, root, tell)


def _note_file() -> Path:
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(folder) / "tcsweep" / "power.json"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No second Ctrl-C or SIGTERM keeps the mode from being restored."""
    before: Mapping[signal.Signals, object] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
