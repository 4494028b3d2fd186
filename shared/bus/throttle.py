"""A throttle for log lines: the first goes out at once, then one in ten seconds, and the rest is counted."""

import time
from collections.abc import Callable

INTERVAL_S = 10.0


class Throttle:
    """`held_back` says, after a line was let through, how many were not since the one before."""

    def __init__(self, *, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.held_back = 0
        self._held = 0
        self._interval_s = interval_s
        self._clock = clock
        self._last: float | None = None

    def due(self) -> bool:
        """Tell whether a line may be written now."""
        now = self._clock()
        if self._last is not None and now - self._last < self._interval_s:
            self._held += 1
            return False
        self._last = now
        self.held_back, self._held = self._held, 0
        return True
