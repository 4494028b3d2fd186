"""`Expect: 100-continue`: a refusal comes without the body, consent comes once."""

import asyncio

import pytest

from services.gateway.tests.rig import eventually, issuing
from services.gateway.tests.scripted import Wire, answer
from shared.testing.tokens import TokenMint

MIB = 1024 * 1024


async def count_body(wire: Wire) -> None:
    while True:
        request = await wire.message()
        assert "expect" not in request.names
        await wire.send(answer(b"%d" % len(request.body)))


@pytest.mark.parametrize(
    ("target", "length", "status"), [("/private/x", MIB, 401), ("/small/x", MIB, 413), ("/nowhere", MIB, 404)]
)
async def test_refusal_comes_without_a_100_and_without_the_body(serve, start, target, length, status):
    upstream = await serve()
    rig = await start(upstream)
    client = await rig.connect()
    reply = await client.ask(rig.get(target, f"Content-Length: {length}", "Expect: 100-continue", method="POST"))
    assert reply.status == status
    # Nobody could tell whether what comes next is the body or a request.
    assert await client.closed() == b""
    assert b"100 Continue" not in bytes(client.received)
    assert not upstream.wires


async def test_large_body_is_asked_for_once(serve, start):
    rig = await start(await serve(count_body))
    client = await rig.connect()
    await client.send(rig.get("/open/x", f"Content-Length: {MIB}", "Expect: 100-continue", method="POST"))
    assert (await client.head()).status == 100
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(b"a" * MIB))
        reply = await client.message()
    assert (reply.status, reply.body) == (200, b"%d" % MIB)
    assert bytes(client.received).count(b" 100 ") == 1


async def test_services_own_100_is_not_passed_on_as_a_second(serve, start):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.exactly(100_000)
        await wire.send(answer(b"done"))

    rig = await start(await serve(script))
    client = await rig.connect()
    await client.send(rig.get("/large/x", "Content-Length: 100000", "Expect: 100-continue", method="POST"))
    assert (await client.head()).status == 100
    reply = await client.ask(b"a" * 100_000)
    assert (reply.status, reply.body) == (200, b"done")


async def test_client_that_does_not_wait_is_served(serve, start):
    rig = await start(await serve(count_body))
    client = await rig.connect()
    await client.send(rig.post("/open/x", b"hello", "Expect: 100-continue"))
    head = await client.head()
    if head.status == 100:
        head = await client.head()
    assert head.status == 200
    assert await client.exactly(1) == b"5"
    assert (await client.ask(rig.post("/open/x", b"hi"))).body == b"2"


async def test_http_1_0_client_is_told_no_100(serve, start):
    rig = await start(await serve(count_body))
    client = await rig.connect()
    await client.send(b"POST /open/x HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    await eventually(lambda: rig.parts.sweeper.count == 1)
    reply = await client.ask(b"hi")
    assert (reply.status, reply.body) == (200, b"2")


async def test_refusal_by_token_comes_before_the_body_and_acceptance_after_it(serve, start, stack):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    rig = await start(await serve(count_body), fleet={"users": [issuer.address]})
    client = await rig.connect()
    head = ("Content-Length: 3", "Expect: 100-continue", f"Authorization: Bearer {mint.token()}")
    await client.send(rig.get("/private/x", *head, method="POST"))
    assert (await client.head()).status == 100
    assert (await client.ask(b"abc")).body == b"3"
