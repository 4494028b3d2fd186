"""How soon news travels through the gateway: an event to the client, the client's going away to the service.

A busy machine may hold up any single one; so each is measured several times and the middle one counts.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Wire

pytestmark = pytest.mark.slow  # measures time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT_S_MAX = 0.02
GONE_S_MAX = 0.1
TIMES = 7


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_each_event_arrives_within_20_ms(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD)
        while True:
            await asyncio.sleep(0.1)
            await wire.send(chunk(b"data: %d\n\n" % time.monotonic_ns()))

    rig = await start(await serve(script))
    client = await rig.connect()
    head = await client.ask(rig.get("/stream/x", "Accept-Encoding: gzip"), has_body=False)
    assert (head.get("content-encoding"), head.get("content-length")) == ("", "")
    took_s = []
    for _ in range(TIMES):
        event = await client.chunk()
        assert event.count(b"data: ") == 1
        took_s.append((time.monotonic_ns() - int(event.split()[1])) / 1e9)
    assert statistics.median(took_s) < EVENT_S_MAX, took_s


async def measure(
    serve, start, leave: Callable[..., Awaitable[None]], script: Callable[[Wire], Awaitable[None]]
) -> float:
    """Return the median time from the client's leaving to the service's connection being closed."""
    closed_at: list[float] = []

    async def watched(wire: Wire) -> None:
        await script(wire)
        await wire.closed()
        closed_at.append(time.monotonic())

    upstream = await serve(watched)
    rig = await start(upstream)
    took_s = []
    for count in range(TIMES):
        client = await rig.connect()
        await leave(
            rig, client, lambda count=count: len(upstream.wires) > count and bool(upstream.wires[count].received)
        )
        left_at = time.monotonic()
        client.abort()
        await eventually(lambda count=count: len(closed_at) > count)
        took_s.append(closed_at[count] - left_at)
    assert rig.parts.sweeper.count == 0
    assert 'status="499"' in rig.app.runtime.metrics.exposition().decode() or script is not read_head
    return statistics.median(took_s)


async def read_head(wire: Wire) -> None:
    await wire.head()


async def test_client_that_leaves_before_the_answer_is_told_within_100_ms(serve, start):
    async def leave(rig, client: Wire, has_arrived) -> None:
        await client.send(rig.get("/open/x"))
        await eventually(has_arrived)

    assert await measure(serve, start, leave, read_head) < GONE_S_MAX


async def test_client_that_leaves_in_the_middle_of_an_answer_is_told_within_100_ms(serve, start):
    async def begin(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")

    async def leave(rig, client: Wire, _) -> None:
        await client.ask(rig.get("/open/x"), has_body=False)
        await client.exactly(4)

    assert await measure(serve, start, leave, begin) < GONE_S_MAX


async def test_client_that_leaves_in_the_middle_of_its_upload_is_told_within_100_ms(serve, start):
    async def leave(rig, client: Wire, has_arrived) -> None:
        await client.send(rig.get("/large/x", "Content-Length: 200000", method="POST") + b"a" * 100_000)
        await eventually(has_arrived)

    assert await measure(serve, start, leave, read_head) < GONE_S_MAX


async def test_client_that_leaves_a_stream_is_told_within_100_ms(serve, start):
    async def begin(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD + chunk(b"data: 1\n\n"))

    async def leave(rig, client: Wire, _) -> None:
        await client.ask(rig.get("/stream/x"), has_body=False)
        await client.chunk()

    assert await measure(serve, start, leave, begin) < GONE_S_MAX


async def test_half_closed_client_has_left(serve, start):
    """A FIN is all that a leaving client sends; none that shuts down its sending side and still waits is served here."""
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.closed()
        gone.set()

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    client.writer.write_eof()
    async with asyncio.timeout(1):
        await gone.wait()
