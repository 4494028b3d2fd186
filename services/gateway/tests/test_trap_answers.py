"""Answers that would poison the next one: the client never sees bytes that are not its own, and the connection is never used again."""

import asyncio

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Wire, answer

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.fixture
def poisoned(serve, start):
    """An upstream whose first connection answers with `reply` and whose others answer with their target."""

    async def run(reply: bytes, *, is_closing: bool = False):
        async def script(wire: Wire) -> None:
            is_first = len(upstream.wires) == 1
            while True:
                request = await wire.message()
                if is_first:
                    await wire.send(reply)
                    if is_closing:
                        return
                    await wire.closed()
                await wire.send(answer(request.target.encode()))

        upstream = await serve(script)
        rig = await start(upstream)
        return upstream, rig

    return run


async def next_is_clean(upstream, rig) -> None:
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/next"))).body == b"/open/next"
    assert len(upstream.wires) == 2
    assert b"poison" not in bytes(client.received)


UNUSABLE = {
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunks and length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 30\r\n\r\nok",
    "twice the same length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "folded line": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
    "line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "null byte": b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
    "split by a bare return": b"HTTP/1.1 200 OK\r\nX-A: a\rSet-Cookie: b=1\r\nContent-Length: 2\r\n\r\nok",
    "upgrade that nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "other coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("reply", UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_ambiguous_answer_is_502_and_its_connection_is_not_used_again(poisoned, reply):
    upstream, rig = await poisoned(reply + POISON)
    client = await rig.connect()
    found = await client.ask(rig.get("/open/x"))
    assert (found.status, found.get("content-type")) == (502, "application/problem+json")
    assert not found.all("set-cookie")
    await next_is_clean(upstream, rig)


BROKEN = {
    "shorter than its length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart of it",
    "chunks without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\npart of it\r\n",
    "chunk cut short": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\npart of it",
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_answer_that_breaks_off_is_never_made_whole(poisoned, reply, method):
    upstream, rig = await poisoned(reply, is_closing=True)
    client = await rig.connect()
    await client.send(rig.get("/open/x", method=method) if method == "GET" else rig.post("/open/x", b"a"))
    head = await client.head()
    assert head.status == 200
    rest = await client.closed()
    assert b"part of it" in rest
    assert not rest.endswith(b"0\r\n\r\n")
    await next_is_clean(upstream, rig)


MALFORMED = {
    "chunk size with a mark": b"0x5\r\nwrong\r\n0\r\n\r\n",
    "chunk longer than its size": b"2\r\nwrong\r\n0\r\n\r\n",
    "chunk size that is none": b"\r\nwrong\r\n0\r\n\r\n",
    "line feeds": b"5\nwrong\n0\n\n",
}


@pytest.mark.parametrize("chunk", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_chunk_of_an_answer_cuts_it(serve, start, chunk):
    async def script(wire: Wire) -> None:
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n")
        await seen.wait()
        await wire.send(chunk + POISON)
        await wire.closed()

    seen = asyncio.Event()
    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await client.head()
    assert await client.chunk() == b"good"
    seen.set()
    rest = await client.closed()
    assert not rest.endswith(b"0\r\n\r\n")
    assert b"poison" not in rest
    await eventually(lambda: rig.parts.pool.connection_count == 0)


EXTRA = {
    "another answer": answer(b"ok") + POISON,
    "bytes after a length": answer(b"ok") + b"more",
    "bytes after the last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + POISON,
    "body of a 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison",
    "body of a 204 without a length": b"HTTP/1.1 204 No Content\r\n\r\n" + POISON,
    "body of a 304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison",
    "chunks of a 304": b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n6\r\npoison\r\n0\r\n\r\n",
    "interim answer without an end": answer(b"ok") + b"HTTP/1.1 103 Early Hints\r\n\r\n",
}


@pytest.mark.parametrize("reply", EXTRA.values(), ids=EXTRA.keys())
async def test_bytes_behind_an_answer_reach_nobody(poisoned, reply):
    upstream, rig = await poisoned(reply)
    client = await rig.connect()
    found = await client.ask(rig.get("/open/x"), has_body=reply.startswith(b"HTTP/1.1 200"))
    assert found.status in (200, 204, 304)
    assert not found.all("content-length") or found.status == 200
    # The client's own connection goes on, and its next answer is the next answer.
    again = await client.ask(rig.get("/open/again"))
    assert again.body == b"/open/again"
    assert len(upstream.wires) == 2
    assert b"poison" not in bytes(client.received)


async def test_reset_content_has_no_body(poisoned):
    _, rig = await poisoned(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", is_closing=True)
    client = await rig.connect()
    found = await client.ask(rig.get("/open/x"))
    assert (found.status, found.get("content-length")) == (205, "0")


@pytest.mark.parametrize("has_length", [True, False])
async def test_http_1_0_client_gets_no_chunks(serve, start, has_length):
    async def script(wire: Wire) -> None:
        await wire.head()
        if has_length:
            await wire.send(answer(b"all of it"))
        else:
            await wire.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n6\r\n of it\r\n0\r\n\r\n"
            )

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(b"GET /open/x HTTP/1.0\r\n\r\n")
    head = await client.head()
    assert (head.status, head.get("connection"), head.get("transfer-encoding")) == (200, "close", "")
    assert await client.closed() == b"all of it"


async def test_answer_to_http_1_0_that_breaks_off_is_a_reset_and_no_end(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n")
        await seen.wait()

    seen = asyncio.Event()
    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(b"GET /open/x HTTP/1.0\r\n\r\n")
    await client.head()
    assert await client.exactly(3) == b"all"
    seen.set()
    with pytest.raises(ConnectionResetError):
        await client.some()


async def test_answer_to_head_with_chunks_ends_with_its_head(serve, start):
    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n")

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(2):
        head = await client.ask(rig.get("/open/x", method="HEAD"), has_body=False)
        assert (head.status, head.get("x-a")) == (200, "1")
    assert len(upstream.wires) == 1


async def test_problem_answered_to_head_has_no_body(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    head = await client.ask(rig.get("/nowhere", method="HEAD"), has_body=False)
    assert head.status == 404
    assert (await client.ask(rig.get("/open/x"))).body == b"/open/x"
    await client.send(b"HEAD /open/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert (await client.head()).status == 400
    assert await client.closed() == b""
    client = await rig.connect()
    await client.send(b"HEAD /open/x#a HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.head()).status == 400
    assert await client.closed() == b""


async def test_location_passes_unchanged(serve, start):
    headers = ["Location: http://elsewhere/x?a=%2F", "Content-Location: ../y", "Set-Cookie: a=1; Path=/; Domain=a.b"]

    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer(b"", status="302 Found", headers=headers))

    rig = await start(await serve(script))
    client = await rig.connect()
    reply = await client.ask(rig.get("/open/x"))
    assert reply.get("location") == "http://elsewhere/x?a=%2F"
    assert reply.get("content-location") == "../y"
    assert reply.get("set-cookie") == "a=1; Path=/; Domain=a.b"
