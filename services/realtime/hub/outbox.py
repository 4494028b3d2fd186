"""An outbox: what waits for one listener, bounded by number and bytes, emptied by that listener's writer alone."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """First in, first out. Putting never waits: a fan-out must not stand still for one slow reader."""

    __slots__ = ("_bytes", "_bytes_max", "_ended", "_items", "_items_max", "_woken")

    def __init__(self, *, items_max: int, bytes_max: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._items_max = items_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._ended = False
        self._woken = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, *, size_bytes: int) -> bool:
        """Add an item; False when it does not fit any more. After `end` items are thrown away."""
        if self._ended:
            return True
        if len(self._items) >= self._items_max or self._bytes + size_bytes > self._bytes_max:
            return False
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        self._woken.set()
        return True

    def end(self, *, discard: bool) -> None:
        """Take no more; with `discard` also forget what waits."""
        self._ended = True
        if discard:
            self._items.clear()
            self._bytes = 0
        self._woken.set()

    async def take(self) -> T | None:
        """Return the oldest item, waiting for one; None when it has ended and nothing waits."""
        while not self._items:
            if self._ended:
                return None
            self._woken.clear()
            await self._woken.wait()
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        return item
