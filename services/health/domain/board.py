"""The board: the last result of every target, and since when each has been as it is."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import structlog

from services.health.model import Observation, Result, Target


class Board:
    """Holds exactly the targets of the last `keep`, so it is as large as the fleet."""

    def __init__(self, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._clock = wall_clock
        self._seen: dict[tuple[str, str], Observation] = {}
        self._log = structlog.get_logger()

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._seen.values())

    def keep(self, targets: Iterable[Target]) -> None:
        """Add new targets, forget those that are gone; known ones keep their result under their new label."""
        now = self._clock()
        kept = {}
        for target in targets:
            place = target.component, target.key
            known = self._seen.get(place)
            kept[place] = replace(known, target=target) if known else Observation(target, None, now)
        self._seen = kept

    def record(self, target: Target, result: Result) -> None:
        """Put a result in its place; a target that is gone meanwhile is not added again."""
        place = target.component, target.key
        known = self._seen.get(place)
        if known is None:
            return
        before = known.result
        changed = before is None or bool(before.error) != bool(result.error)
        if changed and (before is not None or result.error):
            tell = self._log.warning if result.error else self._log.info
            tell("state_changed", component=target.component, part=target.label, error=result.error)
        self._seen[place] = Observation(known.target, result, self._clock() if changed else known.since)
