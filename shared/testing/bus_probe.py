"""What tests of a bus look with: a handler that collects, waiting for a condition, and a log of a test's own."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.bus.base import MESSAGE_BYTES_MAX, LogConfig, Message


class Collector:
    """A handler that keeps what it gets; `wait` returns once there are so many."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._came = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._came.set()

    @property
    def texts(self) -> list[str]:
        return [message.data.decode() for message in self.messages]

    async def wait(self, count: int, *, timeout_s: float = 10.0) -> list[Message]:
        async with asyncio.timeout(timeout_s):
            while len(self.messages) < count:
                self._came.clear()
                await self._came.wait()
        return self.messages


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 10.0) -> None:
    """Return once a condition holds that nothing announces; TimeoutError when it does not come to hold."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)


def log_config(
    word: str,
    *,
    messages_per_subject_max: int = 100,
    age_max_s: float = 60.0,
    duplicate_window_s: float = 60.0,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> LogConfig:
    """Return a log of its own for a test: `<word>.in.>` republished to `<word>.out.>`."""
    return LogConfig(
        name=word,
        subjects=(f"{word}.in.>",),
        messages_per_subject_max=messages_per_subject_max,
        age_max_s=age_max_s,
        bytes_max=4 * 1024 * 1024,
        message_bytes_max=message_bytes_max,
        duplicate_window_s=duplicate_window_s,
        republish=(f"{word}.in.>", f"{word}.out.>"),
    )
