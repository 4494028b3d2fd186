"""Connections of the driver's pool, kept at hand between statements.

The pool makes, bounds, heals and closes them, but it spends a task and three timers each time that one goes out and back: more than the
driver needs for a statement. So what was used without a fault is used again, and goes back to the pool now and then.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import asyncpg

KEPT_S = 60.0
"""Then a connection goes back, so that the pool can close what is idle and renew what is old."""

RELEASE_TIMEOUT_S = 0.2
"""A connection whose statement was given up and that PostgreSQL does not confirm is thrown away."""


@dataclass(frozen=True, slots=True)
class Held:
    """A connection of the pool, and until when (monotonic clock) it may be kept."""

    connection: asyncpg.Connection
    until: float


class Connections:
    """Hands out the `size` connections of a pool, those used last first."""

    def __init__(self, pool: asyncpg.Pool, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._places = asyncio.Semaphore(size)
        self._kept: deque[Held] = deque()
        self._is_closing = False

    def use(self, wait_s: float) -> "Use":
        """Return a block's connection; entering it raises TimeoutError when none is free within `wait_s`, or what asyncpg raises."""
        return Use(self, wait_s)

    async def take(self, wait_s: float) -> Held:
        began_at = self._clock()
        if self._places.locked():
            async with asyncio.timeout(wait_s):
                await self._places.acquire()
        else:
            await self._places.acquire()
        try:
            while self._kept:
                held = self._kept.pop()
                if _is_open(held.connection):
                    return held
                await self._give_back(held)
            left_s = max(0.0, wait_s - (self._clock() - began_at))
            return Held(await self._pool.acquire(timeout=left_s), self._clock() + KEPT_S)
        except BaseException:
            self._places.release()
            raise

    async def give(self, held: Held, *, is_sound: bool) -> None:
        """Take a connection back; one that may be in the middle of something goes to the pool, which sees to it."""
        try:
            if is_sound and not self._is_closing:
                self._kept.append(held)
                # The one that has not been used for longest.
                held = self._kept[0]
                if held.until > self._clock():
                    return
                self._kept.popleft()
            await self._give_back(held)
        finally:
            self._places.release()

    async def _give_back(self, held: Held) -> None:
        await self._pool.release(held.connection, timeout=RELEASE_TIMEOUT_S)

    async def close(self) -> None:
        """Give back what is kept, and keep nothing from now on; closing is the pool's."""
        self._is_closing = True
        while self._kept:
            await self._give_back(self._kept.pop())


class Use:
    """A connection for as long as a block runs."""

    __slots__ = ("_connections", "_held", "_wait_s")

    def __init__(self, connections: Connections, wait_s: float) -> None:
        self._connections = connections
        self._wait_s = wait_s

    async def __aenter__(self) -> asyncpg.Connection:
        self._held = await self._connections.take(self._wait_s)
        return self._held.connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        # What PostgreSQL refuses it has finished with.
        await self._connections.give(self._held, is_sound=kind is None or issubclass(kind, asyncpg.PostgresError))


def _is_open(connection: asyncpg.Connection) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        # It ended while it was kept, and the pool has noticed.
        return False
