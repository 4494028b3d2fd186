"""What is asked again at another replica, what the client gets as it is, and which of it counts against the service."""

import asyncio

import pytest

from services.gateway.tests.rig import ROUTES, Rig
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
LATE = answer(b"late", status="504 Gateway Timeout")


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


async def silent(wire: Wire) -> None:
    await wire.message()
    await asyncio.Event().wait()


async def ask_all(rig: Rig, data: bytes) -> set[int]:
    """Ask on connections of their own, all at once; return the statuses."""

    async def ask() -> int:
        return (await (await rig.connect()).ask(data)).status

    return set(await asyncio.gather(*(ask() for _ in range(REQUESTS))))


@pytest.mark.parametrize("script", [silent, always(LATE)], ids=["silent", "504"])
async def test_clients_in_a_hurry_cannot_open_the_breaker(serve, start, script):
    upstream = await serve(script)
    rig = await start(upstream, config=ROUTES + ENOUGH)
    assert await ask_all(rig, rig.get("/open/x", "X-Request-Timeout-Ms: 100")) == {504}
    assert asked(upstream) == REQUESTS
    assert rig.parts.upstreams.of("open").state is State.CLOSED


async def test_silence_for_half_of_the_time_of_the_route_is_the_services_failure_though_clients_allow_no_more(
    serve, start
):
    rig = await start(await serve(silent))
    assert await ask_all(rig, rig.get("/hasty/x", "X-Request-Timeout-Ms: 150")) == {504}
    assert rig.parts.upstreams.of("open").state is State.OPEN


@pytest.mark.parametrize("script", [silent, always(LATE)], ids=["silent", "504"])
async def test_service_that_is_late_by_its_own_time_opens_the_breaker(serve, start, script):
    rig = await start(await serve(script))
    assert 504 in await ask_all(rig, rig.get("/hasty/x"))
    assert rig.parts.upstreams.of("open").state is State.OPEN


async def test_503_opens_the_breaker_where_the_configuration_counts_it_as_a_failure(serve, start):
    upstream = await serve(always(DOWN))
    rig = await start(upstream, config=ROUTES + "[services.open]\nretries_max = 0\nfailure_statuses = [503]\n")
    client = await rig.connect()
    for _ in range(REQUESTS):
        assert (await client.ask(rig.get("/open/x"))).status == 503
    assert asked(upstream) < REQUESTS
    assert rig.parts.upstreams.of("open").state is State.OPEN
