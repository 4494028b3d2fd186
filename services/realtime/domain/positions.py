"""Positions: `epoch:offset`, the place of a publication in one life of the log."""

import re
from dataclasses import dataclass

from shared.errors import BadRequest

_POSITION = re.compile(r"([0-9a-z]{1,32}):(0|[1-9][0-9]{0,17})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """`offset` counts from 1; 0 stands before the first publication. Positions of two epochs say nothing about each other."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"


def parse_position(text: str) -> Position:
    """Read `epoch:offset`. Raises BadRequest."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise BadRequest("a position is epoch:offset as events carry it in their id", code="malformed_position")
    return Position(found[1], int(found[2]))
