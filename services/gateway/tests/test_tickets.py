"""Tickets at the door: good once in the whole fleet, whichever way they are written, and never beside another way in."""

import asyncio
import json

import pytest

from services.gateway.domain.tickets import Tickets
from services.gateway.tests.rig import ROUTES, issuing
from shared.cache.base import CacheUnavailable
from shared.cache.memory import MemoryCache
from shared.errors import Unauthorized
from shared.ids import new_id
from shared.testing.tokens import TokenMint
from shared.tokens import TokenVerifier

TICKETED = ROUTES.replace("query_token = true", "query_token = true\nticket = true").replace(
    'kind = "websocket"', 'kind = "websocket"\nticket = true'
)


@pytest.fixture
def mint():
    return TokenMint()


@pytest.fixture
async def fleet(serve, start, stack, mint):
    issuer = await stack.enter_async_context(issuing(mint))
    upstream = await serve()
    rig = await start(upstream, fleet={"users": [issuer.address]}, config=TICKETED, redis_url=f"memory://{new_id()}")
    return rig, await rig.connect(), upstream


async def ask(client, rig, target, *headers):
    reply = await client.ask(rig.get(target, *headers))
    return reply.status, json.loads(reply.body)["code"] if reply.status >= 400 else ""


async def test_a_ticket_opens_a_stream_once(fleet, mint):
    rig, client, upstream = fleet
    ticket = mint.ticket()

    assert await ask(client, rig, f"/events?ch=x&ticket={ticket}") == (200, "")
    assert f"/events?ch=x&ticket={ticket}".encode() in upstream.received
    assert await ask(client, rig, f"/events?ticket={ticket}") == (401, "ticket_used")


@pytest.mark.parametrize(
    "query",
    [
        "ticket={used}",
        "%74icket={used}",
        "tick%65t={used}&a=1",
        "token=&ticket={used}",
        "ticket={fresh}&ticket={used}",
        "ticket={used}&ticket={fresh}",
        "ticket=&ticket={used}",
    ],
)
async def test_a_used_ticket_stays_used_however_it_is_written(fleet, mint, query):
    rig, client, upstream = fleet
    used = mint.ticket()
    assert (await ask(client, rig, f"/events?ticket={used}"))[0] == 200
    seen = len(upstream.received)

    status, _ = await ask(client, rig, f"/events?{query.format(used=used, fresh=mint.ticket())}")

    assert status == 401
    assert len(upstream.received) == seen


async def test_a_ticket_is_spent_before_a_route_that_asks_for_no_token(fleet, mint):
    rig, _, upstream = fleet
    ticket = mint.ticket()
    handshake = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    for target, wanted in ((f"/ws/chat?ticket={ticket}", True), (f"/ws/chat?%74icket={ticket}", False)):
        client = await rig.connect()
        seen = len(upstream.received)
        reply = await client.ask(rig.get(target, *handshake, key))
        assert (len(upstream.received) > seen) is wanted
        assert wanted or (reply.status, json.loads(reply.body)["code"]) == (401, "ticket_used")


async def test_a_ticket_goes_nowhere_else(fleet, mint):
    rig, client, _ = fleet
    assert (await ask(client, rig, f"/private/x?ticket={mint.ticket()}"))[0] == 401
    assert (await ask(client, rig, "/private/x", f"Authorization: Bearer {mint.ticket()}"))[0] == 401
    assert (await ask(client, rig, f"/events?token={mint.ticket()}"))[0] == 401
    assert (await ask(client, rig, f"/events?ticket={mint.token()}"))[0] == 401
    assert (await ask(client, rig, "/events?ticket=x"))[0] == 401
    assert (await ask(client, rig, "/events?ticket="))[0] == 401


async def test_a_token_goes_before_a_ticket_which_is_kept(fleet, mint):
    rig, client, _ = fleet
    ticket = mint.ticket()
    bearer = f"Authorization: Bearer {mint.token()}"
    assert (await ask(client, rig, f"/events?ticket={ticket}", bearer))[0] == 200
    assert (await ask(client, rig, f"/events?ticket={ticket}&token={mint.token()}"))[0] == 200
    assert (await ask(client, rig, f"/events?ticket={ticket}"))[0] == 200


async def test_an_expired_ticket_is_401(fleet, mint):
    rig, client, _ = fleet
    assert await ask(client, rig, f"/events?ticket={mint.ticket(lasts_s=-10)}") == (401, "ticket_expired")


async def test_one_of_many_at_once_spends_a_ticket_on_any_gateway(mint):
    cache = MemoryCache()
    gateways = [Tickets(TokenVerifier(mint), cache) for _ in range(4)]
    ticket = mint.ticket()

    found = await asyncio.gather(*(gateways[n % 4].spend(ticket) for n in range(20)), return_exceptions=True)

    assert sum(not isinstance(result, Exception) for result in found) == 1
    assert sum(isinstance(result, Unauthorized) for result in found) == 19


class Away(MemoryCache):
    async def add(self, key, value, *, ttl_s):
        raise CacheUnavailable


async def test_without_the_cache_a_ticket_is_good_once_in_each_process(mint):
    gateways = [Tickets(TokenVerifier(mint), Away()) for _ in range(2)]
    ticket = mint.ticket("someone")

    for gateway in gateways:
        assert (await gateway.spend(ticket)).subject == "someone"
        with pytest.raises(Unauthorized):
            await gateway.spend(ticket)
