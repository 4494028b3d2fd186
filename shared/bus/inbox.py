"""The inbox of a NATS connection: one subscription on which every answer we await comes in."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from shared.bus.base import BusUnavailable

WAITING_MAX = 10_000
"""So many answers may be awaited at once; the next request is refused."""


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[list[Msg]]
    is_last: Callable[[Msg], bool]
    messages: list[Msg] = field(default_factory=list)


class Inbox:
    """The driver's own request() leaves callers waiting when the connection breaks, and cannot take several answers; this does both.

    All waiting is failed by `fail_all` the moment the connection is given up.
    """

    def __init__(self) -> None:
        self._prefix = f"_INBOX.{os.urandom(11).hex()}."
        self._waiting: dict[str, _Waiting] = {}
        self._serial = 0

    @property
    def pattern(self) -> str:
        return self._prefix + "*"

    async def take(self, message: Msg) -> None:
        """Give an answer to the one who waits for it; late ones are thrown away."""
        waiting = self._waiting.get(message.subject)
        if waiting is None or waiting.future.done():
            return
        waiting.messages.append(message)
        if waiting.is_last(message):
            waiting.future.set_result(waiting.messages)

    def fail_all(self) -> None:
        """End every waiting with BusUnavailable."""
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(BusUnavailable("the connection to the bus was lost"))

    def expect(self, is_last: Callable[[Msg], bool]) -> "Expected":
        """Return a context in which answers to its `reply` subject are collected until `is_last` says so."""
        return Expected(self, is_last)

    def add(self, is_last: Callable[[Msg], bool]) -> tuple[str, asyncio.Future[list[Msg]]]:
        if len(self._waiting) >= WAITING_MAX:
            raise BusUnavailable("too many requests await their answer")
        self._serial += 1
        reply = f"{self._prefix}{self._serial}"
        future: asyncio.Future[list[Msg]] = asyncio.get_running_loop().create_future()
        self._waiting[reply] = _Waiting(future, is_last)
        return reply, future

    def remove(self, reply: str) -> None:
        waiting = self._waiting.pop(reply, None)
        if waiting is not None:
            # A cancelled future takes no late answer and warns nobody about an error it may hold.
            waiting.future.cancel()


class Expected:
    """`with inbox.expect(...) as expected:` publish with `expected.reply`, then await `answers(timeout_s)`."""

    def __init__(self, inbox: Inbox, is_last: Callable[[Msg], bool]) -> None:
        self._inbox = inbox
        self._is_last = is_last
        self.reply = ""

    def __enter__(self) -> "Expected":
        self.reply, self._future = self._inbox.add(self._is_last)
        return self

    async def answers(self, timeout_s: float) -> list[Msg]:
        """Await all answers. Raises BusUnavailable past the time, or when the connection is lost meanwhile."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._future
        except TimeoutError as error:
            raise BusUnavailable("the bus did not answer in time") from error

    def __exit__(self, *_: object) -> None:
        self._inbox.remove(self.reply)
