"""What is asked again at another replica, and what the client gets as it is."""

import pytest

from services.gateway.tests.rig import ROUTES
from services.gateway.tests.scripted import Script, Upstream, Wire, answer
from shared.breaker import State

REQUESTS = 30
"""More than the breaker needs to see."""

ENOUGH = """
[services.open]
retry_share = 1
"""
"""Every request may be repeated once, so that what is not repeated has another reason."""

LATER = answer(b"busy", status="503 Service Unavailable", headers=["Retry-After: 7"])
DOWN = answer(b"down", status="503 Service Unavailable")
BAD = answer(b"bad", status="502 Bad Gateway")


def always(data: bytes) -> Script:
    async def script(wire: Wire) -> None:
        while True:
            await wire.message()
            await wire.send(data)

    return script


def asked(upstream: Upstream) -> int:
    return upstream.received.count(b" /open/x HTTP/1.1")


@pytest.mark.parametrize("data", [LATER, BAD], ids=["503 with Retry-After", "502"])
async def test_get_is_answered_by_another_replica(serve, start, data):
    bad, good = await serve(always(data)), await serve()
    rig = await start(bad, good, config=ROUTES + ENOUGH)
    client = await rig.connect()
    for _ in range(REQUESTS):
        assert (await client.ask(rig.get("/open/x"))).status == 200
    assert asked(bad) > 0
    assert asked(good) == REQUESTS


async def test_503_that_says_nothing_of_later_is_the_answer(serve, start):
    replicas = [await serve(always(DOWN)), await serve(always(DOWN))]
    rig = await start(*replicas, config=ROUTES + ENOUGH)
    client = await rig.connect()
    for _ in range(REQUESTS):
        reply = await client.ask(rig.get("/open/x"))
        assert (reply.status, reply.body) == (503, b"down")
    assert sum(asked(replica) for replica in replicas) == REQUESTS


async def test_post_to_a_busy_replica_is_never_sent_twice(serve, start):
    replicas = [await serve(always(LATER)), await serve(always(LATER))]
    rig = await start(*replicas, config=ROUTES + ENOUGH)
    client = await rig.connect()
    for _ in range(REQUESTS):
        reply = await client.ask(rig.post("/open/x", b"body"))
        assert (reply.status, reply.body, reply.get("retry-after")) == (503, b"busy", "7")
    assert sum(asked(replica) for replica in replicas) == REQUESTS


@pytest.mark.parametrize("data", [LATER, DOWN], ids=["with Retry-After", "without"])
async def test_503_of_the_only_replica_goes_to_the_client_and_opens_no_breaker(serve, start, data):
    upstream = await serve(always(data))
    rig = await start(upstream, config=ROUTES + ENOUGH)
    client = await rig.connect()
    for _ in range(REQUESTS):
        reply = await client.ask(rig.get("/open/x"))
        assert (reply.status, reply.body) == (503, data.rpartition(b"\r\n\r\n")[2])
    assert asked(upstream) == REQUESTS
    assert rig.parts.upstreams.of("open").state is State.CLOSED


async def test_503_opens_the_breaker_where_the_configuration_counts_it_as_a_failure(serve, start):
    upstream = await serve(always(DOWN))
    rig = await start(upstream, config=ROUTES + "[services.open]\nretries_max = 0\nfailure_statuses = [503]\n")
    client = await rig.connect()
    for _ in range(REQUESTS):
        assert (await client.ask(rig.get("/open/x"))).status == 503
    assert asked(upstream) < REQUESTS
    assert rig.parts.upstreams.of("open").state is State.OPEN
