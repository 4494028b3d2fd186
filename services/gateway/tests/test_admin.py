"""/admin/gateway at the real gateway: who may, what is shown, and what each action does to the traffic."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.gateway.tests.rig import ROUTES, Rig, eventually, issuing
from services.gateway.tests.scripted import Message, Wire, answer
from shared.testing.tokens import TokenMint

LOCAL = "Host: 127.0.0.1"
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"
LIMITED = '[[limits]]\nname = "few"\nby = "route"\nquota = 5\n\n' + ROUTES.replace(
    'path = "/open/*"', 'path = "/open/*"\nlimits = ["few"]', 1
)


async def ask(rig: Rig, method: str, target: str, *headers: str, host: str = LOCAL) -> Message:
    client = await rig.connect()
    lines = [
        f"{method} {target} HTTP/1.1",
        host,
        *headers,
        *(["Content-Length: 0"] if method == "POST" else []),
        "",
        "",
    ]
    return await client.ask("\r\n".join(lines).encode())


async def see(rig: Rig, what: str) -> Any:
    reply = await ask(rig, "GET", f"/admin/gateway/{what}")
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


async def do(rig: Rig, what: str, status: int = 200) -> Any:
    reply = await ask(rig, "POST", f"/admin/gateway/{what}")
    assert reply.status == status, reply.body
    return json.loads(reply.body)


async def call(rig: Rig, target: str = "/open/x") -> Message:
    return await (await rig.connect()).ask(rig.get(target))


# Who may.


async def test_somebody_on_this_machine_needs_no_token(serve, start):
    assert (await ask(await start(await serve()), "GET", "/admin/gateway/routes")).status == 200


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("Host: evil.example", ""),
        ("Host: 127.0.0.1.evil.example", ""),
        (LOCAL, "X-Forwarded-For: 192.0.2.1"),
        (LOCAL, "Forwarded: for=127.0.0.1"),
        (LOCAL, "Via: 1.1 proxy"),
        (LOCAL, "X-Real-IP: 127.0.0.1"),
        (LOCAL, "X-Forwarded-Proto: https"),
        (LOCAL, "CF-Connecting-IP: 127.0.0.1"),
        (LOCAL, "Origin: https://evil.example"),
        (LOCAL, "Origin: null"),
        (LOCAL, "Sec-Fetch-Site: cross-site"),
        (LOCAL, "Sec-Fetch-Site: same-site"),
    ],
)
@pytest.mark.parametrize(("method", "what"), [("GET", "in-flight"), ("POST", "breakers/open/open")])
async def test_a_page_or_a_proxy_on_this_machine_needs_a_token(serve, start, method, what, host, header):
    rig = await start(await serve())
    reply = await ask(rig, method, f"/admin/gateway/{what}", *filter(None, [header]), host=host)
    assert reply.status in (401, 403)
    assert (await call(rig)).status == 200


@pytest.mark.parametrize("header", ["", "X-Forwarded-For: 127.0.0.1"])
async def test_a_trusted_proxy_on_this_machine_needs_a_token_whatever_it_says(serve, start, header):
    rig = await start(await serve(), trusted_proxies="127.0.0.1")
    assert (await ask(rig, "GET", "/admin/gateway/routes", *filter(None, [header]))).status == 401


async def test_a_proxy_that_a_reload_named_needs_a_token(serve, start, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text(ROUTES)
    rig = await start(await serve(), config_file=str(file))
    file.write_text(ROUTES + "\n[addresses]\ntrusted_proxies = ['127.0.0.0/8']\n")
    await do(rig, "reload")
    assert (await ask(rig, "GET", "/admin/gateway/routes")).status == 401


async def test_an_admins_token_is_taken_from_anywhere_and_a_users_is_not(serve, start, stack):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    rig = await start(await serve(), fleet={"users": [issuer.address]}, admin_access="admin")
    assert (await ask(rig, "GET", "/admin/gateway/routes")).status == 401
    user, admin = (f"Authorization: Bearer {mint.token(role=role)}" for role in ("user", "admin"))
    assert (await ask(rig, "GET", "/admin/gateway/routes", user)).status == 403
    assert (await ask(rig, "GET", "/admin/gateway/routes", admin, host="Host: api.example")).status == 200
    with capture_logs() as lines:
        assert (await ask(rig, "POST", "/admin/gateway/breakers/open/close", admin)).status == 200
    (line,) = (line for line in lines if line["event"] == "audit")
    assert line["operator"] not in ("", "loopback")


async def test_it_can_be_switched_off(serve, start):
    rig = await start(await serve(), admin_access="off")
    assert (await ask(rig, "GET", "/admin/gateway/routes")).status == 404
    assert (await ask(rig, "POST", "/admin/gateway/breakers/open/open")).status == 404


# What is shown.


async def test_routes_are_shown_with_their_policies_in_order(serve, start):
    rig = await start(await serve())
    shown = {found["route"]["path"]: found for found in await see(rig, "routes")}
    names = [step["name"] for step in shown["/private/*"]["chain"]]
    assert names.index("auth") < names.index("rate limit") < names.index("deadline") < names.index("breaker")


async def test_explain_says_what_would_become_of_a_request(serve, start):
    rig = await start(await serve())
    found = await see(rig, "explain?method=GET&path=/private/x")
    assert (found["answered_by"], found["refusal"]["status"]) == ("the gateway", 401)
    found = await see(rig, "explain?method=GET&path=/private/x&role=user")
    assert found["answered_by"] == "open"


async def test_replicas_are_shown_with_what_they_answered(serve, start):
    rig = await start(await serve())
    await call(rig)
    (replica,) = (await see(rig, "instances"))["services"]["open"]["replicas"]
    assert (replica["breaker"], replica["is_drained"], replica["attempts"]["ok"]) == ("closed", False, 1)


async def test_a_replicas_connections_are_shown_idle_and_busy(serve, start):
    release = asyncio.Event()

    async def slow(wire: Wire) -> None:
        while True:
            request = await wire.message()
            if request.target == "/open/slow":
                await release.wait()
            await wire.send(answer(b"x"))

    rig = await start(await serve(slow))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(call(rig, "/open/slow"))
        replica = rig.parts.upstreams.of("open").replicas[0]
        await eventually(lambda: replica.in_flight == 1)
        await call(rig)
        (shown,) = (await see(rig, "instances"))["services"]["open"]["replicas"]
        release.set()
    assert (shown["connections"], shown["in_flight"]) == ({"idle": 1, "busy": 1}, 1)
    (shown,) = (await see(rig, "instances"))["services"]["open"]["replicas"]
    assert shown["connections"] == {"idle": 2, "busy": 0}


async def test_a_replica_is_shown_up_ejected_or_draining(serve, start, unused_address):
    up, drained = await serve(), await serve()
    gone = f"{unused_address[0]}:{unused_address[1]}"
    rig = await start(fleet={"open": [up.address, drained.address, gone]})
    await do(rig, f"instances/open/{drained.address}/drain")
    async with asyncio.timeout(10):
        while True:
            assert (await call(rig)).status == 200
            shown = {item["address"]: item for item in (await see(rig, "instances"))["services"]["open"]["replicas"]}
            if shown[gone]["state"] == "ejected":
                break
    assert [shown[address]["state"] for address in (up.address, drained.address)] == ["up", "draining"]
    assert shown[gone]["last_failure"]["what"] == "took no connection: ConnectionRefusedError"
    assert shown[up.address]["last_failure"] is None


async def bad_status(wire: Wire) -> None:
    await wire.message()
    await wire.send(answer(b"x", status="504 Gateway Timeout"))


async def no_http(wire: Wire) -> None:
    await wire.message()
    await wire.send(b"HTTP/1.1 what\r\n\r\n")


async def silent(wire: Wire) -> None:
    await wire.message()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("script", "what"),
    [(bad_status, "answered 504"), (no_http, "malformed answer"), (silent, "no answer before the deadline")],
)
async def test_a_replicas_last_failure_is_said_in_words(serve, start, script, what):
    rig = await start(await serve(script))
    await call(rig, "/hasty/x")
    (shown,) = (await see(rig, "instances"))["services"]["open"]["replicas"]
    assert what in shown["last_failure"]["what"]
    assert shown["last_failure"]["at"].endswith("+00:00")


@pytest.mark.parametrize(("script", "what"), [(bad_status, "answered 504"), (no_http, "no handshake: InvalidMessage")])
async def test_so_is_that_of_a_websocket(serve, start, script, what):
    rig = await start(await serve(script))
    await (await rig.connect()).ask(rig.get("/ws/x", *HANDSHAKE))
    (shown,) = (await see(rig, "instances"))["services"]["open"]["replicas"]
    assert shown["last_failure"]["what"] == what


async def test_limits_are_shown_with_what_is_leased(serve, start):
    rig = await start(await serve(), config=LIMITED)
    await call(rig)
    found = await see(rig, "limits")
    assert [limit["name"] for limit in found["configured"]] == ["few"]
    (limit,) = found["limits"]["limits"]
    assert limit["keys"] == 1


async def test_requests_under_way_are_shown_without_their_queries(serve, start):
    release = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.message()
        await release.wait()
        await wire.send(answer(b"late"))

    rig = await start(await serve(slow))
    replica = rig.parts.upstreams.of("open").replicas[0]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(call(rig, f"/open/{JWT}?token=secret"))
        await eventually(lambda: replica.in_flight == 1)
        shown = await ask(rig, "GET", "/admin/gateway/in-flight")
        release.set()
    assert b"secret" not in shown.body
    assert JWT[:30].encode() not in shown.body
    found = json.loads(shown.body)["in_flight"]
    (request,) = found["requests"]
    assert (found["count"], request["path"], request["route"]) == (1, "/open/***", "/open/*")
    assert request["service"] == "open"
    assert (request["phase"], request["upstream"]) == ("waits at the service", f"127.0.0.1:{replica.address[1]}")
    assert waiting.result().status == 200
    assert (await see(rig, "in-flight"))["in_flight"]["count"] == 0


# What can be done.


async def test_a_breaker_held_open_refuses_until_it_is_let_go(serve, start):
    rig = await start(await serve())
    with capture_logs() as lines:
        assert (await do(rig, "breakers/open/open"))["before"] == "closed"
    (line,) = (line for line in lines if line["event"] == "audit")
    assert (line["action"], line["operator"], line["upstream"]) == ("open_breaker", "loopback", "open")
    assert (line["before"], line["after"]) == ("closed", "held open")
    refused = await call(rig)
    problem = json.loads(refused.body)
    assert (refused.status, problem["code"]) == (503, "breaker_open")
    assert "operator" in problem["detail"]
    assert (await see(rig, "breakers"))["services"]["open"]["held"] == "open"
    assert (await do(rig, "breakers/open/auto"))["before"] == "held open"
    assert (await call(rig)).status == 200
    assert 'gateway_admin_actions_total{action="open_breaker"} 1.0' in rig.app.runtime.metrics.exposition().decode()


async def test_a_breaker_held_closed_lets_all_through_however_much_fails(serve, start):
    rig = await start(await serve(failing))
    await do(rig, "breakers/open/close")
    assert {(await call(rig)).status for _ in range(30)} == {504}
    assert (await see(rig, "breakers"))["services"]["open"]["breaker"] == "closed"
    await do(rig, "breakers/open/auto")
    assert {(await call(rig)).status for _ in range(30)} == {504, 503}


async def failing(wire: Wire) -> None:
    while True:
        await wire.message()
        await wire.send(answer(b"x", status="504 Gateway Timeout"))


async def test_one_replicas_breaker_is_held_by_itself(serve, start):
    one, other = await serve(), await serve()
    rig = await start(one, other)
    done = await do(rig, f"breakers/open/{one.address}/open")
    assert (done["before"], done["after"]) == ("closed", "held open")
    assert {(await call(rig)).status for _ in range(20)} == {200}
    assert not one.wires
    shown = (await see(rig, "breakers"))["services"]["open"]
    assert (shown["held"], shown["replicas"][one.address]["held"]) == (None, "open")
    await do(rig, f"breakers/open/{other.address}/open")
    refused = await call(rig)
    assert (refused.status, "operator" in json.loads(refused.body)["detail"]) == (503, True)
    await do(rig, f"breakers/open/{one.address}/auto")
    assert (await call(rig)).status == 200
    assert one.wires


async def test_a_service_held_open_is_not_opened_by_a_single_replica(serve, start):
    one, other = await serve(), await serve()
    rig = await start(one, other)
    await do(rig, "breakers/open/open")
    refused = await do(rig, f"breakers/open/{one.address}/close", 409)
    assert "breakers/open/auto" in refused["detail"]
    assert (await call(rig)).status == 503


async def test_what_is_no_verb_is_refused_with_those_that_are(serve, start):
    refused = await do(await start(await serve()), "breakers/open/shut", 422)
    assert "'open', 'close' or 'auto'" in refused["detail"]


async def test_a_drained_replica_gets_nothing_new(serve, start):
    one, other = await serve(), await serve()
    rig = await start(one, other)
    await do(rig, f"instances/open/{one.address}/drain")
    for _ in range(10):
        assert (await call(rig)).status == 200
    assert not one.wires
    await do(rig, f"instances/open/{one.address}/undrain")
    async with asyncio.timeout(5):
        while not one.wires:
            await call(rig)


async def test_a_drained_replica_finishes_what_it_has(serve, start):
    release = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.message()
        await release.wait()
        await wire.send(answer(b"finished"))

    one = await serve(slow)
    rig = await start(one)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(call(rig))
        await eventually(lambda: len(one.wires) == 1)
        await do(rig, f"instances/open/{one.address}/drain?force=true")
        assert (await call(rig)).status == 503
        release.set()
    assert waiting.result().body == b"finished"


async def test_the_last_replica_is_drained_by_force_only(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    with capture_logs() as lines:
        refused = await do(rig, f"instances/open/{upstream.address}/drain", 409)
    (line,) = (line for line in lines if line["event"] == "audit")
    assert (line["action"], line["address"], line["refused"]) == ("drain", upstream.address, "conflict")
    assert "force=true" in refused["detail"]
    assert (await call(rig)).status == 200
    await do(rig, f"instances/open/{upstream.address}/drain?force=true")
    assert (await call(rig)).status == 503


@pytest.mark.parametrize("what", ["breakers/nowhere/open", "instances/nowhere/h:1/drain", "instances/open/h:1/drain"])
async def test_what_is_not_known_is_404(serve, start, what):
    assert (await do(await start(await serve()), what, 404))["code"] == "not_found"


async def test_a_bad_file_is_refused_with_its_faults_and_changes_nothing(serve, start, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text(ROUTES)
    rig = await start(await serve(), config_file=str(file))
    file.write_text(ROUTES.replace("timeout_s = 5", "timeout_s = -5", 1))
    refused = await do(rig, "reload", 422)
    assert f"{file}:" in refused["errors"][0]["message"]
    assert "timeout_s" in refused["errors"][0]["message"]
    assert (await call(rig)).status == 200


async def test_a_changed_file_is_put_to_use_and_holds_stay(serve, start, tmp_path):
    file = tmp_path / "gateway.toml"
    file.write_text(ROUTES)
    rig = await start(await serve(), config_file=str(file))
    await do(rig, "breakers/open/open")
    file.write_text(ROUTES + "\n[services.open]\nretries_max = 1\n")
    assert (await do(rig, "reload"))["changes"] == {
        "changed": ["service open: connect_timeout_s 5.0 -> 1.0, retries_max 0 -> 1"]
    }
    assert (await call(rig)).status == 503
