"""The sweeper: one clock for every exchange under way, where a timer each would cost more than the rest of the bookkeeping."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from services.gateway.lane.pool import Pool

TICK_S = 0.05
"""How late a deadline may be noticed."""

POOL_TICKS = 20


class Swept(Protocol):
    """What is told the time."""

    def on_tick(self, now: float) -> None:
        """Look at the clock (monotonic seconds) and act on what is due; must not block or raise."""


class Sweeper:
    """Calls `on_tick` of all that was added, every 50 ms.

    `is_closing` turns true when the drain's waiting is over: then no new client comes, and what never ends by itself has to be ended.
    """

    def __init__(self, pool: Pool, always: Iterable[Swept] = ()) -> None:
        """`always` are told the time as long as this runs, without being counted."""
        self._pool = pool
        self._always = tuple(always)
        self._closes_at: float | None = None
        self._swept: set[Swept] = set()
        self.is_closing = False

    @property
    def count(self) -> int:
        return len(self._swept)

    def __iter__(self) -> Iterator[Swept]:
        return iter(tuple(self._swept))

    def add(self, item: Swept) -> None:
        self._swept.add(item)

    def discard(self, item: Swept) -> None:
        self._swept.discard(item)

    async def run(self, draining: asyncio.Event, *, drain_wait_s: float) -> None:
        """Tick for ever; the service runs it as a background task. `is_closing` follows `draining` by `drain_wait_s`."""
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._see_drain(draining, now + drain_wait_s, now)
            for item in (*self._swept, *self._always):
                item.on_tick(now)
            ticks += 1
            if ticks % POOL_TICKS == 0:
                self._pool.sweep(now)

    def _see_drain(self, draining: asyncio.Event, closes_at: float, now: float) -> None:
        if self._closes_at is None and draining.is_set():
            self._closes_at = closes_at
        self.is_closing = self._closes_at is not None and now >= self._closes_at
