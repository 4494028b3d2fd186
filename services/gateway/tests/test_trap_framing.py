"""Where a request begins and ends: what two readers could read differently is refused, and nothing behind it is a request."""

import asyncio
import json

import pytest

from services.gateway.lane.server import UNWANTED_BYTES_MAX
from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Message, Wire, answer

BEHIND = b"GET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def rig(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    rig.upstream = upstream
    return rig


async def refusal(rig, data: bytes, status: int = 400) -> Message:
    """Send bytes and a request behind them: one problem comes, then the end, and nothing has reached the upstream."""
    client = await rig.connect()
    reply = await client.ask(data + BEHIND)
    assert reply.status == status, reply
    assert reply.get("connection") == "close"
    assert reply.get("content-type") == "application/problem+json"
    document = json.loads(reply.body)
    assert document["request_id"] == reply.get("x-request-id")
    assert await client.closed() == b""
    assert not rig.upstream.wires
    # It has its line and its count like any other request.
    assert f'status="{status}"' in rig.app.runtime.metrics.exposition().decode()
    return reply


HEADS = {
    "length and chunks": "Content-Length: 3\r\nTransfer-Encoding: chunked",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: 3",
    "two lengths": "Content-Length: 3\r\nContent-Length: 4",
    "twice the same length": "Content-Length: 3\r\nContent-Length: 3",
    "list of lengths": "Content-Length: 3, 3",
    "signed length": "Content-Length: +3",
    "negative length": "Content-Length: -3",
    "hexadecimal length": "Content-Length: 0x3",
    "length in words": "Content-Length: three",
    "empty length": "Content-Length:",
    "length beyond 64 bits": "Content-Length: 18446744073709551619",
    "unknown coding": "Transfer-Encoding: xchunked",
    "chunks first": "Transfer-Encoding: chunked, identity",
    "identity coding": "Transfer-Encoding: identity",
    "compressed chunks": "Transfer-Encoding: gzip, chunked",
    "compressed chunks in two lines": "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    "chunks twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "empty coding": "Transfer-Encoding:",
    "coding behind a control byte": "Transfer-Encoding: \x0bchunked",
    "folded line": "X-A: 1\r\n 2",
    "folded coding": "Transfer-Encoding:\r\n chunked",
    "space before colon": "Content-Length : 3",
    "tab before colon": "Content-Length\t: 3",
    "space in a name": "X A: 1",
    "no colon": "X-A",
    "no name": ": 1",
    "null byte": "X-A: a\x00b",
    "bare return": "X-A: a\rContent-Length: 3",
    "bare line feed": "X-A: a\nContent-Length: 3",
    "control byte": "X-A: a\x01b",
    "delete byte": "X-A: a\x7fb",
    "two hosts": "Host: b",
    "the same host twice": "Host: a",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
async def test_ambiguous_head_is_400_and_closes(rig, head):
    await refusal(rig, f"POST /open/x HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode("latin-1"))


LINES = {
    "line feeds": b"GET /open/x HTTP/1.1\nHost: a\n\n",
    "line feed at the end": b"GET /open/x HTTP/1.1\r\nHost: a\r\n\n",
    "line feed behind the first line": b"GET /open/x HTTP/1.1\nHost: a\r\n\r\n",
    "space before the first field": b"GET /open/x HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n",
    "no host": b"GET /open/x HTTP/1.1\r\n\r\n",
    "empty host": b"GET /open/x HTTP/1.1\r\nHost:\r\n\r\n",
    "host with a path": b"GET /open/x HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "two spaces and no version": b"GET  /open/x\r\nHost: a\r\n\r\n",
    "tab in the first line": b"GET\t/open/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "space behind the version": b"GET /open/x HTTP/1.1 \r\nHost: a\r\n\r\n",
    "version that is none": b"GET /open/x HTTP/1.2\r\nHost: a\r\n\r\n",
    "bytes of another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "chunks with HTTP/1.0": b"POST /open/x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", LINES.values(), ids=LINES.keys())
async def test_malformed_request_is_400_and_closes(rig, data):
    status = 505 if data.startswith(b"GET  /open/x\r\n") else 400
    await refusal(rig, data, status)


@pytest.mark.parametrize("version", ["0.9", "2.0"])
async def test_other_version_is_505_and_closes(rig, version):
    await refusal(rig, f"GET /open/x HTTP/{version}\r\nHost: a\r\n\r\n".encode(), 505)


CHUNKS = {
    "hexadecimal mark": b"0x3\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "negative": b"-3\r\nabc\r\n0\r\n\r\n",
    "empty size": b"\r\nabc\r\n0\r\n\r\n",
    "space behind the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nabc\r\n0\r\n\r\n",
    "beyond 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "line feed behind the size": b"3\nabc\r\n0\r\n\r\n",
    "line feed behind the data": b"3\r\nabc\n0\r\n\r\n",
    "data longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "malformed trailer": b"3\r\nabc\r\n0\r\nX A: 1\r\n\r\n",
    "length in a trailer": b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
}


@pytest.mark.parametrize("body", CHUNKS.values(), ids=CHUNKS.keys())
async def test_malformed_chunk_is_400_and_closes(rig, body):
    await refusal(rig, rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + body)


async def test_malformed_chunk_behind_a_good_one_never_ends_the_upload(serve, start):
    upstream = await serve(lambda wire: _hold(wire))
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
    await eventually(lambda: b"abc" in upstream.received)
    reply = await client.ask(b"0x3\r\nabc\r\n0\r\n\r\n" + BEHIND)
    assert (reply.status, reply.get("connection")) == (400, "close")
    assert await client.closed() == b""
    # The service sees its connection break, not the end of a body.
    await eventually(lambda: rig.parts.pool.connection_count == 0)
    assert not upstream.received.endswith(b"0\r\n\r\n")


async def _hold(wire: Wire) -> None:
    await wire.closed()


async def test_trailers_never_become_headers(serve, start):
    async def reveal(wire: Wire) -> None:
        while True:
            request = await wire.message()
            await wire.send(answer(repr(sorted(request.names)).encode()))

    upstream = await serve(reveal)
    rig = await start(upstream)
    client = await rig.connect()
    trailers = b"Authorization: Bearer forged\r\nX-Auth-Sub: admin\r\nX-Late: 1\r\nHost: b\r\n"
    for body in (b"0\r\n", b"3\r\nabc\r\n0\r\n"):
        head = rig.get("/open/x", "Transfer-Encoding: chunked", method="POST")
        reply = await client.ask(head + body + trailers + b"\r\n")
        assert reply.status == 200
        assert b"authorization" not in reply.body
        assert b"late" not in reply.body
    assert b"forged" not in upstream.received
    # Nor one that comes after the head was passed on.
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
    await eventually(lambda: upstream.received.count(b"POST ") == 3)
    reply = await client.ask(b"0\r\n" + trailers + b"\r\n")
    assert reply.status == 200
    assert b"late" not in upstream.received.lower()


async def test_endless_trailers_are_431(rig):
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n")
    await eventually(lambda: bool(rig.upstream.wires))
    for number in range(20):
        await client.send(b"X-Filler-%d: %b\r\n" % (number, b"a" * 2000))
    reply = await client.message()
    assert (reply.status, reply.get("connection")) == (431, "close")
    assert await client.closed() == b""


async def test_endless_chunk_extension_is_431(rig):
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n3;a=")
    await eventually(lambda: bool(rig.upstream.wires))
    for _ in range(20):
        await client.send(b"a" * 2000)
    assert (await client.message()).status == 431


async def test_chunks_of_one_byte_each_in_their_own_segment_are_fine(serve, start):
    async def echo(wire: Wire) -> None:
        request = await wire.message()
        await wire.send(answer(request.body))

    rig = await start(await serve(echo))
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST"))
    for _ in range(3000):
        client.writer.write(b"1\r\na\r\n")
    reply = await client.ask(b"0\r\n\r\n")
    assert (reply.status, reply.body) == (200, b"a" * 3000)


@pytest.mark.parametrize("body", [b"Content-Length: 40\r\n\r\n" + BEHIND, b"\r\n"])
async def test_upgrade_that_is_not_made_is_served_with_its_body(serve, start, body):
    """As Java's client asks for h2c with its first request, also where that has a body."""

    async def echo(wire: Wire) -> None:
        while True:
            request = await wire.message()
            await wire.send(answer(request.target.encode() + b" " + request.body))

    upstream = await serve(echo)
    rig = await start(upstream)
    client = await rig.connect()
    head = b"POST /open/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    expected = body.partition(b"\r\n\r\n")[2]
    await client.send(head + body + rig.get("/open/next"))
    assert (await client.message()).body == b"/open/x " + expected
    assert (await client.message()).body == b"/open/next "
    assert b"upgrade" not in upstream.received.lower()


async def test_upgrade_that_is_not_made_is_served_with_its_chunks(serve, start):
    async def echo(wire: Wire) -> None:
        while True:
            await wire.send(answer((await wire.message()).body))

    rig = await start(await serve(echo))
    client = await rig.connect()
    head = rig.get("/open/x", "Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked", method="POST")
    await client.send(head + b"3\r\nab")
    await client.send(b"c\r\n0\r\nX-Auth-Sub: admin\r\n\r\n")
    assert (await client.message()).body == b"abc"
    assert (await client.ask(rig.post("/open/x", b"next"))).body == b"next"


async def test_refusal_waits_for_the_answer_before_it(serve, start):
    refused = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.message()
        await refused.wait()
        await wire.send(answer(b"first"))

    rig = await start(await serve(slow))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await client.send(b"BROKEN\x00\r\n\r\n" + BEHIND)
    await eventually(lambda: any(connection.is_deaf for connection in rig.parts.clients.connections))
    refused.set()
    assert (await client.message()).body == b"first"
    reply = await client.message()
    assert (reply.status, json.loads(reply.body)["code"]) == (400, "malformed_request")
    assert await client.closed() == b""


async def test_too_many_pipelined_requests_are_answered_in_part_and_the_connection_ends(rig):
    client = await rig.connect()
    await client.send(b"".join(rig.get(f"/open/{number}") for number in range(1000)))
    raw = await client.closed()
    answered = [int(part) for part in raw.split(b"/open/")[1:] for part in [part.split(b"HTTP")[0]]]
    assert answered == list(range(17))
    assert raw.count(b"connection: close") == 1


async def test_client_that_leaves_with_requests_waiting_ends_the_one_under_way(serve, start):
    upstream = await serve(_hold)
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.get("/open/x") + rig.get("/open/y"))
    await eventually(lambda: bool(upstream.wires))
    client.abort()
    await eventually(lambda: rig.parts.pool.connection_count == 0)
    assert b"/open/y" not in upstream.received


async def test_what_follows_a_last_request_is_no_request(rig):
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Connection: close") + BEHIND)
    raw = await client.closed()
    assert raw.count(b"HTTP/1.1 200") == 1
    assert b"smuggled" not in rig.upstream.received


async def test_request_behind_a_body_that_nobody_wants_to_its_end_is_not_begun(rig):
    client = await rig.connect()
    await client.send(rig.get("/nowhere", "Transfer-Encoding: chunked", method="POST"))
    assert (await client.message()).status == 404
    connection = next(iter(rig.parts.clients.connections))
    await client.send(b"%x\r\n%b\r\n" % (UNWANTED_BYTES_MAX, b"a" * UNWANTED_BYTES_MAX))
    await eventually(lambda: connection.unwanted_bytes == UNWANTED_BYTES_MAX)
    # The read that goes over the limit holds the next request too.
    await client.send(b"1\r\na\r\n0\r\n\r\n" + BEHIND)
    assert await client.closed() == b""
    await eventually(lambda: not rig.state.tasks)
    assert not rig.upstream.wires


async def test_request_that_has_begun_to_come_when_the_server_stops_is_answered(rig):
    client, idle = await rig.connect(), await rig.connect()
    data = rig.get("/open/x")
    await client.send(data[:20])
    connections = list(rig.parts.clients.connections)
    await eventually(lambda: len(connections) == 2 and any(each.is_in_head for each in connections))
    rig.app.runtime.readiness.draining.set()
    for connection in connections:
        connection.shutdown()
    assert await idle.closed() == b""
    reply = await client.ask(data[20:])
    assert (reply.body, reply.get("connection")) == (b"/open/x", "close")
    assert await client.closed() == b""
