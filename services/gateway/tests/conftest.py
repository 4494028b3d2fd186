"""Fixtures of the gateway's tests: scripted upstreams and the real gateway in front of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.gateway.tests.rig import Rig, gateway
from services.gateway.tests.scripted import Script, Upstream, echo_target


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    # The loop that serves in production; its transports differ from asyncio's in the moments that matter here.
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # uvloop logs what a signal handler raises and goes on, so the usual timeout would never end a test that hangs.
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(20, method="thread"))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as found:
        yield found


@pytest.fixture
def serve(stack: AsyncExitStack) -> Callable[..., Awaitable[Upstream]]:
    """Start a scripted upstream."""

    async def start(script: Script = echo_target, port: int = 0) -> Upstream:
        return await stack.enter_async_context(Upstream(script, port=port))

    return start


@pytest.fixture
def unused_address() -> Iterator[tuple[str, int]]:
    """An address where nothing listens, and nothing else of the test comes to: it is taken, and refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host, port = taken.getsockname()
        yield host, port


@pytest.fixture(params=["direct", pytest.param("asgi", marks=pytest.mark.slow)])
def lane(request: pytest.FixtureRequest) -> str:
    """Both lanes must do the same to every request."""
    return str(request.param)


@pytest.fixture
def start(stack: AsyncExitStack, tmp_path: Path, lane: str) -> Callable[..., Awaitable[Rig]]:
    """Start the gateway in front of the given upstreams, all replicas of the service `open`."""

    async def run(*upstreams: Upstream, fleet: dict[str, list[str]] | None = None, **settings: Any) -> Rig:
        known = {"open": [upstream.address for upstream in upstreams], **(fleet or {})}
        return await stack.enter_async_context(gateway(tmp_path, known, **{"lane": lane, **settings}))

    return run
