"""Retries: what may be asked again, how soon, and how much of it, so that repeats never become the load that keeps a service down."""

from collections.abc import Callable

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Sending one twice does what sending it once does (RFC 9110, section 9.2.2)."""

BACKOFF_BASE_S = 0.025
BACKOFF_S_MAX = 0.5
"""A person waits behind every retry; a service that needs longer is the breaker's business."""

ALLOWANCE = 3
"""Retries that no request has paid for, once: of the first few requests of a quiet service, too, one may be repeated."""

RESERVE_MAX = 64
"""What a good time may save up: enough to repeat what was under way at a replica that dies."""

_UNIT = 1000


def may_repeat(method: str, *, has_idempotency_key: bool) -> bool:
    """Return whether a request that may have reached the service can be sent again."""
    return has_idempotency_key or method in IDEMPOTENT


def backoff_s(attempt: int, random: Callable[[], float]) -> float:
    """Return the seconds to wait after the attempt of that number (from 1); `random` gives a number in [0, 1).

    "Full jitter" (AWS architecture blog, Exponential Backoff And Jitter, 2015): anything between nothing and a limit that doubles,
    which spreads those who failed together better than a fixed part with some jitter on it.
    """
    return random() * min(BACKOFF_S_MAX, BACKOFF_BASE_S * float(2 ** min(attempt, 16)))


class RetryBudget:
    """Every request deposits `share` of a retry, every retry withdraws one.

    So over any run retries <= share * requests + `allowance`, whatever fails: with 0.1 a dead service sees 1.1 times its usual load.
    Saved is at most `reserve_max`. The method is that of Finagle's and Envoy's retry budgets, in whole thousandths, since tenths
    added up as floats never make one.
    """

    __slots__ = ("_reserve", "_reserve_max", "_share")

    def __init__(self, share: float, *, allowance: int = ALLOWANCE, reserve_max: int = RESERVE_MAX) -> None:
        self._share = int(share * _UNIT + 1e-6)
        self._reserve_max = max(allowance, reserve_max) * _UNIT
        self._reserve = allowance * _UNIT

    @property
    def left(self) -> float:
        """Retries that could be made now."""
        return self._reserve / _UNIT

    def deposit(self) -> None:
        """Count one request."""
        reserve = self._reserve + self._share
        self._reserve = reserve if reserve < self._reserve_max else self._reserve_max

    def withdraw(self) -> bool:
        """Take one retry; False where there is none."""
        if self._reserve < _UNIT:
            return False
        self._reserve -= _UNIT
        return True
