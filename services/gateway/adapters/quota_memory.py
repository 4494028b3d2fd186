"""The buckets of one process, for tests and the single replica."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from services.gateway.domain.gcra import settle
from services.gateway.domain.quota import Ask, Grant, QuotaUnavailable

KEYS_MAX = 100_000


class MemoryQuotaStore:
    """Keeps at most `keys_max` buckets that are not full; one more makes it forget the one asked for least recently."""

    is_available = True

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, keys_max: int = KEYS_MAX) -> None:
        self._clock = clock
        self._keys_max = keys_max
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._is_closed = False

    async def lease(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        if self._is_closed:
            raise QuotaUnavailable("the store is closed")
        return [self._settle(ask) for ask in asks]

    def _settle(self, ask: Ask) -> Grant:
        now = self._clock()
        granted, full_in_s = settle(ask.rate, self._full_at.pop(ask.key, now) - now, ask.demand)
        if full_in_s > 0:
            self._full_at[ask.key] = now + full_in_s
            self._make_room(now)
        return Grant(granted, full_in_s)

    def _make_room(self, now: float) -> None:
        # A full bucket needs no entry; looking at two old ones for each new one keeps those from piling up.
        for key in [key for key, _ in zip(self._full_at, range(2), strict=False)]:
            if self._full_at[key] <= now:
                del self._full_at[key]
        if len(self._full_at) > self._keys_max:
            self._full_at.popitem(last=False)

    async def close(self) -> None:
        self._is_closed = True
        self._full_at.clear()
