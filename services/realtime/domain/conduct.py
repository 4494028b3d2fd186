"""Conduct: how fast a client may talk, how much nonsense it may send, and when it has to go."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

BAD_FRAMES_MAX = 20
"""So many bad frames in a row close the connection."""

REFUSALS_MAX = 60
REFUSALS_FORGIVEN_PER_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one replica allows; `outbox_*` bound what waits for one listener."""

    frames_per_s: float = 20.0
    frames_burst: int = 60
    rooms_max: int = 32
    connections_per_user_max: int = 10
    outbox_frames_max: int = 1000
    outbox_events_max: int = 256
    outbox_bytes_max: int = 1024 * 1024
    channels_max: int = 50_000


class TokenBucket:
    """`burst` takes at once, then `rate_per_s` of them."""

    __slots__ = ("_at", "_burst", "_clock", "_rate_per_s", "_tokens")

    def __init__(self, rate_per_s: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def take(self) -> bool:
        """Take one token; False when there is none."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Pace(Enum):
    FINE = "fine"
    TOO_FAST = "too_fast"
    FLOOD = "flood"


class Conduct:
    """One client's record. Refusals are forgiven slowly, not by the next good frame: a steady flood gets frames through too."""

    __slots__ = ("_bad_in_a_row", "_frames", "_refusals")

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._frames = TokenBucket(limits.frames_per_s, limits.frames_burst, clock=clock)
        self._refusals = TokenBucket(REFUSALS_FORGIVEN_PER_S, REFUSALS_MAX, clock=clock)
        self._bad_in_a_row = 0

    def judge_pace(self) -> Pace:
        """Count a frame that came in."""
        if self._frames.take():
            return Pace.FINE
        return Pace.TOO_FAST if self._refusals.take() else Pace.FLOOD

    def note_good(self) -> None:
        self._bad_in_a_row = 0

    def note_bad(self) -> bool:
        """Count a frame that was not understood; True when it was one too many."""
        self._bad_in_a_row += 1
        return self._bad_in_a_row >= BAD_FRAMES_MAX
