"""How far the sweep is: a bar on a terminal, lines elsewhere. The sweep drives it; nothing here runs by itself, since a
thread that draws would take time from a timed loop."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tcsweep.report.words import count, duration, encodable, number, one_line, percent

REFRESHES_PER_S = 4
TICK_S = 0.5  # between refreshes that only bring an estimate: two a second are left for what happens


class Progress(Protocol):
    """What a sweep tells while it runs. Every call is cheap, and safe after `close`."""

    def started(self, total_rounds: int, jobs: int) -> None:
        """The sweep begins, with so many rounds to do."""

    def round_started(self, label: str, round_number: int, rounds: int) -> None:
        """A round of a job begins."""

    def stage(self, name: str) -> None:
        """The round is at this stage. To be repeated while waiting: it moves the clock on."""

    def estimate(self, throughput_img_s: float, half_width: float | None) -> None:
        """The running throughput of the round, and the half-width of its interval as a share."""

    def round_done(self, label: str, round_number: int, throughput_img_s: float) -> None:
        """A round is measured."""

    def failed(self, label: str, overrides: str, reason: str) -> None:
        """A job failed; the overrides repeat it alone. Its rounds that fall away: `added_rounds` with a minus."""

    def skipped(self, label: str, reason: str) -> None:
        """A job is left out."""

    def message(self, text: str) -> None:
        """Something else worth a line."""

    def added_rounds(self, n: int) -> None:
        """There are n rounds more to do than was thought, or with a minus, fewer."""

    def close(self) -> None:
        """The sweep has ended, in whatever way."""


def pick(console: Console) -> Progress:
    """A bar where it can be redrawn, else lines."""
    return TerminalProgress(console) if redraws(console) else PlainProgress(console.file)


def redraws(console: Console) -> bool:
    """Whether what is drawn can be drawn over. FORCE_COLOR makes of a file a terminal to rich, which it isn't."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _failed_line(label: str, overrides: str, reason: str) -> str:
    again = f" [{overrides}]" if overrides else ""
    return f"failed: {label}: {one_line(reason)}{again}"


class PlainProgress:
    """A line for each finished round and each failure, flushed at once; no control codes."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._total = 0
        self._done = 0
        self._rounds: dict[str, int] = {}

    def started(self, total_rounds: int, jobs: int) -> None:
        """Say how much there is to do."""
        self._total = total_rounds
        self._write(f"{count(jobs, 'job')}, {count(total_rounds, 'round')}")

    def round_started(self, label: str, round_number: int, rounds: int) -> None:
        """Nothing: a line comes when it is done."""
        self._rounds[label] = rounds

    def stage(self, name: str) -> None:
        """Nothing."""

    def estimate(self, throughput_img_s: float, half_width: float | None) -> None:
        """Nothing."""

    def round_done(self, label: str, round_number: int, throughput_img_s: float) -> None:
        """A line: [12/45] label, round 2 of 3: 1234 img/s."""
        self._done += 1
        place = f"[{self._done:>{len(str(self._total))}}/{self._total}]"
        of = f" of {self._rounds[label]}" if label in self._rounds else ""
        self._write(f"{place} {label}, round {round_number}{of}: {number(throughput_img_s)} img/s")

    def failed(self, label: str, overrides: str, reason: str) -> None:
        """A line."""
        self._write(_failed_line(label, overrides, reason))

    def skipped(self, label: str, reason: str) -> None:
        """A line."""
        self._write(f"skipped: {label}: {one_line(reason)}")

    def message(self, text: str) -> None:
        """A line."""
        self._write(one_line(text))

    def added_rounds(self, n: int) -> None:
        """Count them."""
        self._total += n

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, line: str) -> None:
        file = self._file or sys.stdout
        file.write(encodable(line, getattr(file, "encoding", None)) + "\n")
        file.flush()


class TerminalProgress:
    """At the foot of the terminal the job with its round, stage or estimate, and a bar over the sweep's rounds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._drawn: deque[float] = deque(maxlen=REFRESHES_PER_S)
        self._began = self._last_done = clock()
        self._total = self._done = 0
        self._label = self._round = self._stage = self._doing = ""
        self._live = Live(get_renderable=self._view, console=console, auto_refresh=False, transient=True)

    def started(self, total_rounds: int, jobs: int) -> None:
        """Show the bar."""
        self._total, self._began = total_rounds, self._clock()
        self._label = f"{count(jobs, 'job')}, {count(total_rounds, 'round')}"
        self._live.start()
        self._refresh()

    def round_started(self, label: str, round_number: int, rounds: int) -> None:
        """Show the job and its round."""
        self._label, self._round = label, f"round {round_number} of {rounds}"
        self._stage = self._doing = ""
        self._refresh()

    def stage(self, name: str) -> None:
        """Show the stage; a repeated one only moves the clock on."""
        if name == self._stage:
            self._refresh(TICK_S)
            return
        self._stage = self._doing = name
        self._refresh()

    def estimate(self, throughput_img_s: float, half_width: float | None) -> None:
        """Show the estimate in the stage's place."""
        width = "" if half_width is None else f" ±{percent(half_width)}"
        self._doing = f"{number(throughput_img_s)} img/s{width}"
        self._refresh(TICK_S)

    def round_done(self, label: str, round_number: int, throughput_img_s: float) -> None:
        """Move the bar."""
        self._done, self._last_done = self._done + 1, self._clock()
        self._doing = f"{number(throughput_img_s)} img/s"
        self._refresh()

    def failed(self, label: str, overrides: str, reason: str) -> None:
        """A line above the bar."""
        self._print(_failed_line(label, overrides, reason), "red")

    def skipped(self, label: str, reason: str) -> None:
        """A line above the bar."""
        self._print(f"skipped: {label}: {one_line(reason)}", "yellow")

    def message(self, text: str) -> None:
        """A line above the bar."""
        self._print(one_line(text), "")

    def added_rounds(self, n: int) -> None:
        """Lengthen the bar."""
        self._total += n
        self._refresh(TICK_S)

    def close(self) -> None:
        """Take the bar away."""
        self._live.stop()

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(encodable(line, self._console.encoding), style=style))

    def _refresh(self, least_s: float = 0.0) -> None:
        """Draw again, unless that was done less than `least_s` ago or as often as it may be in a second."""
        now = self._clock()
        full = len(self._drawn) == REFRESHES_PER_S and now - self._drawn[0] < 1.0
        if full or (self._drawn and now - self._drawn[-1] < least_s) or not self._live.is_started:
            return
        self._drawn.append(now)
        self._live.refresh()

    def _view(self) -> RenderableType:
        doing = encodable(self._doing, self._console.encoding)
        label, state = Text(self._label), Text("  ".join(t for t in (self._round, doing) if t))
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(ProgressBar(total=max(self._total, 1), completed=self._done), Text(self._times()))
        if len(label) + 2 + len(state) > self._console.width:
            return Group(label, state, bar)
        job = Table.grid(padding=(0, 2), expand=True)
        job.add_column(ratio=1)
        job.add_column(justify="right", no_wrap=True)
        job.add_row(label, state)
        return Group(job, bar)

    def _times(self) -> str:
        elapsed = self._clock() - self._began
        text = f"{self._done}/{self._total} rounds  {duration(elapsed)}"
        left = self._remaining()
        return text if left is None else f"{text}, about {duration(left)} left"

    def _remaining(self) -> float | None:
        """As long a round as the mean of those done; None before the first."""
        if not self._done or self._done >= self._total:
            return None
        mean = (self._last_done - self._began) / self._done
        return max(mean * (self._total - self._done) - (self._clock() - self._last_done), 0.0)
