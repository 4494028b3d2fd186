"""`GET /audit`: what admins read, and what no line of it tells."""

import pytest


@pytest.fixture
async def story(client, api):
    """Ada registers, changes and leaves; an admin brings her back. Return her record and the admin's headers."""
    ada = await api.register("ada", email="secret@hidden.org", full_name="Augusta")
    bearer, path = await api.bearer("ada"), f"/users/{ada['id']}"
    headers = {**bearer, "X-Request-ID": "r-1", "X-Forwarded-For": "203.0.113.9"}
    await client.patch(path, json={"full_name": "Countess", "password": "battery staple"}, headers=headers)
    await client.delete(path, headers=bearer)
    admin = await api.admin()
    assert (await client.post(f"{path}/restore", headers=admin)).status_code == 200
    return ada, admin


async def test_each_change_is_told_with_who_where_and_what(client, story):
    ada, admin = story
    answer = await client.get("/audit", params={"user": ada["id"]}, headers=admin)

    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    items = answer.json()["items"]
    found = [item for item in items if item["action"].startswith("user.")]
    assert [item["action"] for item in found] == ["user.restored", "user.deleted", "user.updated", "user.created"]
    restored, deleted, updated, created = found
    assert restored["actor_id"] not in (None, ada["id"])
    assert deleted["actor_id"] == ada["id"]
    assert created["actor_id"] is None
    assert {name: updated[name] for name in ("user_id", "actor_id", "request_id", "address", "before", "after")} == {
        "user_id": ada["id"],
        "actor_id": ada["id"],
        "request_id": "r-1",
        "address": "203.0.113.9",
        "before": {"full_name": "A***", "version": 1},
        "after": {"full_name": "C***", "version": 2, "password": "changed"},
    }
    assert created["after"]["email"] == "s***@h***.org"
    for secret in ("secret", "hidden", "Augusta", "Countess", "staple", "argon2"):
        assert secret not in answer.text


async def test_filters_and_pages(client, story):
    ada, admin = story

    async def actions(**params):
        answer = await client.get("/audit", params=params, headers=admin)
        assert answer.status_code == 200, answer.text
        return [item["action"] for item in answer.json()["items"]]

    assert await actions(action="user.deleted") == ["user.deleted"]
    assert await actions(actor=ada["id"], action="user.updated") == ["user.updated"]
    assert await actions(since="2999-01-01T00:00:00Z") == []
    numbers, cursor = [], ""
    while cursor is not None:
        page = (await client.get("/audit", params={"limit": 2, "cursor": cursor}, headers=admin)).json()
        numbers += [item["number"] for item in page["items"]]
        cursor = page["next"]
    assert numbers == sorted(set(numbers), reverse=True)
    assert len(numbers) >= 5


async def test_a_cursor_of_other_filters_or_of_the_users_is_refused(client, story):
    _, admin = story
    cursor = (await client.get("/audit", params={"limit": 1}, headers=admin)).json()["next"]
    of_users = (await client.get("/users", params={"limit": 1}, headers=admin)).json()["next"]

    for params in ({"cursor": cursor, "action": "user.created"}, {"cursor": of_users}, {"cursor": "x"}):
        answer = await client.get("/audit", params=params, headers=admin)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "cursor")


@pytest.mark.parametrize(
    "query", ["user=x", "actor=1", "action=A", "since=now", "limit=0", "limit=101", "x=1", "cursor=" + "A" * 257]
)
async def test_a_bad_query_is_a_422(client, api, query):
    answer = await client.get(f"/audit?{query}", headers=await api.admin())

    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
