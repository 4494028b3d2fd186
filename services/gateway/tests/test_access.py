"""Who gets in: tokens checked at the door with the issuer's published keys, before a body is read."""

import asyncio
import json
from urllib.parse import quote

import pytest

from services.gateway.tests.rig import issuing
from services.gateway.tests.scripted import Wire, answer
from shared.ids import new_id
from shared.testing.bus_probe import eventually
from shared.testing.revocation import end_session
from shared.testing.tokens import TokenMint


@pytest.fixture
async def fleet(serve, start, stack):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    upstream = await serve()
    rig = await start(upstream, fleet={"users": [issuer.address]})
    return rig, await rig.connect(), mint, upstream


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


async def test_request_without_a_token_is_401(fleet):
    rig, client, _, upstream = fleet
    reply = await client.ask(rig.get("/private/x"))
    assert (reply.status, reply.get("www-authenticate")) == (401, "Bearer")
    assert not upstream.wires


@pytest.mark.parametrize("header", ["Authorization: Bearer abc", "Authorization: Basic eA==", "Authorization: Bearer"])
async def test_bad_token_is_401(fleet, header):
    rig, client, _, upstream = fleet
    assert (await client.ask(rig.get("/private/x", header))).status == 401
    assert not upstream.wires


async def test_expired_token_is_401(fleet):
    rig, client, mint, _ = fleet
    reply = await client.ask(rig.get("/private/x", bearer(mint.token(lasts_s=-100))))
    assert (reply.status, json.loads(reply.body)["code"]) == (401, "token_expired")


async def test_token_of_another_issuer_is_401(fleet):
    rig, client, _, _ = fleet
    assert (await client.ask(rig.get("/private/x", bearer(TokenMint().token())))).status == 401


async def test_good_token_passes(fleet):
    rig, client, mint, _ = fleet
    assert (await client.ask(rig.get("/private/x", bearer(mint.token())))).body == b"/private/x"


async def test_user_is_no_admin(fleet):
    rig, client, mint, upstream = fleet
    assert (await client.ask(rig.get("/admins/x", bearer(mint.token())))).status == 403
    assert not upstream.wires
    assert (await client.ask(rig.get("/admins/x", bearer(mint.token(role="admin"))))).status == 200


async def test_401_comes_before_the_body_is_read(fleet):
    rig, client, _, upstream = fleet
    assert (await client.ask(rig.get("/private/x", "Content-Length: 500000", method="POST"))).status == 401
    assert not upstream.wires


async def test_token_in_the_query_is_taken_where_the_route_says_so(fleet):
    rig, client, mint, upstream = fleet
    token = mint.token()
    assert (await client.ask(rig.get(f"/events?a=1&token={quote(token)}"))).status == 200
    assert f"/events?a=1&token={token}".encode() in upstream.received
    assert (await client.ask(rig.get(f"/private/x?token={token}"))).status == 401


@pytest.mark.parametrize("query", ["", "?token=", "?token=abc", "?x=1"])
async def test_bad_token_in_the_query_is_401(fleet, query):
    rig, client, _, _ = fleet
    assert (await client.ask(rig.get(f"/events{query}"))).status == 401


async def test_token_in_the_query_is_never_logged(fleet, capsys):
    rig, client, mint, _ = fleet
    token = mint.token()
    await client.ask(rig.get(f"/events?token={token}"))
    assert token[:30] not in capsys.readouterr().out


async def test_without_keys_a_token_is_503_and_public_routes_go_on(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    reply = await client.ask(rig.get("/private/x", bearer(TokenMint().token())))
    assert (reply.status, json.loads(reply.body)["code"]) == (503, "keys_unavailable")
    assert (await client.ask(rig.get("/open/x"))).status == 200


async def test_hanging_issuer_does_not_hold_a_request_past_its_deadline(serve, start):
    async def hang(wire: Wire) -> None:
        await wire.closed()

    issuer = await serve(hang)
    rig = await start(await serve(), fleet={"users": [issuer.address]})
    client = await rig.connect()
    async with asyncio.timeout(1):
        reply = await client.ask(rig.get("/private/x", bearer(TokenMint().token()), "X-Request-Timeout-Ms: 200"))
    assert reply.status == 504


async def test_metrics_need_a_token_on_the_public_side(fleet):
    rig, client, mint, _ = fleet
    assert (await client.ask(rig.get("/metrics"))).status == 401
    reply = await client.ask(rig.get("/metrics", bearer(mint.token())))
    assert reply.status == 200
    assert b"requests_total" in reply.body


async def test_metrics_need_an_admin_where_it_is_set(serve, start, stack):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    rig = await start(fleet={"users": [issuer.address]}, metrics_access="admin")
    client = await rig.connect()
    assert (await client.ask(rig.get("/metrics", bearer(mint.token())))).status == 403
    assert (await client.ask(rig.get("/metrics", bearer(mint.token(role="admin"))))).status == 200


async def test_metrics_name_the_routes_of_operators_by_their_whole_path(fleet):
    rig, client, mint, _ = fleet
    admin = bearer(mint.token(role="admin"))
    for request in (rig.get("/admin/gateway/routes", admin), rig.post("/admin/gateway/breakers/open/auto", b"", admin)):
        assert (await client.ask(request)).status == 200
    shown = (await client.ask(rig.get("/metrics", admin))).body.decode()
    assert 'requests_total{method="GET",route="/admin/gateway/routes",status="200"} 1.0' in shown
    assert 'requests_total{method="POST",route="/admin/gateway/breakers/{service}/{verb}",status="200"} 1.0' in shown


async def test_metrics_are_open_where_it_is_set(start):
    rig = await start(metrics_access="open")
    client = await rig.connect()
    assert (await client.ask(rig.get("/metrics"))).status == 200


async def test_ready_says_whether_the_fleet_is_known(serve, start):
    rig = await start(await serve())
    client = await rig.connect()
    reply = await client.ask(rig.get("/ready"))
    assert (reply.status, json.loads(reply.body)["checks"]) == (200, {"endpoints": "ok"})


async def test_routes_are_labelled_by_their_path(serve, start):
    upstream = await serve(lambda wire: _answer_all(wire))
    rig = await start(upstream)
    client = await rig.connect()
    for number in range(3):
        await client.ask(rig.get(f"/open/{number}"))
    text = rig.app.runtime.metrics.exposition().decode()
    assert 'requests_total{method="GET",route="/open/*",status="200"} 3.0' in text


async def _answer_all(wire: Wire) -> None:
    while True:
        await wire.message()
        await wire.send(answer())


async def test_the_tokens_of_an_ended_session_are_401_at_once(serve, start, stack):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    bus_url = f"memory://{new_id()}"
    rig = await start(await serve(), fleet={"users": [issuer.address]}, nats_url=bus_url)
    client = await rig.connect()
    token, other = mint.token(), mint.token()
    for each in (token, other):
        assert (await client.ask(rig.get("/private/x", bearer(each)))).status == 200

    await end_session(bus_url, token)

    async def is_refused() -> bool:
        return (await client.ask(rig.get("/private/x", bearer(token)))).status == 401

    await eventually(is_refused)
    assert json.loads((await client.ask(rig.get("/private/x", bearer(token)))).body)["code"] == "session_ended"
    assert (await client.ask(rig.get("/private/x", bearer(other)))).status == 200
