"""`Idempotency-Key` on `POST /users` and `/users/batch`, on memory and on PostgreSQL."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from pydantic import SecretStr

from services.users.app import create
from services.users.domain import idempotency as idempotency_module
from services.users.domain.watched import WatchedUsers
from shared.errors import Unavailable
from shared.testing.client import running

ADA = {"username": "ada", "email": "ada@example.com", "password": "correct horse"}
KEY = {"Idempotency-Key": "0b9f6b2e-key"}


@pytest.fixture(params=["memory", "postgres"])
def database_url(request):
    return "memory://" if request.param == "memory" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def client(database_url, make_settings):
    """The service on each store, in the place of the one on memory."""
    async with running(create(make_settings(database_url=SecretStr(database_url)))) as found:
        yield found


async def count(client, api):
    answer = await client.get("/users", params={"count": "true"}, headers=await api.admin())
    return answer.json()["count"]


async def test_the_same_request_gets_the_same_answer_once_carried_out(client, api):
    first = await client.post("/users", json=ADA, headers=KEY)
    again = await client.post("/users", json=ADA, headers=KEY)

    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    for name in ("location", "etag", "content-type", "cache-control"):
        assert again.headers[name] == first.headers[name]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert await count(client, api) == 2


async def test_another_body_under_the_key_is_a_422(client):
    await client.post("/users", json=ADA, headers=KEY)
    answer = await client.post("/users", json={**ADA, "password": "battery staple"}, headers=KEY)

    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")


async def test_of_racing_requests_one_is_carried_out_and_the_others_wait_or_are_answered(client, api):
    answers = await asyncio.gather(*(client.post("/users", json=ADA, headers=KEY) for _ in range(8)))

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"idempotency_key_running"}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert await count(client, api) == 2


async def test_a_refusal_is_not_kept(client):
    await client.post("/users", json=ADA)
    refused = await client.post("/users", json={**ADA, "username": "bob"}, headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (409, "email_taken")

    answer = await client.post("/users", json={**ADA, "username": "bob", "email": "bob@example.com"}, headers=KEY)

    assert answer.status_code == 201


async def test_a_key_belongs_to_who_asks_and_to_the_route(client, api):
    await client.post("/users", json=ADA, headers=KEY)
    as_ada = await api.bearer("ada")
    body = {"username": "bob", "email": "bob@example.com", "password": "correct horse"}

    mine = await client.post("/users", json=body, headers={**KEY, **as_ada})
    batch = await client.post("/users/batch", json={"items": [{}]}, headers={**KEY, **(await api.admin())})

    assert (mine.status_code, batch.status_code) == (201, 207)


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256])
async def test_a_key_that_is_none_is_a_422(client, key):
    answer = await client.post("/users", json=ADA, headers={"Idempotency-Key": key})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "header.idempotency-key")


async def test_a_token_that_is_not_valid_is_a_401(client):
    assert (await client.post("/users", json=ADA, headers={"Authorization": "Bearer x"})).status_code == 401


async def test_a_request_that_died_is_taken_over_after_its_lease(client, api, monkeypatch):
    """Its replica died between taking the key and storing: nothing was stored, and the key is free when the lease is over."""

    async def die(*_, **__):
        raise asyncio.CancelledError

    with monkeypatch.context() as dying:
        dying.setattr("services.users.domain.users.UserService.register", die)
        with pytest.raises(asyncio.CancelledError):
            await client.post("/users", json=ADA, headers=KEY)
    refused = await client.post("/users", json=ADA, headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_key_running")
    assert refused.headers["retry-after"] == "1"

    monkeypatch.setattr(idempotency_module, "LEASE", timedelta(0))
    assert (await client.post("/users", json=ADA, headers=KEY)).status_code == 201


async def test_an_answer_that_was_lost_on_its_way_is_given_again(client, api, monkeypatch):
    """The user was stored, and whoever asked was told otherwise: the key says what became of it."""
    add = WatchedUsers.add

    async def add_and_lose(self, *args, **values):
        await add(self, *args, **values)
        raise Unavailable

    with monkeypatch.context() as losing:
        losing.setattr(WatchedUsers, "add", add_and_lose)
        assert (await client.post("/users", json=ADA, headers=KEY)).status_code == 503
    again = await client.post("/users", json=ADA, headers=KEY)

    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert (await client.get(again.headers["location"], headers=await api.bearer("ada"))).json() == again.json()
    assert await count(client, api) == 2


async def test_nothing_that_is_kept_tells_the_password(make_settings, postgres_url):
    async with running(create(make_settings(database_url=SecretStr(postgres_url)))) as client:
        await client.post("/users", json=ADA, headers=KEY)
        connection = await asyncpg.connect(postgres_url)
        try:
            [row] = await connection.fetch("SELECT * FROM idempotency")
            audit = await connection.fetch("SELECT * FROM audit")
        finally:
            await connection.close()

    assert b"correct" not in row["body"]
    assert b"argon2" not in row["body"]
    assert "correct" not in row["headers"]
    assert "correct" not in str(audit)
    assert timedelta(hours=23) < row["expires_at"] - datetime.now(UTC) <= timedelta(hours=24)


def items(*names, **values):
    return [{**ADA, "username": name, "email": f"{name}@example.com", **values} for name in names]


async def test_each_item_of_a_batch_stands_for_itself(client, api):
    admin = await api.admin()
    given = [
        *items("ada", "bob", "ADA", "admin"),
        {"username": "x", "role": "admin"},
        7,
        *items("eve", password="eve@example.com"),
    ]
    answer = await client.post("/users/batch", json={"items": given}, headers=admin)

    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [result["status"] for result in results] == [201, 201, 409, 409, 422, 422, 422]
    ada = results[0]
    assert ada["etag"] == '"v1"'
    assert (await client.get(ada["location"], headers=admin)).json() == ada["user"]
    assert [error["field"] for error in results[2]["problem"]["errors"]] == ["body.items.2.username"]
    assert "body.items.4.role" in {error["field"] for error in results[4]["problem"]["errors"]}
    assert [error["field"] for error in results[5]["problem"]["errors"]] == ["body.items.5"]
    assert [error["field"] for error in results[6]["problem"]["errors"]] == ["body.items.6.password"]
    assert "correct horse" not in answer.text
    await api.bearer("bob")
    assert await count(client, api) == 3


async def test_an_atomic_batch_is_all_or_none(client, api):
    admin, atomic = await api.admin(), {"atomic": "true"}
    await api.register("bob")
    taken = await client.post("/users/batch", params=atomic, json={"items": items("ada", "bob")}, headers=admin)
    bad = await client.post("/users/batch", params=atomic, json={"items": [*items("ada"), {}]}, headers=admin)

    assert (taken.status_code, taken.json()["code"]) == (409, "batch_refused")
    assert [error["field"] for error in taken.json()["errors"]] == ["body.items.1.username"]
    assert bad.status_code == 422
    assert {error["field"] for error in bad.json()["errors"]} >= {"body.items.1.username", "body.items.1.password"}
    assert await count(client, api) == 2

    stored = await client.post("/users/batch", params=atomic, json={"items": items("ada", "cleo")}, headers=admin)
    assert (stored.status_code, [result["status"] for result in stored.json()["results"]]) == (201, [201, 201])
    assert await count(client, api) == 4


async def test_a_batch_under_a_key_is_carried_out_once(client, api):
    headers = {**(await api.admin()), **KEY}
    body = {"items": items("ada", "bob", "ada")}
    first = await client.post("/users/batch", json=body, headers=headers)
    again = await client.post("/users/batch", json=body, headers=headers)
    other = await client.post("/users/batch", json={"items": items("eve")}, headers=headers)

    assert (first.status_code, again.status_code, other.status_code) == (207, 207, 422)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert await count(client, api) == 3


async def test_the_answer_to_a_hostile_batch_stays_small(client, api):
    admin, hostile = await api.admin(), {"items": [{f"\u202e{'x' * 500}{n}": n for n in range(15)}] * 100}
    each = await client.post("/users/batch", json=hostile, headers=admin)
    atomic = await client.post("/users/batch", params={"atomic": "true"}, json=hostile, headers=admin)

    assert [len(result["problem"]["errors"]) for result in each.json()["results"]] == [8] * 100
    assert "\u202e" not in each.text
    assert len(atomic.json()["errors"]) == 32
    assert len(atomic.content) < 20_000


@pytest.mark.parametrize("body", [{}, {"items": []}, {"items": [{}] * 101}, {"items": {}}, {"items": [{}], "x": 1}, []])
async def test_a_batch_that_is_none_is_a_422(client, api, body):
    assert (await client.post("/users/batch", json=body, headers=await api.admin())).status_code == 422


async def test_a_batch_of_a_hundred_is_stored(client, api):
    names = [f"someone{number}" for number in range(100)]
    answer = await client.post("/users/batch", json={"items": items(*names)}, headers=await api.admin())

    assert {result["status"] for result in answer.json()["results"]} == {201}
    assert [result["user"]["username"] for result in answer.json()["results"]] == names
