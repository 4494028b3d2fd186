"""Shows the fleet to people: a live table on a terminal, a line for each change elsewhere, and the way in at the end."""

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dev.rows import Row

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

COLOURS = {"ready": "green", "failed": "red", "draining": "yellow", "stopped": "dim", "starting": "cyan"}
REDRAWS_PER_S = 8


class Display(Protocol):
    """Something that follows the fleet."""

    def update(self, rows: list[Row]) -> None:
        """Take note of the rows as they stand."""

    def say(self, text: str) -> None:
        """Print a message that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines:
    """One plain line for each change of a row."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen: dict[str, tuple[str, str, int | None]] = {}

    def update(self, rows: list[Row]) -> None:
        for row in rows:
            sight = (row.state, row.note, row.pid if row.state == "ready" else None)
            if self._seen.get(row.name) != sight and (row.state, row.note) != ("waiting", ""):
                self._write(f"{time.strftime('%H:%M:%S')} {line_of(row)}")
                for line in row.failure if row.state == "failed" else ():
                    self._write(f"         | {line}")
            self._seen[row.name] = sight
        for name in set(self._seen) - {row.name for row in rows}:
            del self._seen[name]

    def say(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        """Nothing to put back."""


class JsonLines:
    """One JSON object for each change of a row."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen: dict[str, dict[str, Any]] = {}

    def update(self, rows: list[Row]) -> None:
        for row in rows:
            shown = row.as_json()
            if self._seen.get(row.name) != shown:
                self._seen[row.name] = shown
                self._write(json.dumps({"event": "resource", **shown}))

    def say(self, text: str) -> None:
        self._write(json.dumps({"event": "message", "text": text}))

    def close(self) -> None:
        """Nothing to put back."""


class LiveTable:
    """A table that is redrawn in place (rich)."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._begun = time.monotonic()
        self._rows: list[Row] = []
        self._ready_s: float | None = None
        self._said: list[str] = []
        self._console = Console(highlight=False)
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=REDRAWS_PER_S)
        self._live.start()

    def update(self, rows: list[Row]) -> None:
        self._rows = rows
        if self._ready_s is None and rows and all(row.state == "ready" for row in rows):
            self._ready_s = time.monotonic() - self._begun

    def say(self, text: str) -> None:
        self._said.append(text)

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> "Group":
        from rich.console import Group
        from rich.text import Text

        seconds = self._ready_s or time.monotonic() - self._begun
        table = table_of(self._rows, f"{self._title} · {seconds:.1f} s")
        # Folded, not cropped, when the terminal is narrow: the curl must be whole to be pasted.
        return Group(table, *(Text(f"\n{text}", overflow="fold") for text in self._said))


def table_of(rows: Iterable[Row], title: str) -> "Table":
    """Return the rich table of the rows; failed rows carry their last log lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("RESOURCE", "STATE", "PORT", "READY", "RESTARTS", "NOTE"):
        table.add_column(heading, no_wrap=heading != "NOTE", overflow="fold")
    for row in rows:
        note = Text(row.note)
        if row.state == "failed":
            note.append("".join(f"\n{line}" for line in row.failure), style="dim")
        state = Text(row.state, style=COLOURS.get(row.state, ""))
        table.add_row(row.name, state, str(row.port or ""), _seconds(row), str(row.restarts), note)
    return table


def plain_table(resources: list[dict[str, Any]]) -> str:
    """Return the rows of a status object as plain text."""
    heads = ("RESOURCE", "STATE", "PID", "PORT", "READY", "RESTARTS", "NOTE")
    lines = [heads]
    for row in resources:
        ready = "" if row["ready_s"] is None else f"{row['ready_s']:.2f}s"
        cells = (row["name"], row["state"], row["pid"] or "", row["port"] or "", ready, row["restarts"], row["note"])
        lines.append(tuple(str(cell) for cell in cells))  # type: ignore[arg-type]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def welcome(url: str, checkout: Path) -> str:
    """Return the URLs and one curl that works as it is."""
    dev = "dev" if Path.cwd() == checkout else shlex.quote(str(checkout / "dev"))
    return "\n".join(
        (
            f"Gateway {url}   Health {url}/health/detailed",
            "Try it:",
            f"  curl -s -H \"Authorization: Bearer $(python3 {dev} token)\" -H 'content-type: application/json' "
            f"-d '{{\"n\":20000}}' {url}/cpu-intensive",
        )
    )


def line_of(row: Row) -> str:
    """Return one line about one row."""
    took = f" in {_seconds(row)}" if row.state == "ready" and row.ready_s is not None else ""
    where = f" {row.url}" if row.state == "ready" and row.url else ""
    note = f" ({row.note})" if row.note else ""
    return f"{row.name:<12} {row.state}{took}{where}{note}"


def make_display(*, as_json: bool, title: str) -> Display:
    """Choose how to show: JSON lines when asked, a live table on a terminal, plain lines elsewhere."""

    def write(text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            # The reader left (`| head`); the fleet goes on, and nothing more is shown.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    if as_json:
        return JsonLines(write)
    return LiveTable(title) if sys.stdout.isatty() else Lines(write)


def _seconds(row: Row) -> str:
    return "" if row.ready_s is None else f"{row.ready_s:.2f}s"
