"""The policy: every route has its rule, and the rule is what a client meets."""

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts

from services.users.app import create
from services.users.domain.policy import RULES, SCOPES_OF, Access, Scope, holds, rule_of
from services.users.routes.guard import GuardedRoute, guarded
from shared.ids import new_id

OPERATORS = {"/live", "/ready", "/metrics", "/openapi.json"}
"""Of every service, and never routed by the gateway."""


@pytest.fixture
def routes(make_settings):
    """Method and path of every route there is, as the framework sees them."""
    found = set()
    for each in iter_route_contexts(create(make_settings()).fastapi.router.routes):
        if each.path not in OPERATORS:
            assert isinstance(each.original_route, GuardedRoute), f"{each.path} is open to whoever finds it"
            found |= {(method, each.path) for method in each.methods}
    return found


def test_every_route_has_a_rule_and_every_rule_a_route(routes):
    assert {(method, path) for method, path in routes if method != "HEAD"} == set(RULES)


def test_head_follows_get(routes):
    for method, path in routes:
        if method == "HEAD":
            assert rule_of("HEAD", path) is rule_of("GET", path)


def test_a_route_without_a_rule_cannot_be_made():
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(LookupError, match="GET /users/secret has no rule"):
        router.get("/users/secret")(lambda: None)


def test_a_router_that_is_not_guarded_does_not_start():
    router = APIRouter()
    router.get("/users")(lambda: None)
    assert isinstance(router.routes[0], APIRoute)

    with pytest.raises(TypeError, match="/users is not guarded"):
        guarded([router])


def test_rules_name_a_scope_exactly_where_one_is_needed():
    for place, rule in RULES.items():
        assert (rule.scope is not None) == (rule.access in (Access.OWNER, Access.SCOPE)), place


def test_a_user_holds_no_scope_an_admin_each_and_an_unknown_role_none():
    assert SCOPES_OF["user"] == set()
    assert all(holds("admin", scope) for scope in Scope)
    assert not any(holds(role, scope) for scope in Scope for role in ("", "root", "ADMIN"))


PLACES = sorted(RULES)


def _named(place: tuple[str, str]) -> str:
    return " ".join(place)


async def ask(client, place, user_id, headers):
    method, path = place
    target = path.format(user_id=user_id, session_id=new_id(), kid="none")
    return await client.request(method, target, headers=headers)


@pytest.mark.parametrize("place", PLACES, ids=_named)
async def test_without_a_token_only_public_routes_go_on(client, place):
    answer = await ask(client, place, new_id(), {})

    assert (answer.status_code == 401) == (rule_of(*place).access is not Access.PUBLIC)


@pytest.mark.parametrize("place", PLACES, ids=_named)
async def test_who_is_nobody_special_meets_404_on_others_and_403_where_a_scope_is_needed(api, client, place):
    other = await api.register()
    await api.register("plain")
    answer = await ask(client, place, other["id"], await api.bearer("plain"))

    access = rule_of(*place).access
    if access is Access.SCOPE:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    elif access is Access.OWNER:
        assert answer.status_code == 404
    else:
        assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("place", [place for place in PLACES if RULES[place].access is Access.OWNER], ids=_named)
async def test_what_is_anothers_looks_like_what_is_not_there(api, client, place):
    other = await api.register()
    await api.register("plain")
    bearer = await api.bearer("plain")

    answers = [await ask(client, place, user_id, bearer) for user_id in (other["id"], new_id(), "no id")]

    assert {(answer.status_code, answer.json()["detail"]) for answer in answers} == {(404, "there is no such user")}


@pytest.mark.parametrize("place", [place for place in PLACES if RULES[place].access is Access.OWNER], ids=_named)
async def test_an_owner_and_an_admin_go_on(api, client, place):
    own = await api.register("plain")
    for bearer in (await api.bearer("plain"), await api.admin()):
        answer = await ask(client, place, own["id"], bearer)
        # Without a body a change is not valid: that it is looked at shows that the guard let it through.
        assert answer.status_code in (200, 204, 422)
        if place[0] == "DELETE":
            break
