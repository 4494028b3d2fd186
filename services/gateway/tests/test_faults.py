"""Upstreams that fail: each fault has its answer, and no connection that saw one is used again."""

import asyncio
import json

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Upstream, Wire, answer, echo_target


async def problem_of(client: Wire, data: bytes) -> tuple[int, str]:
    reply = await client.ask(data)
    assert reply.get("content-type") == "application/problem+json"
    return reply.status, json.loads(reply.body)["code"]


async def silent(wire: Wire) -> None:
    await wire.closed()


async def test_upstream_that_never_answers_is_504_in_time(serve, start):
    upstream = await serve(silent)
    rig = await start(upstream)
    client = await rig.connect()
    before = asyncio.get_running_loop().time()
    assert await problem_of(client, rig.get("/hasty/x")) == (504, "deadline_exceeded")
    # The loop's clock counts whole milliseconds.
    assert 0.199 <= asyncio.get_running_loop().time() - before < 2
    # It is told at once, and the client's connection lives on.
    assert b"GET /hasty/x" in await upstream.wires[0].closed() or bytes(upstream.wires[0].received)
    assert (await client.ask(rig.get("/live"))).status == 200


async def test_deadline_in_the_middle_of_an_answer_cuts_it(serve, start):
    async def half(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await wire.closed()

    rig = await start(await serve(half))
    client = await rig.connect()
    await client.send(rig.get("/hasty/x"))
    raw = await client.closed()
    assert b"4\r\nhalf\r\n" in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_body_that_does_not_arrive_in_time_is_408(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    client = await rig.connect()
    assert await problem_of(client, rig.post("/hasty/x", b"abcdef")[:-3]) == (408, "request_timeout")
    assert not upstream.wires


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\n folded\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\x16\x03\x01 not HTTP",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nX-A: 1\r\n\r\n" * 3000,
    ],
)
async def test_malformed_answer_is_502_and_its_connection_ends(serve, start, reply):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(reply)
        await wire.closed()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    assert await problem_of(client, rig.get("/open/x")) == (502, "bad_gateway")
    await eventually(lambda: rig.parts.pool.connection_count == 0)


async def test_bytes_after_an_answer_end_its_connection(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer(b"ok") + answer(b"poison"))
        await wire.closed()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(2):
        assert (await client.ask(rig.get("/open/x"))).body == b"ok"
    assert len(upstream.wires) == 2


async def test_body_after_an_answer_to_head_ends_its_connection(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer(b"stray"))
        await wire.closed()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(2):
        assert (await client.ask(rig.get("/open/x", method="HEAD"), has_body=False)).status == 200
    assert len(upstream.wires) == 2


async def test_unasked_bytes_on_an_idle_connection_end_it(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer(b"ok"))
        await wire.head()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x"))).body == b"ok"
    await upstream.wires[0].send(answer(b"poison"))
    await eventually(lambda: rig.parts.pool.connection_count == 0)
    assert (await client.ask(rig.get("/open/x"))).body == b"ok"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
async def test_short_answer_is_never_given_a_false_end(serve, start, reply):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(reply)

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    raw = await client.closed()
    assert b"half" in raw
    assert not raw.endswith(b"0\r\n\r\n")


async def test_answer_that_breaks_off_in_its_head_is_502(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-")

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    assert await problem_of(client, rig.get("/open/x")) == (502, "bad_gateway")
    assert len(upstream.wires) == 1


async def warm(serve, start, *, second: str = "closes"):
    """An upstream whose first connection answers once and closes when it is used again."""

    async def script(wire: Wire) -> None:
        await wire.message()
        await wire.send(answer(b"first"))
        if len(upstream.wires) == 1:
            await wire.message()
            return
        await echo_target(wire)

    upstream: Upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/warm"))).body == b"first"
    return upstream, rig, client


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_idempotent_request_is_replayed_once_when_a_kept_connection_closes(serve, start, method):
    upstream, rig, client = await warm(serve, start)
    reply = await client.ask(rig.post("/open/again", b"body", method=method))
    assert (reply.status, len(upstream.wires)) == (200, 2)
    assert upstream.received.count(f"{method} /open/again".encode()) == 2


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_other_request_is_never_sent_twice(serve, start, method):
    upstream, rig, client = await warm(serve, start)
    assert await problem_of(client, rig.post("/open/again", b"body", method=method)) == (502, "bad_gateway")
    assert upstream.received.count(f"{method} /open/again".encode()) == 1


async def test_post_takes_no_kept_connection_that_was_closed_meanwhile(serve, start):
    async def once(wire: Wire) -> None:
        request = await wire.message()
        await wire.send(answer(request.target.encode()))

    upstream = await serve(once)
    rig = await start(upstream)
    client = await rig.connect()
    for number in range(20):
        # No pause: the close is often still unread in the kernel when the next request takes the connection.
        assert (await client.ask(rig.post(f"/open/{number}", b"body"))).body == f"/open/{number}".encode()


async def test_fresh_connection_that_closes_is_502_without_a_replay(serve, start):
    async def script(wire: Wire) -> None:
        await wire.message()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    assert await problem_of(client, rig.get("/open/x")) == (502, "bad_gateway")
    assert len(upstream.wires) == 1


async def test_large_upload_is_not_replayed(serve, start):
    upstream, rig, client = await warm(serve, start)
    status, code = await problem_of(client, rig.post("/large/again", b"a" * 70_000))
    assert (status, code) == (502, "bad_gateway")
    assert len(upstream.wires) == 1


async def test_client_that_goes_away_before_the_answer_ends_the_upstream_call(serve, start):
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        asked.set()
        await wire.closed()
        gone.set()

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await asked.wait()
    client.abort()
    async with asyncio.timeout(2):
        await gone.wait()
    await eventually(lambda: rig.parts.sweeper.count == 0)
    text = rig.app.runtime.metrics.exposition().decode()
    assert 'requests_total{method="GET",route="/open/*",status="499"} 1.0' in text


async def test_client_that_goes_away_in_mid_upload_ends_the_upstream_call(serve, start):
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.closed()
        gone.set()

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.post("/large/x", b"a" * 200_000)[:-50_000])
    await eventually(lambda: bool(upstream.wires))
    client.abort()
    async with asyncio.timeout(2):
        await gone.wait()


async def test_pipelined_requests_are_answered_in_order(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    await client.send(b"".join(rig.get(f"/open/{number}") for number in range(5)))
    assert [(await client.message()).body for _ in range(5)] == [f"/open/{number}".encode() for number in range(5)]
