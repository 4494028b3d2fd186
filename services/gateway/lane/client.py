"""The client's side of an exchange: its body on the way up, its going away, and refusals that it lives to read."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.types import Receive, Send

from services.gateway.lane.call import Call
from services.gateway.lane.head import RequestHead
from shared.errors import PROBLEM_MEDIA_TYPE, BodyTooLarge, Problem
from shared.problems import body_of

KEPT_BYTES_MAX = 64 * 1024
"""Bodies declared up to this are read whole before the upstream is asked: a slow client then holds no connection of it."""

FIRST_CHUNK_S_MAX = 0.05

DISCARDED_BYTES_MAX = 1024 * 1024
"""A declared body up to this is left to the server to read and drop, and the client's connection lives on."""


class ClientGone(Exception):
    """The client closed its connection before it was answered."""


class Sink(Protocol):
    """Where a body goes."""

    @property
    def is_open(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...


class ClientSide:
    """Owns an exchange's `receive`: only one reader at a time, first the body, then the wait for the client to go away.

    `on_end` is called once, from a task of its own, with ClientGone, BodyTooLarge or what the server found wrong with the body.
    """

    __slots__ = ("_head", "_limit", "_on_end", "_receive", "_received", "_task", "is_finished", "is_reading")

    def __init__(self, receive: Receive, head: RequestHead, *, limit: int, on_end: Callable[[Exception], None]) -> None:
        self._receive = receive
        self._head = head
        self._limit = limit
        self._on_end = on_end
        self._received = 0
        self._task: asyncio.Task[None] | None = None
        self.is_finished = not head.has_body
        """Whether the whole body has been read."""
        self.is_reading = False
        """Whether the exchange waits for the client rather than for an upstream."""

    async def first_part(self) -> bytes:
        """Return what to send with the head: a small body whole, else what has come of it so far.

        Raises ClientGone, BodyTooLarge and what the server found wrong with the body.
        """
        if not self._head.has_body:
            return b""
        self.is_reading = True
        parts = [await (self._next_soon() if self._head.is_chunked else self._next())]
        if self._head.length is not None and self._head.length <= KEPT_BYTES_MAX:
            while not self.is_finished:
                parts.append(await self._next())
        self.is_reading = False
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _next_soon(self) -> bytes:
        # Most chunked bodies come whole with their head; a client that waits for the answer first must not wait for ever.
        try:
            async with asyncio.timeout(FIRST_CHUNK_S_MAX):
                return await self._next()
        except TimeoutError:
            return b""

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data: bytes = message.get("body", b"")
        self._received += len(data)
        if self._received > self._limit:
            raise BodyTooLarge(f"a body may have at most {self._limit} bytes")
        self.is_finished = not message.get("more_body", False)
        return data

    def pump(self, sink: Sink) -> None:
        """Send the rest of the body to the upstream as it comes, then watch for the client's going away."""
        self._task = asyncio.get_running_loop().create_task(self._pump(sink), name="gateway-upload")

    def watch(self) -> None:
        """Watch for the client's going away, unless that is done already."""
        if self._task is None and self.is_finished:
            self._task = asyncio.get_running_loop().create_task(self._watch(), name="gateway-watch")

    async def _pump(self, sink: Sink) -> None:
        try:
            while not self.is_finished:
                self.is_reading = True
                data = await self._next()
                self.is_reading = False
                if not sink.is_open:
                    # It answered without reading on, or broke; the exchange sees which.
                    self.is_finished = False
                    return
                sink.write(frame(data, is_last=self.is_finished) if self._head.is_chunked else data)
                await sink.drain()
        except (Problem, ClientGone) as error:
            self._on_end(error)
            return
        await self._watch()

    async def _watch(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._on_end(ClientGone())
                return

    async def stop(self) -> None:
        """End the reading; afterwards `receive` is free. The server drops what still comes of a body, within bounds."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))


def frame(data: bytes, *, is_last: bool) -> bytes:
    """Return a part of a body in the chunked coding (RFC 9112, section 7.1)."""
    chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
    return chunk + b"0\r\n\r\n" if is_last else chunk


async def refuse(problem: Problem, call: Call, *, send: Send, is_read: bool = False) -> None:
    """Answer with a problem and leave the connection in a state that both sides agree on.

    `is_read` says that the whole body has been received.
    """
    head = call.head
    body = body_of(problem, call.path)
    call.status = problem.status
    call.body_bytes = len(body)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
        *call.added,
    ]
    # After an ambiguous head nobody knows where the next request begins.
    is_agreed = problem.status != 400 and (is_read or not head.has_body or _is_discardable(head))
    if not is_agreed or call.draining.is_set():
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_discardable(head: RequestHead) -> bool:
    # A client that waits for 100 may answer a refusal by not sending its body: only closing says where the next request begins.
    return not head.expects_continue and head.length is not None and head.length <= DISCARDED_BYTES_MAX
