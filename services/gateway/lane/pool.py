"""The upstream pool: kept connections per address, newest first, bounded in number and in waiting."""

import asyncio
import time
from collections import deque
from collections.abc import Collection

from services.gateway.lane.connection import UpstreamConnection
from shared.endpoints import Address
from shared.errors import Unavailable

CONNECTIONS_MAX = 10_000
"""Per address, as many as the gateway has clients: each event stream holds one for as long as it lasts. How many requests a replica is
given at once is another matter, which its service's `in_flight_max` decides."""

WAITERS_MAX = 1024
WAIT_S_MAX = 2.0
CONNECT_TIMEOUT_S = 1.0
IDLE_S_MAX = 30.0
"""Shorter than the 75 s after which a service closes an idle connection, so that it is this side that ends it."""


class ConnectFailed(Exception):
    """Nothing took the connection; no byte of the request was sent."""


class _Host:
    """The connections of one address. `permits` counts those that exist or are being made."""

    __slots__ = ("idle", "is_retired", "permits", "waiters")

    def __init__(self) -> None:
        self.idle: list[UpstreamConnection] = []
        self.waiters: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self.permits = 0
        self.is_retired = False

    def hand_over(self, connection: UpstreamConnection | None) -> bool:
        """Give a connection, or with None the permit to make one, to whoever waits longest."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False


class Pool:
    """Connections to upstreams. Whoever acquires one gives it back with `release`, in whatever state it is."""

    def __init__(self, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._connections_max = connections_max
        self._hosts: dict[Address, _Host] = {}

    @property
    def connection_count(self) -> int:
        return sum(host.permits for host in self._hosts.values())

    def count(self, address: Address) -> dict[str, int]:
        """Return how many connections to an address are idle and how many busy, those that are being made among these."""
        host = self._hosts.get(address)
        idle = len(host.idle) if host else 0
        return {"idle": idle, "busy": host.permits - idle if host else 0}

    async def acquire(
        self,
        address: Address,
        *,
        is_fresh: bool = False,
        is_replayable: bool = True,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> UpstreamConnection:
        """Return a connection for one exchange: the idle one used last, else a new one, else the next that comes free.

        `is_fresh` takes no kept one. For a request that must not be sent twice (`is_replayable=False`) a kept connection is first asked
        whether it was closed meanwhile. Raises ConnectFailed, and Unavailable when all are busy for too long.
        """
        host = self._hosts.get(address)
        if host is None:
            host = self._hosts[address] = _Host()
        while True:
            found = None if is_fresh else self.take(address, is_replayable=is_replayable)
            if found is not None:
                return found
            if host.permits < self._connections_max:
                host.permits += 1
                break
            if host.idle:
                is_fresh = False
                continue
            handed = await self._wait(host)
            if handed is None:
                break
            # It goes through the same checks as any kept one.
            host.idle.append(handed)
            is_fresh = False
        return await self._connect(host, address, connect_timeout_s)

    def take(self, address: Address, *, is_replayable: bool) -> UpstreamConnection | None:
        """Return a kept connection, None where there is none; see acquire."""
        host = self._hosts.get(address)
        while host is not None and host.idle:
            connection = host.idle.pop()
            if connection.is_open and (is_replayable or not connection.has_unread()):
                connection.is_reused = True
                return connection
            connection.abort()
        return None

    async def _connect(self, host: _Host, address: Address, timeout_s: float) -> UpstreamConnection:
        connection = UpstreamConnection(address, self)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: connection, *address)
        except BaseException as error:
            if connection.was_made:
                # It came up at the moment its caller gave up; its end returns the permit.
                connection.abort()
            else:
                self._return_permit(host)
            if isinstance(error, OSError | TimeoutError):
                raise ConnectFailed(type(error).__name__) from error
            raise
        return connection

    async def _wait(self, host: _Host) -> UpstreamConnection | None:
        if len(host.waiters) >= WAITERS_MAX:
            raise Unavailable("too many requests wait for this service", code="upstream_saturated")
        waiter: asyncio.Future[UpstreamConnection | None] = asyncio.get_running_loop().create_future()
        host.waiters.append(waiter)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                # It was handed over at the moment its waiter gave up: it must not be lost.
                self._give_back(host, waiter.result())
            elif waiter in host.waiters:
                host.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Unavailable("this service is busy", code="upstream_saturated") from error
            raise
        finally:
            waiter.cancel()

    def release(self, connection: UpstreamConnection, *, is_spent: bool = False) -> None:
        """Take a connection back; kept only when its answer ended cleanly and `is_spent` is not said."""
        connection.is_busy = False
        host = self._hosts.get(connection.address)
        if is_spent or not connection.is_reusable or not connection.is_open or host is None or host.is_retired:
            connection.abort()
        elif host.waiters:
            self._give_back(host, connection)
        else:
            connection.idle_since = time.monotonic()
            host.idle.append(connection)

    def _give_back(self, host: _Host, connection: UpstreamConnection | None) -> None:
        if connection is None:
            self._return_permit(host)
        elif not host.hand_over(connection):
            connection.idle_since = time.monotonic()
            host.idle.append(connection)

    def on_lost(self, connection: UpstreamConnection) -> None:
        """Forget a connection that ended."""
        host = self._hosts.get(connection.address)
        if host is None:
            return
        if connection in host.idle:
            host.idle.remove(connection)
        self._return_permit(host)

    def _return_permit(self, host: _Host) -> None:
        if not host.hand_over(None):
            host.permits -= 1

    def keep_only(self, addresses: Collection[Address]) -> None:
        """Let go of addresses that are no replica's any more: idle connections now, busy ones when their exchange ends."""
        for address, host in list(self._hosts.items()):
            host.is_retired = address not in addresses
            if host.is_retired:
                for connection in list(host.idle):
                    connection.abort()
                if host.permits == 0:
                    del self._hosts[address]

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; `now` in seconds of the monotonic clock."""
        for host in self._hosts.values():
            # Used newest first, so the oldest stand at the front.
            for connection in list(host.idle):
                if now - connection.idle_since < IDLE_S_MAX:
                    break
                connection.abort()

    def close(self) -> None:
        """Close every idle connection; busy ones end with their exchanges."""
        self.keep_only(())
