"""Epochs: the text that names one life of a log, made from the moment it was created."""

import re
from datetime import datetime

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)


def base36(number: int) -> str:
    """Return a number >= 0 in base 36, lower case."""
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text


def epoch_of(created: str) -> str:
    """Return the epoch for a creation time such as `2026-01-31T12:00:00.123456789Z` (RFC 3339, UTC, to the nanosecond)."""
    found = _RFC3339.fullmatch(created)
    if found is None:
        raise ValueError("a log's creation time is not RFC 3339 in UTC")
    seconds = int(datetime.fromisoformat(found[1] + "+00:00").timestamp())
    return base36(seconds * 1_000_000_000 + int((found[2] or "").ljust(9, "0")))
