"""One try at one replica: chosen, counted in, timed, and counted out with how it ended."""

import time
from enum import IntEnum
from typing import TYPE_CHECKING

from services.gateway.model import Priority
from shared.breaker import CircuitBreaker
from shared.endpoints import Address

if TYPE_CHECKING:
    from services.gateway.lane.upstream import Upstream


class Outcome(IntEnum):
    """How an attempt ended."""

    OK = 0
    """The service answered, whatever it said."""
    FAILED = 1
    """A status that counts as failure, a malformed answer, one that broke off, none in time."""
    REFUSED = 2
    """No connection came about: not a byte was sent."""
    GIVEN_UP = 3
    """The client went away; says nothing about the service."""
    BUSY = 4
    """503 with `Retry-After`: an answer, but another replica may have a better one."""


_VERDICTS = (True, False, False, None, True)


class Replica:
    """A replica. `in_flight` counts everything under way there, of which `lasting` are streams that were answered long ago."""

    __slots__ = (
        "address", "breaker", "ended", "failed_at", "failure", "in_flight", "is_drained", "lasting", "opened_at", "refused_until",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.breaker: CircuitBreaker
        self.in_flight = 0
        self.lasting = 0
        self.is_drained = False
        self.opened_at = 0.0
        self.refused_until = 0.0
        self.ended = [0] * len(Outcome)
        """Attempts by `Outcome`."""
        self.failure = ""
        """How the last attempt that failed did so, for a person; it was at `failed_at` (seconds of the epoch)."""
        self.failed_at = 0.0


class Attempt:
    """One try at one replica, counted in until `end`; it began at `began_at` of the monotonic clock."""

    __slots__ = (
        "_is_ended",
        "_is_settled",
        "_priority",
        "_replica",
        "_ticket",
        "_time_s",
        "_took_s",
        "_upstream",
        "began_at",
    )

    def __init__(
        self,
        upstream: "Upstream",
        replica: Replica,
        ticket: int,
        began_at: float,
        time_s: float,
        priority: Priority,
    ) -> None:
        self._upstream = upstream
        self._replica = replica
        self._ticket = ticket
        self.began_at = began_at
        self._time_s = time_s
        self._priority: Priority = priority
        self._took_s = -1.0
        self._is_settled = False
        self._is_ended = False

    @property
    def address(self) -> Address:
        return self._replica.address

    def answered(self, *, lasts: bool = False) -> None:
        """The answer's head has come: what follows goes at the client's pace and is timed no more.

        `lasts` says that it may go on for ever (an event stream, a WebSocket): it went well then, and takes no part of the limit.
        """
        if self._is_settled:
            return
        now = self._upstream.clock()
        self._took_s = now - self.began_at
        if lasts:
            self._settle(Outcome.OK, now)
            self._replica.lasting += 1

    def failed(self, why: str) -> None:
        """Note for operators how it went wrong; `end` counts it."""
        self._replica.failure, self._replica.failed_at = why, time.time()

    def end(self, outcome: Outcome) -> None:
        """Count the attempt out, however it ended; only the first call counts."""
        if self._is_ended:
            return
        self._is_ended = True
        replica = self._replica
        replica.in_flight -= 1
        if self._is_settled:
            replica.lasting -= 1
            return
        now = self._upstream.clock()
        if self._took_s < 0:
            self._took_s = now - self.began_at
        self._settle(outcome, now)

    def _settle(self, outcome: Outcome, now: float) -> None:
        self._is_settled = True
        replica, limit = self._replica, self._upstream.limit
        replica.ended[outcome] += 1
        replica.breaker.settle(self._ticket, _VERDICTS[outcome], self._took_s, now)
        if outcome is Outcome.REFUSED:
            limit.cancel(self._priority)
            self._upstream.was_refused(replica, now)
        else:
            limit.end(self._took_s, self._time_s, now, is_answer=outcome is Outcome.OK, priority=self._priority)
