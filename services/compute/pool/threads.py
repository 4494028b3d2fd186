"""The thread pool: blocking calls off the event loop, with a bound on threads and on waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from shared import context
from shared.deadline import bounded_s
from shared.errors import DeadlineExceeded, Unavailable

QUEUE_FACTOR = 4
"""Calls in the pool, running and waiting together, per thread."""

R = TypeVar("R")


class ThreadPool:
    """A bounded pool. A thread cannot be stopped: a call whose caller has left keeps its place until it returns."""

    def __init__(self, *, threads: int) -> None:
        self.threads = threads
        self.calls_max = threads * QUEUE_FACTOR
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="blocking")
        self._calls = 0

    @property
    def calls(self) -> int:
        """Calls that run or wait."""
        return self._calls

    def submit(self, function: Callable[..., R], arguments: tuple[object, ...]) -> "asyncio.Future[R]":
        """Begin a call. Raises Unavailable when the pool is full."""
        if self._calls >= self.calls_max:
            raise Unavailable("all threads are busy and the queue is full", code="threads_full")
        loop = asyncio.get_running_loop()
        call: Future[R] = self._executor.submit(function, *arguments)
        self._calls += 1
        call.add_done_callback(lambda _: self._leave(loop))
        return asyncio.wrap_future(call)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():  # a call may outlive its service by moments
            loop.call_soon_threadsafe(self._forget)

    def _forget(self) -> None:
        self._calls -= 1

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


async def run_in_thread_pool(
    function: Callable[..., R], *arguments: object, pool: ThreadPool, timeout_s: float = 10.0
) -> R:
    """Run a blocking function in the thread pool until the request's deadline, at most `timeout_s`.

    Raises Unavailable when the pool is full and DeadlineExceeded when the deadline comes first.
    """
    call = pool.submit(function, arguments)
    try:
        async with asyncio.timeout(bounded_s(context.deadline(), timeout_s)):
            return await call
    except TimeoutError as error:
        if call.done() and not call.cancelled():
            raise  # the function's own
        raise DeadlineExceeded("the blocking call was not done by the deadline") from error
