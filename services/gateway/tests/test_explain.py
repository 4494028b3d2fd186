"""`explain` says what the gateway does: asked beside the real gateway, and read for what a status does not show."""

import pytest

from services.gateway.domain.config import check, parse_config
from services.gateway.domain.defaults import default_config
from services.gateway.domain.explain import Asker, Explanation, explain
from services.gateway.tests.rig import ROUTES, issuing
from shared.testing.tokens import TokenMint

BASE = default_config(is_production=False)
USER, ADMIN, NOBODY = Asker(role="user"), Asker(role="admin"), Asker()


def asked(method: str, target: str, asker: Asker = NOBODY, text: str = "") -> Explanation:
    config = parse_config(text, BASE)
    return explain(config, check(config), method, target, asker, authorities=frozenset({"api.example.com"}))


def does(found: Explanation, name: str) -> str:
    (text,) = [step.does for step in found.chain if step.name == name]
    return text


@pytest.mark.parametrize("role", [None, "user", "admin"])
async def test_explained_status_is_the_one_that_the_gateway_gives(serve, start, stack, role):
    mint = TokenMint()
    issuer = await stack.enter_async_context(issuing(mint))
    rig = await start(await serve(), fleet={"users": [issuer.address]})
    config = parse_config(ROUTES, BASE)
    headers = [] if role is None else [f"Authorization: Bearer {mint.token(role=role)}"]
    for method, target in [
        ("GET", "/open/x?y=1"),
        ("TRACE", "/open/x"),
        ("DELETE", "/small/x"),
        ("GET", "/private/x"),
        ("GET", "/admins/x"),
        ("GET", "/events"),
        ("GET", "/events/x"),
        ("GET", "/ws/x"),
        ("GET", "/open%2Fx"),
        ("GET", "/open/../x"),
        ("GET", "/open/%2e%2e/x"),
        ("GET", "/o%70en/x"),
        ("GET", "/nowhere"),
        ("GET", "/live"),
    ]:
        wire = await rig.connect()
        reply = await wire.ask(rig.get(target, *headers, method=method))
        refusal = explain(config, check(config), method, target, Asker(role=role)).refusal
        assert (refusal.status if refusal else 200) == reply.status, (method, target)


def test_request_is_answered_by_the_routes_service() -> None:
    found = asked("GET", "/users/42?x=1", USER)
    assert (found.answered_by, found.path, found.refusal) == ("users", "/users/42", None)
    assert found.route is not None
    assert found.route.path == "/users/*"


def test_refusals_say_why() -> None:
    reasons = {
        (method, target): asked(method, target, asker).refusal
        for method, target, asker in [
            ("GET", "/users/42", NOBODY),
            ("GET", "/users", USER),
            ("PATCH", "/users", ADMIN),
            ("GET", "/health/x/y", NOBODY),
            ("GET", "/ws/chat", NOBODY),
            ("GET", "/a%00", NOBODY),
        ]
    }
    assert [refusal.status for refusal in reasons.values() if refusal] == [401, 403, 405, 404, 426, 400]
    not_allowed, unknown = reasons["PATCH", "/users"], reasons["GET", "/health/x/y"]
    assert not_allowed is not None
    assert not_allowed.allow == ("GET", "HEAD", "OPTIONS", "POST")
    assert unknown is not None
    assert unknown.reason == (
        "no route takes /health/x/y; /health takes that path alone, /health/* would take what is below it too"
    )


def test_a_host_that_is_not_served_is_misdirected() -> None:
    assert asked("POST", "/users", Asker(host="api.example.com")).refusal is None
    refusal = asked("POST", "/users", Asker(host="other.example.com")).refusal
    assert refusal is not None
    assert refusal.status == 421


def test_what_the_gateway_itself_answers_has_no_route() -> None:
    for path in ("/live", "/docs/x.js", "/openapi.json", "/admin/gateway/routes"):
        found = asked("GET", path)
        assert (found.answered_by, found.route, found.refusal) == ("the gateway itself", None, None)


def test_a_handshake_is_asked_for_by_its_own_word() -> None:
    assert asked("WS", "/ws/chat").answered_by == "realtime"
    refusal = asked("WEBSOCKET", "/users").refusal
    assert refusal is not None
    assert refusal.status == 404


def test_limits_say_who_shares_them_and_which_the_request_meets() -> None:
    by_name = {limit.name: limit for limit in asked("POST", "/users").limits}
    assert {name: limit.applies for name, limit in by_name.items()} == {
        "signed-in": False,
        "anonymous": True,
        "registration": True,
    }
    assert by_name["signed-in"].key == "the user's id"
    signed_in = {limit.name: limit.applies for limit in asked("POST", "/users", USER).limits}
    assert signed_in == {"signed-in": True, "anonymous": False, "registration": True}


def test_the_tier_of_the_token_and_else_its_role_choose_the_quota() -> None:
    text = (
        "[[limits]]\nname = 'a'\nby = 'user'\nquota = 4\ntiers = {gold = 9, admin = 5}\n"
        "[[routes]]\npath = '/a'\nservice = 'a'\nmethods = ['GET']\nauth = 'public'\nlimits = ['a']\ncost = 3\n"
    )
    for asker, quota in ((USER, 4), (ADMIN, 5), (Asker(role="admin", tier="gold"), 9)):
        (limit,) = asked("GET", "/a", asker, text).limits
        assert (limit.quota, limit.cost) == (quota, 3)


def test_the_treatment_of_the_service_is_in_the_chain() -> None:
    text = "[services.users]\nretries_max = 3\nin_flight_max = 7\nbreaker = {slow_s = 2, open_s = 4}"
    found = asked("GET", "/users/1", USER, text)
    assert "up to 3, while at most 10% of requests are repeats" in does(found, "retries")
    assert "at most 7 at once" in does(found, "load")
    assert "80% take over 2 s; asks again after 4 s" in does(found, "breaker")
    assert does(asked("PATCH", "/users/1", USER, text), "retries").endswith("with an Idempotency-Key only")
    assert does(asked("GET", "/users/1", USER, "[services.users]\nretries_max = 0"), "retries") == "none"


def test_the_chain_is_in_the_order_of_the_contract() -> None:
    names = [step.name for step in asked("POST", "/users").chain]
    wanted = ["cors", "gzip", "log, metrics", "auth", "rate limit", "deadline"]
    assert [name for name in names if name in wanted] == wanted


def test_deadlines_are_those_of_the_kind() -> None:
    assert does(asked("GET", "/sse/stream", USER), "deadline").startswith("10 s until the answer begins, then 60 s")
    assert does(asked("WS", "/ws/chat"), "deadline").startswith("10 s for the handshake")
    assert does(asked("POST", "/cpu-intensive", USER), "deadline").startswith("30 s in all")
