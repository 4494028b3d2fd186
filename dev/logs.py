"""The verb `logs`: merges the processes' log files by time and renders each line so that a person can read it."""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dev.errors import CannotRun
from dev.tail import last_lines

LINES_BEFORE = 100
POLL_S = 0.2
READ_BYTES_MAX = 1024 * 1024
COLOURS = (36, 35, 34, 33, 32, 96, 95, 94)
LEVEL_COLOURS = {"warning": 33, "error": 31, "critical": 31}
# The servers' own formats, to their time, level mark and text.
FORMATS = (
    re.compile(r"\[\d+\] (?P<time>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d+) \[(?P<level>\w+)\] (?P<text>.*)"),
    re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC \[\d+\] (?P<level>\w+):\s+(?P<text>.*)"),
    re.compile(r"\d+:\w (?P<time>\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d+) (?P<level>[.\-*#]) (?P<text>.*)"),
)
TIMES = ("%Y/%m/%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S.%f", "%d %b %Y %H:%M:%S.%f")
LEVELS = {"WRN": "warning", "ERR": "error", "FTL": "error", "WARNING": "warning", "ERROR": "error", "FATAL": "error"}
LEVELS |= {"#": "warning", "PANIC": "error"}


@dataclass(frozen=True, slots=True)
class Line:
    """One log line understood; `at` is seconds since 1970 in UTC, None where the line does not say."""

    at: float | None
    level: str
    text: str


def understand(raw: str) -> Line:
    """Read a JSON line of a service, or a line of one of the servers; any other line is its own text."""
    if raw.startswith("{"):
        try:
            fields = json.loads(raw)
        except ValueError:
            return Line(None, "info", raw)
        if isinstance(fields, dict):
            return _from_json(fields)
    for pattern, form in zip(FORMATS, TIMES, strict=True):
        if match := pattern.fullmatch(raw):
            return Line(_seconds(match["time"], form), LEVELS.get(match["level"], "info"), match["text"])
    return Line(None, "info", raw)


def select(folder: Path, name: str | None) -> dict[str, Path]:
    """Return the log files by process name; `name` picks a service, a replica or a server."""
    found = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if name is None:
        return found
    chosen = {stem: path for stem, path in found.items() if name in (stem, stem.rpartition("-")[0])}
    if not chosen:
        known = sorted({stem.rpartition("-")[0] or stem for stem in found})
        raise CannotRun(f"There is no log of {name!r}: one of {', '.join(known) or 'none yet'}.")
    return chosen


def show_logs(folder: Path, name: str | None, *, follow: bool) -> None:
    """Print the last lines of the chosen logs in order of time; with `follow` go on until interrupted."""
    files = select(folder, name)
    offsets = {stem: path.stat().st_size for stem, path in files.items()}
    before: list[tuple[float, str, Line]] = []
    for stem, path in files.items():
        latest = 0.0
        for raw in last_lines(path, LINES_BEFORE):
            line = understand(raw)
            latest = line.at or latest  # a line without a time belongs to the one before it
            before.append((latest, stem, line))
    for _, stem, line in sorted(before, key=lambda item: item[0]):
        print(render(stem, line, colour=sys.stdout.isatty()))
    sys.stdout.flush()
    if follow:
        for stem, raw in _follow(folder, name, offsets):
            print(render(stem, understand(raw), colour=sys.stdout.isatty()), flush=True)


def render(stem: str, line: Line, *, colour: bool) -> str:
    """Return `name  | HH:MM:SS level text`, with colours for a terminal."""
    clock = "" if line.at is None else datetime.fromtimestamp(line.at, UTC).astimezone().strftime("%H:%M:%S ")
    prefix, text = f"{stem:<12}|", f"{clock}{line.level:<7} {line.text}"
    if not colour:
        return f"{prefix} {text}"
    shade = COLOURS[sum(stem.encode()) % len(COLOURS)]
    if line.level in LEVEL_COLOURS:
        text = f"\x1b[{LEVEL_COLOURS[line.level]}m{text}\x1b[0m"
    return f"\x1b[{shade}m{prefix}\x1b[0m {text}"


def _follow(folder: Path, name: str | None, offsets: dict[str, int]) -> Iterator[tuple[str, str]]:
    torn: dict[str, bytes] = {}
    while True:
        for stem, path in select(folder, name).items():
            size = path.stat().st_size
            start = offsets.get(stem, 0)
            if size < start:
                start, torn[stem] = 0, b""  # trimmed meanwhile
            if size == start:
                continue
            with path.open("rb") as file:
                file.seek(start)
                data = torn.get(stem, b"") + (chunk := file.read(READ_BYTES_MAX))
            offsets[stem] = start + len(chunk)
            *lines, torn[stem] = data.split(b"\n")
            for line in lines:
                yield stem, line.decode(errors="replace")
        time.sleep(POLL_S)


def _from_json(fields: dict[str, Any]) -> Line:
    at = _iso_seconds(str(fields.pop("timestamp", fields.pop("time", ""))))
    level = str(fields.pop("level", "info")).lower()
    event = str(fields.pop("event", ""))
    exception = fields.pop("exception", None)
    pairs = " ".join(f"{key}={_value(value)}" for key, value in fields.items() if value not in (None, ""))
    text = f"{event} {pairs}".strip()
    return Line(at, level, f"{text}\n{exception}" if exception else text)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if " " in text and isinstance(value, str) else text


def _iso_seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _seconds(text: str, form: str) -> float:
    return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
