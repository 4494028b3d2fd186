"""`GET /users` and `POST /users` by the short way: the same answers as by the framework, which takes all that is unusual."""

import json

import pytest

from services.users.app import create
from services.users.routes.collection import HotCollection
from services.users.tests.conftest import PASSWORD, Api
from shared.ids import new_id
from shared.testing.client import running


@pytest.fixture
def app(make_settings):
    return create(make_settings())


@pytest.fixture
async def client(app):
    async with running(app) as found:
        yield found


@pytest.fixture
def framework(monkeypatch):
    """Switches the short way off."""

    def off():
        async def straight(self, scope, receive, send):
            await self._app(scope, receive, send)

        monkeypatch.setattr(HotCollection, "__call__", straight)

    return off


@pytest.fixture
def by_framework(app, client, monkeypatch):
    """How many requests the framework was given."""
    found = []
    whole = app.fastapi.__class__.__call__

    async def counted(self, scope, receive, send):
        found.append(scope["path"])
        await whole(self, scope, receive, send)

    monkeypatch.setattr(app.fastapi.__class__, "__call__", counted)
    return found


def told(answer):
    """All of an answer that two of the same can agree in."""
    ignored = {"date", "server"}
    headers = {name: value for name, value in answer.headers.items() if name not in ignored}
    return answer.status_code, headers, answer.content


FIXED = {"X-Request-ID": "the-same"}
LISTS = [
    "",
    "?limit=2",
    "?sort=-username&count=true",
    "?fields=id,username",
    "?role=admin",
    "?q=per",
    "?limit=0",
    "?limit=two",
    "?limit=1&limit=2",
    "?unknown=1",
    "?cursor=nonsense",
    "?q=%ff",
    "?q=%00",
    "?verified=maybe",
    "?created_after=2020-01-01T00:00:00%2B00:00",
    "?created_after=yesterday",
    "?sort=deleted_at",
    "?" + "&".join(f"limit={n}" for n in range(2000)),
]


@pytest.mark.parametrize("query", LISTS, ids=lambda query: query[:40] or "plain")
async def test_a_list_is_the_same_both_ways(client, framework, query):
    api = Api(client)
    for n in range(5):
        await api.register(f"person{n}")
    headers = {**await api.admin(), **FIXED}

    short = told(await client.get(f"/users{query}", headers=headers))
    framework()

    assert short == told(await client.get(f"/users{query}", headers=headers))


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eDp5"}])
async def test_a_list_without_a_good_token_is_refused_the_same_both_ways(client, framework, headers):
    short = told(await client.get("/users", headers={**headers, **FIXED}))
    framework()

    assert short[0] == 401
    assert short == told(await client.get("/users", headers={**headers, **FIXED}))


async def test_a_list_is_for_admins_both_ways(client, framework):
    api = Api(client)
    await api.register("ada")
    headers = {**await api.bearer("ada"), **FIXED}

    short = told(await client.get("/users", headers=headers))
    framework()

    assert short[0] == 403
    assert short == told(await client.get("/users", headers=headers))


GOOD = {"username": "ada", "email": "ADA@example.com", "password": PASSWORD, "full_name": " Ada  L. "}
BODIES = [
    json.dumps(GOOD),
    json.dumps({**GOOD, "full_name": None}),
    json.dumps({**GOOD, "username": "a"}),
    json.dumps({**GOOD, "password": "password123"}),
    json.dumps({**GOOD, "role": "admin"}),
    json.dumps({**GOOD, "username": "taken"}),
    json.dumps({**GOOD, "username": "admin"}),
    json.dumps({**GOOD, "username": 7}),
    json.dumps([GOOD]),
    '{"username":"ada","username":"ada2","email":"a@example.com","password":"' + PASSWORD + '"}',
    '{"username":"ada","email":"a@example.com","password":"\\ud800long enough 1"}',
    '{"username": NaN}',
    "{",
    "",
    "null",
    "[" * 5000,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:60])
@pytest.mark.parametrize("media", ["application/json", "application/json; charset=utf-8", "text/plain", ""])
async def test_a_registration_is_the_same_both_ways(client, framework, body, media, monkeypatch, app):
    api = Api(client)
    await api.register("taken")
    await api.register("second")
    headers = {**FIXED, **({"Content-Type": media} if media else {})}

    short = await client.post("/users", content=body, headers=headers)
    if short.status_code == 201:
        bearer = await api.admin()
        await client.delete(f"/users/{short.json()['id']}", headers=bearer)
    framework()
    again = await client.post("/users", content=body, headers=headers)

    if short.status_code != 201:
        assert told(short) == told(again)
        return
    assert again.status_code == 201
    own = ("id", "created_at", "updated_at")
    assert {**short.json(), **dict.fromkeys(own)} == {**again.json(), **dict.fromkeys(own)}
    assert list(short.json()) == list(again.json())
    assert short.headers["location"] == f"/users/{short.json()['id']}"
    assert set(short.headers) == set(again.headers)
    assert (short.headers["etag"], short.headers["content-type"]) == (
        again.headers["etag"],
        again.headers["content-type"],
    )


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer x"}, {"Authorization": ""}])
async def test_a_registration_with_a_bad_token_is_refused_both_ways(client, framework, headers):
    short = told(await client.post("/users", json=GOOD, headers={**headers, **FIXED}))
    framework()

    assert short[0] == 401
    assert short == told(await client.post("/users", json=GOOD, headers={**headers, **FIXED}))


async def test_the_ordinary_never_meets_the_framework_and_the_unusual_always(client, by_framework):
    api = Api(client)
    await api.register("ada")
    admin = await api.admin()
    by_framework.clear()

    assert (await client.get("/users?limit=5", headers=admin)).status_code == 200
    assert (await client.post("/users", json={**GOOD, "username": "b", "email": "b@example.com"})).status_code == 422
    assert by_framework == ["/users"]
    by_framework.clear()
    assert (await client.post("/users", json={**GOOD, "username": "bob", "email": "b@example.com"})).status_code == 201
    assert by_framework == []
    keyed = {"Idempotency-Key": new_id()}
    good = {**GOOD, "username": "eve", "email": "e@example.com"}
    assert (await client.post("/users", json=good, headers=keyed)).status_code == 201
    assert (await client.head("/users", headers=admin)).status_code == 200
    assert (await client.options("/users")).status_code == 204
    assert (await client.put("/users")).status_code == 405
    assert by_framework == ["/users"] * 4


async def test_the_short_way_is_counted_by_its_route(client):
    api = Api(client)
    await api.register("ada")
    await client.get("/users", headers=await api.admin())

    text = (await client.get("/metrics")).text
    assert 'requests_total{method="GET",route="/users",status="200"} 1.0' in text
    assert 'requests_total{method="POST",route="/users",status="201"} 1.0' in text
