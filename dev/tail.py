"""Reads the end of a log file without reading the whole."""

from pathlib import Path

TAIL_BYTES_MAX = 64 * 1024


def last_lines(path: Path, count: int) -> list[str]:
    """Return up to `count` last lines of the file, none when there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES_MAX))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:]
