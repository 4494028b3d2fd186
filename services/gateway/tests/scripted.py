"""An upstream that does what a test says, byte by byte, and remembers every byte it was sent."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

WAIT_S = 5.0

Pairs = list[tuple[str, str]]


@dataclass
class Message:
    """A parsed HTTP message; `start` is the first line, names are in lower case."""

    start: str
    headers: Pairs
    body: bytes = b""

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str:
        found = self.all(name)
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else ""

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.headers}


class Wire:
    """One end of a TCP connection that speaks HTTP/1.1 by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()

    async def _until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(WAIT_S):
            data = await self.reader.readuntil(mark)
        self.received += data
        return data

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            data = await self.reader.readexactly(count)
        self.received += data
        return data

    async def some(self) -> bytes:
        """What comes next, b"" at the end."""
        async with asyncio.timeout(WAIT_S):
            data = await self.reader.read(65536)
        self.received += data
        return data

    async def head(self) -> Message:
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        pairs = [line.split(": ", 1) for line in lines[1:]]
        return Message(lines[0], [(name.lower(), value) for name, value in pairs])

    async def chunk(self) -> bytes:
        size = int(await self._until(b"\r\n"), 16)
        return (await self.exactly(size + 2))[:-2]

    async def message(self, *, has_body: bool = True) -> Message:
        """A whole request or answer."""
        found = await self.head()
        if not has_body:
            return found
        if found.get("transfer-encoding") == "chunked":
            parts = []
            while part := await self.chunk():
                parts.append(part)
            found.body = b"".join(parts)
        elif length := found.get("content-length"):
            found.body = await self.exactly(int(length))
        return found

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            await self.writer.drain()

    async def closed(self) -> bytes:
        """Wait until the other end is gone and return what came before that."""
        rest = bytearray()
        try:
            while data := await self.some():
                rest += data
        except ConnectionError:
            pass
        return bytes(rest)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()

    async def ask(self, data: bytes, *, has_body: bool = True) -> Message:
        await self.send(data)
        return await self.message(has_body=has_body)


Script = Callable[[Wire], Awaitable[None]]


def answer(
    body: bytes = b"ok", *, status: str = "200 OK", headers: Iterable[str] = (), has_length: bool = True
) -> bytes:
    """The bytes of an answer."""
    lines = [f"HTTP/1.1 {status}", *headers]
    if has_length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def echo_target(wire: Wire) -> None:
    """Answer every request with its target."""
    while True:
        request = await wire.message()
        await wire.send(answer(request.target.encode()))


@dataclass
class Upstream:
    """A server on a free port that runs `script` for each connection; `wires` are the connections it took."""

    script: Script = echo_target
    wires: list[Wire] = field(default_factory=list)
    port: int = 0
    failures: list[BaseException] = field(default_factory=list)

    async def __aenter__(self) -> "Upstream":
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.script(wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The gateway closed: the end of every script that serves for ever.
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - reported at the end of the test
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        for wire in self.wires:
            wire.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        assert not self.failures, self.failures

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def received(self) -> bytes:
        """Every byte of every connection."""
        return b"".join(bytes(wire.received) for wire in self.wires)
