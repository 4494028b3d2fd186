"""Concurrency on the event loop: a bounded gather, and a watch that measures how late the loop is."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from services.compute.model import AsyncDemo

T = TypeVar("T")

STEP_S = 0.025
"""One wait of the demonstration: 10 of them, 5 at a time, take 50 ms."""

WATCH_EVERY_S = 0.002


async def gather_with_concurrency(limit: int, *work: Coroutine[Any, Any, T] | Callable[[], Awaitable[T]]) -> list[T]:
    """Await all of `work`, at most `limit` at a time, and return the results in the order given.

    A factory is called only when its turn comes. The first exception cancels the rest and is raised as it is; coroutines that had
    not begun are closed. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        _close(work)
        raise ValueError("the limit must be at least 1")
    results: list[T | None] = [None] * len(work)
    slots = asyncio.Semaphore(limit)

    async def one(index: int, item: Coroutine[Any, Any, T] | Callable[[], Awaitable[T]]) -> None:
        try:
            results[index] = await (item() if callable(item) else item)
        finally:
            slots.release()

    try:
        async with asyncio.TaskGroup() as group:
            for index, item in enumerate(work):
                # Taken before the task exists: so there are never more tasks than slots.
                await slots.acquire()
                group.create_task(one(index, item))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        _close(work)
    return cast(list[T], results)


def _close(work: tuple[Coroutine[Any, Any, T] | Callable[[], Awaitable[T]], ...]) -> None:
    for item in work:
        if asyncio.iscoroutine(item):
            item.close()


async def demonstrate_overlap(tasks: int, limit: int) -> AsyncDemo:
    """Run `tasks` real waits, `limit` at a time, and tell what was seen."""
    waiting, waiting_max = 0, 0

    async def step() -> float:
        nonlocal waiting, waiting_max
        waiting += 1
        waiting_max = max(waiting_max, waiting)
        began = time.perf_counter()
        await asyncio.sleep(STEP_S)
        waiting -= 1
        return time.perf_counter() - began

    started = time.perf_counter()
    steps_s = await gather_with_concurrency(limit, *[step] * tasks)
    duration_s = time.perf_counter() - started
    return AsyncDemo(
        tasks=len(steps_s),
        limit=limit,
        duration_ms=round(duration_s * 1000, 3),
        serial_ms=round(sum(steps_s) * 1000, 3),
        max_in_flight=waiting_max,
    )


@dataclass(slots=True)
class LoopLag:
    """How late the event loop came back, at worst."""

    max_s: float = 0.0


@asynccontextmanager
async def watched_loop() -> AsyncIterator[LoopLag]:
    """Measure the event loop's lag for as long as the block runs; the block's own exceptions pass unchanged."""
    found = LoopLag()
    due = time.perf_counter()

    def look() -> None:
        found.max_s = max(found.max_s, time.perf_counter() - due)

    async def watch() -> None:
        nonlocal due
        while True:
            due = time.perf_counter() + WATCH_EVERY_S
            await asyncio.sleep(WATCH_EVERY_S)
            look()

    watcher = asyncio.get_running_loop().create_task(watch(), name="loop-watch")
    try:
        yield found
    finally:
        look()  # a loop that was held all the time has not let the watcher see it
        watcher.cancel()
        await asyncio.wait([watcher])
