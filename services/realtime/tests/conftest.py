"""Replicas of the real application on real sockets, over memory or real NATS, and clients to talk to them."""

import asyncio
import contextlib
import itertools
import json
import secrets
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from services.realtime.app import create
from services.realtime.hub.hub import Hub
from services.realtime.settings import RealtimeSettings
from shared.ids import new_id
from shared.revocation import RevokedTokens
from shared.serve import Server, config_of, listen
from shared.testing.tokens import TokenMint

WAIT_S = 10.0
"""Longer than the keeper takes to find what nothing tells about."""


async def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Wait for a condition that nothing tells about."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


class QuietServer(Server):
    """The service's server inside a test: signals stay with pytest, and it looks more often whether it is to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await eventually(lambda: self.should_exit, within_s=60)


class Chatter:
    """A chat client; `until` skips frames of other types, `ask` leaves them for later."""

    def __init__(self, socket: ClientConnection, user: str) -> None:
        self.socket = socket
        self.user = user
        self._ids = itertools.count(1)
        self._skipped: deque[dict[str, Any]] = deque()

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def next(self) -> dict[str, Any]:
        return self._skipped.popleft() if self._skipped else await self._receive()

    async def _receive(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
            return frame

    async def until(self, kind: str) -> dict[str, Any]:
        while (frame := await self.next())["type"] != kind:
            pass
        return frame

    async def ask(self, **frame: Any) -> dict[str, Any]:
        """Send with an id and return the reply's `ok`, or the whole error frame."""
        frame_id = next(self._ids)
        await self.send(id=frame_id, **frame)
        while (answer := await self._receive()).get("id") != frame_id:
            self._skipped.append(answer)
        ok: dict[str, Any] = answer["ok"] if answer["type"] == "reply" else answer
        return ok

    async def say(self, room: str, content: str) -> dict[str, Any]:
        return await self.ask(type="message", room=room, content=content)

    async def contents(self, count: int) -> list[str]:
        return [(await self.until("message"))["content"] for _ in range(count)]

    async def close_code(self) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(15):
                while True:
                    await self.socket.recv()
        return self.socket.close_code


@dataclass
class Replica:
    server: QuietServer
    port: int
    mint: TokenMint
    hub: Hub
    revoked: RevokedTokens

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/chat"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drain(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    @asynccontextmanager
    async def raw(self, *, headers: dict[str, str] | None = None, query: str = "", **more: Any) -> AsyncIterator[Any]:
        async with connect(
            self.url + query, additional_headers=headers, proxy=None, open_timeout=WAIT_S, close_timeout=1, **more
        ) as opened:
            yield opened

    @asynccontextmanager
    async def chatter(self, user: str = "", *, token: str = "") -> AsyncIterator[Chatter]:
        """A client that is welcome already."""
        user = user or new_id()
        headers = {"Authorization": f"Bearer {token or self.mint.token(user)}"}
        async with self.raw(headers=headers, subprotocols=[Subprotocol("rt.v1.json")]) as opened:
            chatter = Chatter(opened, user)
            await chatter.until("welcome")
            yield chatter

    @asynccontextmanager
    async def events(self, query: str = "", **headers: str) -> AsyncIterator["Events"]:
        """An event stream that has begun."""
        async with (
            httpx2.AsyncClient(trust_env=False, verify=False, timeout=WAIT_S) as client,
            client.stream(
                "GET", f"{self.http}/sse/stream{query}", headers={**self.mint.bearer(new_id()), **headers}
            ) as response,
        ):
            assert response.status_code == 200, await response.aread()
            found = Events(response)
            await found.block()
            yield found


@dataclass
class Events:
    """Reads the blocks of an event stream."""

    response: httpx2.Response
    _lines: Any = None
    comments: list[str] = field(default_factory=list)

    async def rest(self) -> None:
        """Read to the end of the stream."""
        with contextlib.suppress(StopAsyncIteration):
            while True:
                await self.block()

    async def block(self) -> dict[str, str]:
        """Return the fields of the next block, empty for one of comments only; StopAsyncIteration at the end."""
        if self._lines is None:
            self._lines = self.response.aiter_lines()
        fields: dict[str, str] = {}
        async with asyncio.timeout(WAIT_S):
            while line := await anext(self._lines):
                name, _, value = line.partition(":")
                if not name:
                    self.comments.append(value.strip())
                else:
                    fields[name] = value.strip()
        return fields

    async def next(self) -> dict[str, str]:
        while "event" not in (fields := await self.block()):
            pass
        return fields

    async def contents(self, count: int) -> list[str]:
        return [json.loads((await self.next())["data"])["content"] for _ in range(count)]


@asynccontextmanager
async def serving(nats_url: str, mint: TokenMint, **settings: Any) -> AsyncIterator[Replica]:
    """Run one replica for as long as the block lasts."""
    app = create(RealtimeSettings(environment="test", nats_url=nats_url, **{"drain_wait_s": 0, **settings}), keys=mint)
    server = QuietServer(config_of(app), app)
    listener = listen("127.0.0.1", 0)
    # Small, so that a client that does not read is felt after kilobytes, not after what the kernel would take for it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
    with contextlib.closing(listener):
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            await eventually(lambda: server.started)
            try:
                parts = app.fastapi.state.parts
                yield Replica(server, listener.getsockname()[1], mint, parts.hub, parts.verifier.revoked)
            finally:
                server.should_exit = True


Start = Callable[..., Awaitable[Replica]]


@pytest.fixture
def mint() -> TokenMint:
    return TokenMint()


@pytest.fixture(params=["memory", "nats"])
def bus_url(request: pytest.FixtureRequest) -> str:
    """Both buses, for what goes from replica to replica."""
    if request.param == "memory":
        return f"memory://{secrets.token_hex(4)}"
    url: str = request.getfixturevalue("nats_url")
    return url


@asynccontextmanager
async def starter(bus_url: str, mint: TokenMint) -> AsyncIterator[Start]:
    """Yield a function that starts replicas on one bus; they all stop together."""
    async with AsyncExitStack() as stack:
        started: list[Replica] = []

        async def start_one(**settings: Any) -> Replica:
            block: AbstractAsyncContextManager[Replica] = serving(bus_url, mint, **settings)
            started.append(await stack.enter_async_context(block))
            return started[-1]

        yield start_one
        for replica in started:
            replica.server.should_exit = True


@pytest.fixture
async def start(mint: TokenMint) -> AsyncIterator[Start]:
    """Start replicas on a memory bus of their own."""
    async with starter(f"memory://{secrets.token_hex(4)}", mint) as found:
        yield found


@pytest.fixture
async def start_on_each_bus(bus_url: str, mint: TokenMint) -> AsyncIterator[Start]:
    """Start replicas on a memory bus, then the same test on NATS."""
    async with starter(bus_url, mint) as found:
        yield found


@pytest.fixture
async def pair(start_on_each_bus: Start) -> tuple[Replica, Replica]:
    """Two replicas on one bus, of each kind."""
    return await start_on_each_bus(), await start_on_each_bus()


@pytest.fixture
def room() -> str:
    """A room of one's own: the log of a shared server remembers."""
    return f"room-{secrets.token_hex(4)}"
