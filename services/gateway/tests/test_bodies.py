"""Bodies both ways: whole, chunked, slow, early, absent."""

import asyncio
import hashlib

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Wire, answer


async def echo_body(wire: Wire) -> None:
    while True:
        request = await wire.message()
        await wire.send(
            answer(
                request.body,
                headers=[f"X-Framing: {request.get('transfer-encoding') or request.get('content-length')}"],
            )
        )


async def test_body_with_a_length_keeps_it(serve, start):
    rig = await start(await serve(echo_body))
    client = await rig.connect()
    reply = await client.ask(rig.post("/open/x", b"hello"))
    assert (reply.body, reply.get("x-framing")) == (b"hello", "5")


async def test_chunked_body_arrives_chunked(serve, start):
    rig = await start(await serve(echo_body))
    client = await rig.connect()
    reply = await client.ask(
        rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    assert (reply.body, reply.get("x-framing")) == (b"hello world", "chunked")


async def test_empty_body_with_a_length_keeps_it(serve, start):
    rig = await start(await serve(echo_body))
    client = await rig.connect()
    assert (await client.ask(rig.post("/open/x", b""))).get("x-framing") == "0"


async def test_small_body_in_pieces_reaches_the_upstream_in_one(serve, start):
    upstream = await serve(echo_body)
    rig = await start(upstream)
    client = await rig.connect()
    data = rig.post("/open/x", b"first second")
    await client.send(data[:-7])
    await eventually(lambda: rig.parts.sweeper.count == 1)
    assert not upstream.wires
    assert (await client.ask(data[-7:])).body == b"first second"


async def test_chunk_is_sent_on_before_the_next_comes(serve, start):
    upstream = await serve(echo_body)
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n")
    await eventually(lambda: b"hello" in upstream.received or bool(upstream.wires and upstream.wires[0].reader._buffer))
    assert (await client.ask(b"0\r\n\r\n")).body == b"hello"


async def test_head_of_an_open_ended_upload_goes_ahead_of_its_first_chunk(serve, start):
    async def eager(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await wire.chunk() == b"ping"
        await wire.send(b"4\r\npong\r\n")
        assert await wire.chunk() == b""
        await wire.send(b"0\r\n\r\n")

    rig = await start(await serve(eager))
    client = await rig.connect()
    assert (
        await client.ask(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST"), has_body=False)
    ).status == 200
    await client.send(b"4\r\nping\r\n")
    assert await client.chunk() == b"pong"
    await client.send(b"0\r\n\r\n")
    assert await client.chunk() == b""
    assert (await client.ask(rig.get("/live"))).status == 200


async def test_expected_continue_comes_once(serve, start):
    rig = await start(await serve(echo_body))
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Content-Length: 2", "Expect: 100-continue", method="POST"))
    assert (await client.head()).status == 100
    reply = await client.ask(b"hi")
    assert (reply.status, reply.body) == (200, b"hi")


async def test_large_bodies_both_ways_are_unchanged(serve, start):
    rig = await start(await serve(echo_body))
    client = await rig.connect()
    body = bytes(range(256)) * 20_000
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(rig.post("/large/x", body)))
        reply = await client.message()
    assert hashlib.sha256(reply.body).digest() == hashlib.sha256(body).digest()


async def test_upstream_that_reads_nothing_holds_the_client_back(serve, start):
    stopped = asyncio.Event()

    async def deaf(wire: Wire) -> None:
        await wire.head()
        # Its stream reader stops reading the socket by itself once 128 KiB wait.
        stopped.set()
        await asyncio.Event().wait()

    upstream = await serve(deaf)
    rig = await start(upstream)
    client = await rig.connect()
    client.writer.write(rig.get("/large/x", "Content-Length: 90000000", method="POST") + b"a")
    await stopped.wait()
    sent, is_held = 0, False
    while not is_held:
        client.writer.write(b"a" * 262_144)
        sent += 262_144
        try:
            async with asyncio.timeout(0.3):
                await client.writer.drain()
        except TimeoutError:
            is_held = True
    # Kernel buffers on both hops hold a few megabytes; the gateway itself two small buffers.
    assert sent < 24_000_000
    upstream.wires[0].abort()


async def test_client_that_reads_nothing_holds_the_upstream_back(serve, start):
    sent = 0
    held = asyncio.Event()

    async def flood(wire: Wire) -> None:
        nonlocal sent
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n")
        while True:
            wire.writer.write(b"a" * 262_144)
            try:
                async with asyncio.timeout(0.3):
                    await wire.writer.drain()
            except TimeoutError:
                held.set()
                await asyncio.Event().wait()
            sent += 262_144

    rig = await start(await serve(flood))
    client = await rig.connect(receive_buffer_bytes=1024)
    await client.send(rig.get("/large/x"))
    async with asyncio.timeout(10):
        await held.wait()
    assert sent < 24_000_000


async def test_answer_before_the_upload_ends_reaches_the_client(serve, start):
    async def hasty(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer(b"no", status="403 Forbidden"))
        await wire.closed()

    upstream = await serve(hasty)
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.get("/large/x", "Content-Length: 200000", method="POST") + b"a" * 100_000)
    head = await client.head()
    assert (head.status, head.get("connection")) == (403, "close")
    assert await client.exactly(2) == b"no"
    await client.send(b"a" * 100_000)
    assert await client.closed() == b""
    await eventually(lambda: rig.parts.pool.connection_count == 0)


@pytest.mark.parametrize(
    ("status", "headers", "method"),
    [
        ("200 OK", ["Content-Length: 100"], "HEAD"),
        ("200 OK", ["Transfer-Encoding: chunked"], "HEAD"),
        ("204 No Content", [], "GET"),
        ("304 Not Modified", ['ETag: "a"'], "GET"),
        ("304 Not Modified", ["Content-Length: 100"], "GET"),
    ],
)
async def test_answer_without_a_body_does_not_wait_for_one(serve, start, status, headers, method):
    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(answer(b"", status=status, headers=headers, has_length=False))

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(2):
        reply = await client.ask(rig.get("/open/x", method=method), has_body=False)
        assert reply.start.startswith(f"HTTP/1.1 {status[:3]}")
    assert reply.get("content-length") == ("100" if method == "HEAD" and "100" in headers[0] else "")
    assert len(upstream.wires) == 1


async def test_answer_that_ends_with_its_connection_is_whole(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    rig = await start(await serve(script))
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x"))).body == b"all of it"
    assert rig.parts.pool.connection_count == 0


async def test_interim_answers_are_skipped(serve, start):
    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + answer(b"final")
            )

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(2):
        reply = await client.ask(rig.get("/open/x"))
        assert (reply.status, reply.body, reply.get("link")) == (200, b"final", "")
    assert len(upstream.wires) == 1
