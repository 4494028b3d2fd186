"""Small servers on real sockets, each with one way to answer; for tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Place:
    """Where a server listens; `answer` may be changed while it runs."""

    port: int
    answer: Answer

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Place]:
    """Serve on a free port; at the end every connection is cut."""
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await place.answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the prober has left, or the test is over
        finally:
            connections.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    place = Place(server.sockets[0].getsockname()[1], answer)
    try:
        yield place
    finally:
        server.close()
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections)


def http(status: int, body: bytes, *headers: str) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""])
        writer.write(head.encode() + body)
        await writer.drain()
        await reader.read()

    return answer


def raw(data: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(data)
        await writer.drain()

    return answer


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept and say nothing."""
    await asyncio.Event().wait()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin well and never stop."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, so that no single read takes long."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


READY = http(200, b'{"state":"ready","checks":{}}')
NOT_READY = http(503, b'{"state":"not_ready","checks":{"database":"failing"}}')
DRAINING = http(503, b'{"state":"draining","checks":{}}')
