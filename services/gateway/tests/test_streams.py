"""Streams: every part as it comes, no total deadline, an end to idle ones."""

import asyncio

import pytest

from services.gateway.model import ServicePolicy
from services.gateway.tests.rig import ROUTES, eventually
from services.gateway.tests.scripted import Wire, answer

pytestmark = pytest.mark.slow  # waits for streams to go idle

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(number: int) -> bytes:
    data = f"data: {number}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_event_arrives_before_the_next_is_sent(serve, start):
    arrived = asyncio.Semaphore(0)

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD)
        for number in range(5):
            await wire.send(event(number))
            async with asyncio.timeout(2):
                await arrived.acquire()
        await wire.send(b"0\r\n\r\n")

    rig = await start(await serve(script))
    client = await rig.connect()
    head = await client.ask(rig.get("/stream/x"), has_body=False)
    assert head.get("content-type") == "text/event-stream"
    for number in range(5):
        assert await client.chunk() == f"data: {number}\n\n".encode()
        arrived.release()
    assert await client.chunk() == b""


async def test_a_replica_carries_more_event_streams_than_it_is_given_requests_at_once(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD + event(1))
        await wire.closed()

    patient = ROUTES.replace("timeout_s = 0.5\nidle_timeout_s = 0.4", "timeout_s = 15\nidle_timeout_s = 60")
    assert patient != ROUTES
    rig = await start(await serve(script), config=patient)
    count = ServicePolicy().in_flight_max + 44
    clients = [await rig.connect() for _ in range(count)]
    for client in clients:
        assert (await client.ask(rig.get("/stream/x"), has_body=False)).status == 200
    for client in clients:
        assert await client.chunk() == b"data: 1\n\n"
    assert rig.parts.pool.connection_count == count


async def test_stream_outlives_the_time_for_its_head(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD)
        for number in range(7):
            await wire.send(event(number))
            await asyncio.sleep(0.1)
        await wire.send(b"0\r\n\r\n")

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.ask(rig.get("/stream/x"), has_body=False)
    for _ in range(7):
        assert await client.chunk()
    assert await client.chunk() == b""


async def test_idle_stream_is_cut(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD + event(1))
        await wire.closed()

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/stream/x"))
    raw = await client.closed()
    assert b"data: 1" in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_client_that_leaves_a_stream_ends_it_upstream(serve, start):
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(HEAD + event(1))
        await wire.closed()
        gone.set()

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.ask(rig.get("/stream/x"), has_body=False)
    await client.chunk()
    client.abort()
    async with asyncio.timeout(0.3):
        await gone.wait()


async def test_draining_cuts_event_streams_and_lets_answers_finish(serve, start):
    release = asyncio.Event()

    async def script(wire: Wire) -> None:
        request = await wire.head()
        if request.target == "/open/slow":
            await release.wait()
            await wire.send(answer(b"finished"))
            return
        await wire.send(HEAD + event(1))
        await wire.closed()

    upstream = await serve(script)
    rig = await start(upstream)
    stream, plain = await rig.connect(), await rig.connect()
    await stream.ask(rig.get("/stream/x"), has_body=False)
    await stream.chunk()
    await plain.send(rig.get("/open/slow"))
    await eventually(lambda: len(upstream.wires) == 2)
    rig.app.runtime.readiness.draining.set()
    assert not (await stream.closed()).endswith(b"0\r\n\r\n")
    release.set()
    assert (await plain.message()).body == b"finished"
