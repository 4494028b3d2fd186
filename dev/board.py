"""Where every unit's state stands: others wait on it, list it, and are told of each change."""

import asyncio
from collections.abc import Callable
from typing import Literal

State = Literal["waiting", "starting", "ready", "draining", "failed", "stopped"]
Kind = Literal["infra", "service"]


class Board:
    """A counter of changes that tasks can wait on; every waiter looks again after each change."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call the function after every change; it must be quick and must not raise."""
        self._listeners.append(listener)

    def change(self) -> None:
        """Say that some state is different now."""
        for listener in self._listeners:
            listener()
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once the condition holds."""
        while not holds():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
