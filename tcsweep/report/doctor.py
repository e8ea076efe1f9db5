"""The table that `doctor` prints: what was looked at, how it stands, what was found, and below it what mends it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tcsweep.doctor_rows import Row
from tcsweep.report.words import count, encodable, one_line

STATUS = 4  # the longest of them
GAP = 2
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def render(rows: Sequence[Row], console: Console) -> None:
    """Print the table and its sum; aligned everywhere, coloured on a terminal only."""
    if console.options.ascii_only:
        with console.capture() as captured:
            _render(rows, console)
        console.out(encodable(captured.get(), console.encoding), end="", highlight=False)
    else:
        _render(rows, console)


def _render(rows: Sequence[Row], console: Console) -> None:
    wide = max((len(row.what) for row in rows), default=0)
    for row in rows:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, GAP, 0, 0))
        table.add_column(width=wide, no_wrap=True)
        table.add_column(width=STATUS, no_wrap=True)
        table.add_column(overflow="fold")
        style = STYLES[row.status]
        found = Text(one_line(row.found), style="" if row.status == "ok" else style)
        table.add_row(Text(row.what), Text(row.status, style=style), found)
        console.print(table)
        if row.mend:
            _print_mend(f"{'->' if console.options.ascii_only else '→'} {row.mend}", wide + STATUS + 2 * GAP, console)
    console.print()
    console.print(Text(closing(rows), style="bold"))


def _print_mend(text: str, indent: int, console: Console) -> None:
    """A command on one line, below what was found where it fits: broken by us it could not be copied."""
    indent = indent if indent + len(text) <= console.width else GAP
    console.print(Text(" " * indent + text, style="bold"), soft_wrap=True)


def closing(rows: Sequence[Row]) -> str:
    """How many of each, and what that means for a sweep."""
    failed, warned = (sum(row.status == status for row in rows) for status in ("fail", "warn"))
    said = f"{count(failed, 'failure')}, {count(warned, 'warning')}"
    if failed:
        return f"{said}: mend the failures first"
    return f"{said}: a sweep can run" if warned else "all is well: a sweep can run"
