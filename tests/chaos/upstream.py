"""A service as a process that behaves as badly as a test wants: `python -m tests.chaos.upstream PORT`.

Told how by lines of JSON on its standard input, each answered with a line that says how many requests have come; ends with that input.
"""

import asyncio
import json
import sys
from dataclasses import dataclass, field

BACKLOG = 2048
"""Connections that the system takes while the process stands still."""


@dataclass(slots=True)
class Behaviour:
    """What it does with a request: `status` after `time_s`, `slots` at a time (0: any number), each in its turn; or cut it off."""

    status: int = 200
    time_s: float = 0.0
    slots: int = 0
    resets: bool = False


@dataclass(slots=True)
class Service:
    """Work goes on when nobody waits for it any more, as that of a database does: that is what makes an overload last."""

    tasks: asyncio.TaskGroup
    behaviour: Behaviour = field(default_factory=Behaviour)
    places: asyncio.Semaphore | None = None
    arrived: int = 0

    def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.places = asyncio.Semaphore(behaviour.slots) if behaviour.slots else None

    def begin(self, transport: asyncio.Transport) -> None:
        self.arrived += 1
        self.tasks.create_task(self._answer(transport))

    async def _answer(self, transport: asyncio.Transport) -> None:
        behaviour, places = self.behaviour, self.places
        if behaviour.resets:
            transport.abort()
            return
        if places is None:
            await asyncio.sleep(behaviour.time_s)
        else:
            async with places:
                await asyncio.sleep(behaviour.time_s)
        if not transport.is_closing():
            transport.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % behaviour.status)


class Connection(asyncio.Protocol):
    """One request after the other, whose bodies are as long as they say."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(rest) < (int(lengths[0].partition(b":")[2]) if lengths else 0):
            return
        # The gateway sends nothing more before it has the answer.
        self._data = b""
        self._service.begin(self._transport)


async def serve(port: int) -> None:
    """Serve until nobody is left to say how."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        service = Service(tasks)
        server = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=BACKLOG)
        while line := await orders.readline():
            if order := json.loads(line):
                service.behave(Behaviour(**order))
            sys.stdout.write(f"{service.arrived}\n")
            sys.stdout.flush()
        server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
