"""A subscription's mailbox: messages wait in it, bounded, and one worker hands them to the handler in order."""

import asyncio
import contextvars
from collections import deque

import structlog

from shared.bus.base import Handler, Message
from shared.bus.throttle import Throttle

MESSAGES_MAX = 1024
STOP_WAIT_S = 5.0

_log = structlog.get_logger()


class Mailbox:
    """Bounded first-in first-out; when full the oldest message is dropped and counted in `dropped`.

    There is a task only while messages wait, so that ten thousand quiet subscriptions cost none.
    """

    def __init__(self, subject: str, handler: Handler, *, messages_max: int = MESSAGES_MAX) -> None:
        self.dropped = 0
        self._subject = subject
        self._handler = handler
        self._messages_max = messages_max
        self._waiting: deque[Message] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._overflows = Throttle()
        self._failures = Throttle()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._messages_max

    def put(self, message: Message) -> None:
        """Leave a message for the handler; after stop it is thrown away."""
        if self._closed:
            return
        if self.full:
            self._waiting.popleft()
            self.dropped += 1
            if self._overflows.due():
                _log.warning("bus_messages_dropped", subject=self._subject, dropped=self.dropped)
        self._waiting.append(message)
        if self._worker is None:
            # A fresh context: the handler must not log the ids of the request that happened to subscribe.
            self._worker = asyncio.get_running_loop().create_task(
                self._work(), name=f"bus {self._subject}", context=contextvars.Context()
            )

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._hand_over(self._waiting.popleft())
        finally:
            self._worker = None

    async def _hand_over(self, message: Message) -> None:
        try:
            await self._handler(message)
        except asyncio.CancelledError:
            worker = asyncio.current_task()
            if worker is not None and worker.cancelling():
                raise
            # Something inside the handler was cancelled, not this worker: the next message must still be handled.
            _log.warning("bus_handler_cancelled", subject=self._subject)
        except Exception:  # noqa: BLE001 - a consumer loop is an edge: one bad message must not end the subscription
            if self._failures.due():
                _log.exception("bus_handler_failed", subject=self._subject, not_logged_before=self._failures.held_back)

    async def stop(self) -> None:
        """Take nothing more, finish what waits within 5 s, throw away the rest. Idempotent; called by the handler it only closes."""
        self._closed = True
        worker = self._worker
        if worker is None or worker is asyncio.current_task():
            return
        _, late = await asyncio.wait({worker}, timeout=STOP_WAIT_S)
        if late:
            _log.warning("bus_handler_does_not_stop", subject=self._subject, waiting=len(self._waiting))
            worker.cancel()
            await asyncio.wait({worker}, timeout=1.0)
