"""How large a head may grow: refused at the limit while it is still coming in, not when it is whole."""

import asyncio
import json

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Message, Wire


@pytest.fixture
async def rig(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    rig.upstream = upstream
    return rig


async def dribble(rig, client: Wire, begin: bytes, part: bytes, parts: int) -> tuple[Message, int]:
    """Send a head that never ends in parts until it is refused; return the refusal and how many bytes had been sent by then."""
    sent = len(begin)
    await client.send(begin)
    connection = next(iter(rig.parts.clients.connections))
    for _ in range(parts):
        before = connection.head_bytes
        await client.send(part)
        sent += len(part)
        # Each part is read by itself, as from a slow client.
        await eventually(lambda before=before: connection.is_deaf or connection.head_bytes > before)
        if connection.is_deaf:
            break
    reply = await client.message()
    assert reply.get("connection") == "close"
    assert await client.closed() == b""
    assert not rig.upstream.wires
    return reply, sent


async def test_one_field_that_grows_is_431_at_32_kib(rig):
    reply, sent = await dribble(rig, await rig.connect(), rig.get("/open/x")[:-2] + b"X-A: ", b"a" * 1000, 200)
    assert (reply.status, json.loads(reply.body)["code"]) == (431, "head_too_large")
    assert 32 * 1024 < sent <= 34 * 1024


async def test_number_of_fields_that_grows_is_431_at_100(rig):
    reply, sent = await dribble(rig, await rig.connect(), rig.get("/open/x")[:-2], b"X-A: 1\r\n", 300)
    assert reply.status == 431
    assert sent < 102 * 8 + 100


async def test_target_that_grows_is_414_at_8_kib(rig):
    reply, sent = await dribble(rig, await rig.connect(), b"GET /open/", b"a" * 500, 200)
    assert (reply.status, json.loads(reply.body)["code"]) == (414, "uri_too_long")
    assert 8 * 1024 < sent <= 9 * 1024


async def test_head_that_grows_behind_a_good_request_is_refused_behind_its_answer(rig):
    client = await rig.connect()
    await client.send(rig.get("/open/first") + rig.get("/open/x")[:-2] + b"X-A: ")
    assert (await client.message()).body == b"/open/first"
    for _ in range(40):
        client.writer.write(b"a" * 1000)
    assert (await client.message()).status == 431
    assert await client.closed() == b""


async def test_large_pipelined_requests_are_no_large_head(rig):
    client = await rig.connect()
    requests = [rig.get(f"/open/{number}", f"X-A: {'a' * 20_000}") for number in range(6)]
    data = b"".join(requests)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(data))
        assert [(await client.message()).body for _ in requests] == [b"/open/%d" % number for number in range(6)]


async def test_head_of_exactly_the_limit_is_served(rig):
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x", f"X-A: {'a' * 32_000}"))).status == 200
    assert (await client.ask(rig.get("/open/x", *(f"X-{number}: 1" for number in range(99))))).status == 200
    assert (await client.ask(rig.get("/open/" + "a" * 8_186))).status == 200


async def test_unasked_body_of_a_refused_request_is_not_read_for_ever(rig):
    client = await rig.connect()
    await client.send(rig.get("/nowhere", "Transfer-Encoding: chunked", method="POST"))
    assert (await client.message()).status == 404
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    sent = 0
    try:
        while not client.reader.at_eof() and sent < 1000:
            await client.send(chunk)
            sent += 1
    except ConnectionError:
        pass  # It was closed under the sending.
    assert sent < 1000
