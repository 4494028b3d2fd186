"""The routes of `/users`, through the whole application on memory."""

import asyncio
from dataclasses import replace

import pytest
from fastapi import Depends
from pydantic import SecretStr

from services.users.adapters.database import Store, get_db
from services.users.app import create
from services.users.domain.events import event_of
from services.users.model.listing import UserQuery
from shared.ids import is_id, new_id
from shared.testing.client import running

VIEW = {"id", "username", "email", "email_verified", "full_name", "role", "created_at", "updated_at", "version"}


@pytest.fixture
async def ada(api):
    return await api.register("Ada", email="ADA@Example.com", full_name="Ada L")


@pytest.fixture
async def as_ada(api, ada):
    return await api.bearer("ada")


async def test_registering_answers_with_the_record_and_where_it_is(client):
    body = {"username": "Ada", "email": "ADA@Example.com", "password": "correct horse"}
    answer = await client.post("/users", json=body)

    assert answer.status_code == 201
    user = answer.json()
    assert set(user) == VIEW
    assert is_id(user["id"])
    assert answer.headers["location"] == f"/users/{user['id']}"
    assert answer.headers["etag"] == '"v1"'
    assert answer.headers["cache-control"] == "no-store"
    expected = {"username": "Ada", "email": "ada@example.com", "full_name": None, "role": "user", "version": 1}
    assert {name: user[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "field"), [({"username": "ADA"}, "username"), ({"email": "ada@EXAMPLE.com"}, "email")]
)
async def test_what_is_taken_is_a_409_that_names_the_field(client, ada, values, field):
    body = {"username": "bob", "email": "bob@example.com", "password": "correct horse", **values}
    answer = await client.post("/users", json=body)

    assert answer.status_code == 409
    assert answer.json()["code"] == f"{field}_taken"
    assert [error["field"] for error in answer.json()["errors"]] == [f"body.{field}"]


async def test_of_racing_registrations_one_is_a_201(client):
    body = {"username": "ada", "email": "ada@example.com", "password": "correct horse"}
    answers = await asyncio.gather(*(client.post("/users", json=body) for _ in range(10)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 9


async def test_the_owner_reads_its_record(client, ada, as_ada):
    answer = await client.get(f"/users/{ada['id']}", headers=as_ada)

    assert (answer.status_code, answer.json()) == (200, ada)
    assert answer.headers["etag"] == '"v1"'
    assert answer.headers["cache-control"] == "no-store"


async def test_head_has_the_headers_of_get(client, ada, as_ada):
    path = f"/users/{ada['id']}"
    get, head = await client.get(path, headers=as_ada), await client.head(path, headers=as_ada)

    assert head.status_code == 200
    for name in ("etag", "content-type", "content-length", "cache-control"):
        assert head.headers[name] == get.headers[name]


async def test_if_none_match(client, ada, as_ada):
    expected = {304: ['"v1"', 'W/"v1"', '"v9", "v1"', "*"], 200: ['"v2"', "v1", '"', '"v01"', "", f'"v{"9" * 20}"']}
    for status, headers in expected.items():
        for header in headers:
            answer = await client.get(f"/users/{ada['id']}", headers={**as_ada, "If-None-Match": header})
            assert (answer.status_code, answer.headers["etag"]) == (status, '"v1"'), header
            assert bool(answer.content) == (status == 200)


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE", "OPTIONS", "HEAD"])
async def test_what_is_no_id_is_a_404(client, api, method):
    body = {"username": "ada", "email": "ada@example.com"} if method in ("PUT", "PATCH") else None
    admin = await api.admin()
    for text in ("1", "me", "00000000-0000-4000-8000-000000000000", "..%2fx", "%00", "%ed%a0%80", "x" * 500):
        assert (await client.request(method, f"/users/{text}", headers=admin, json=body)).status_code == 404, text


async def test_a_merge_patch_changes_what_it_names(client, ada, as_ada):
    path = f"/users/{ada['id']}"
    for content_type in ("application/merge-patch+json", "application/json"):
        answer = await client.patch(
            path, content=b'{"full_name": null}', headers={**as_ada, "Content-Type": content_type}
        )
        assert answer.status_code == 200
        assert answer.headers["etag"] == '"v2"'

    after = answer.json()
    assert after["updated_at"] > ada["updated_at"]
    assert {**after, "updated_at": ada["updated_at"]} == {**ada, "full_name": None, "version": 2}
    assert (await client.get(path, headers=as_ada)).json() == after


async def test_a_replacement_clears_what_it_leaves_out(client, ada, as_ada):
    answer = await client.put(f"/users/{ada['id']}", json={"username": "ada", "email": "a@b.org"}, headers=as_ada)

    assert answer.status_code == 200
    after = answer.json()
    assert (after["username"], after["email"], after["full_name"], after["role"]) == ("ada", "a@b.org", None, "user")
    assert answer.headers["etag"] == '"v2"'


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_stale_if_match_is_a_412_and_changes_nothing(client, ada, as_ada, method):
    path = f"/users/{ada['id']}"
    body = None if method == "DELETE" else {"username": "x-x", "email": "x@example.com"}
    for header in ('"v2"', 'W/"v1"', "v1", ""):
        answer = await client.request(method, path, headers={**as_ada, "If-Match": header}, json=body)
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")

    assert (await client.get(path, headers=as_ada)).json() == ada
    answer = await client.request(method, path, headers={**as_ada, "If-Match": '"v7", "v1"'}, json=body)
    assert answer.status_code == (204 if method == "DELETE" else 200)


async def test_if_match_is_required_where_settings_say_so(make_settings, api_of):
    async with running(create(make_settings(require_if_match=True))) as client:
        api = api_of(client)
        user = await api.register("ada")
        bearer = await api.bearer("ada")
        answer = await client.patch(f"/users/{user['id']}", json={"full_name": "x"}, headers=bearer)
        assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
        answer = await client.patch(
            f"/users/{user['id']}", json={"full_name": "x"}, headers={**bearer, "If-Match": '"v1"'}
        )
        assert answer.status_code == 200


async def test_a_deleted_user_is_gone_and_so_are_its_tokens(client, ada, as_ada, api):
    path = f"/users/{ada['id']}"
    answer = await client.delete(path, headers=as_ada)

    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.get("/auth/me", headers=as_ada)).status_code == 401
    assert (await client.get(path, headers=as_ada)).status_code == 401
    assert (await client.get(path, headers=await api.admin())).status_code == 404
    assert (await client.patch(path, json={"full_name": "x"}, headers=as_ada)).status_code == 401
    login = await client.post("/auth/token", data={"username": "ada", "password": "correct horse"})
    assert login.status_code == 401
    await api.register("ada", email="ADA@example.com")


async def test_a_deleted_user_comes_back_with_its_password(client, ada, as_ada, api):
    path = f"/users/{ada['id']}"
    await client.delete(path, headers=as_ada)
    admin = await api.admin()

    answer = await client.post(f"{path}/restore", headers=admin)

    assert (answer.status_code, answer.headers["etag"]) == (200, '"v2"')
    assert {**answer.json(), "updated_at": ada["updated_at"]} == {**ada, "version": 2}
    assert (await client.get(path, headers=await api.bearer("ada"))).json() == answer.json()
    assert (await client.get("/auth/me", headers=as_ada)).status_code == 401
    assert (await client.post(f"{path}/restore", headers=admin)).status_code == 404


async def test_a_restored_name_that_is_taken_is_a_409(client, ada, as_ada, api):
    await client.delete(f"/users/{ada['id']}", headers=as_ada)
    await api.register("ada", email="other@example.com")

    answer = await client.post(f"/users/{ada['id']}/restore", headers=await api.admin())

    assert (answer.status_code, answer.json()["code"]) == (409, "username_taken")


@pytest.mark.parametrize("is_deleted_first", [True, False])
async def test_what_is_purged_cannot_be_restored(client, ada, as_ada, api, is_deleted_first):
    path, admin = f"/users/{ada['id']}", await api.admin()
    if is_deleted_first:
        await client.delete(path, headers=as_ada)

    answer = await client.delete(path, params={"purge": "true"}, headers=admin)

    assert (answer.status_code, answer.content) == (204, b"")
    assert (await client.post(f"{path}/restore", headers=admin)).status_code == 404
    assert (await client.delete(path, params={"purge": "true"}, headers=admin)).status_code == 404


async def test_an_owner_cannot_purge(client, ada, as_ada):
    path = f"/users/{ada['id']}"

    assert (await client.delete(path, params={"purge": "true"}, headers=as_ada)).status_code == 403
    assert (await client.get(path, headers=as_ada)).json() == ada


async def test_options_names_the_methods(client, ada):
    for path, allow in (
        (f"/users/{ada['id']}", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/users", "GET, HEAD, OPTIONS, POST"),
    ):
        answer = await client.options(path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")
        refused = await client.request("TRACE", path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allow)


async def test_a_role_from_a_user_is_a_403_and_from_an_admin_a_change(client, ada, as_ada, api):
    path = f"/users/{ada['id']}"
    bodies = {"PATCH": {"role": "admin"}, "PUT": {"username": "Ada", "email": "ada@example.com", "role": "admin"}}
    for method, body in bodies.items():
        assert (await client.request(method, path, json=body, headers=as_ada)).status_code == 403
    assert (await client.get(path, headers=as_ada)).json()["role"] == "user"

    answer = await client.patch(path, json={"role": "admin"}, headers=await api.admin())
    assert (answer.status_code, answer.json()["role"]) == (200, "admin")


async def test_another_role_ends_the_sessions_of_the_old_one(client, ada, as_ada, api):
    admin = await api.admin()
    await client.patch(f"/users/{ada['id']}", json={"role": "admin"}, headers=admin)
    assert (await client.get(f"/users/{ada['id']}", headers=as_ada)).status_code == 401
    tokens = await api.tokens("ada")
    as_admin = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await client.get("/users", headers=as_admin)).status_code == 200

    await client.patch(f"/users/{ada['id']}", json={"role": "user"}, headers=admin)

    refused = await client.get("/users", headers=as_admin)
    assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")
    body = {"refresh_token": tokens["refresh_token"]}
    assert (await client.post("/auth/refresh", json=body)).status_code == 401
    assert (await client.get("/users", headers=admin)).status_code == 200


async def test_a_write_goes_by_the_stored_role_not_the_tokens(make_settings, api_of):
    app = create(make_settings())
    async with running(app) as client:
        api = api_of(client)
        ada, bob = await api.register("ada"), await api.register("bob")
        admin = await api.admin()
        await client.patch(f"/users/{ada['id']}", json={"role": "admin"}, headers=admin)
        as_admin = await api.bearer("ada")
        users = app.fastapi.state.parts.store.users
        stored = await users.get(ada["id"])
        changed = replace(stored, role="user", version=stored.version + 1)
        # The end of the sessions has not reached this replica.
        await users.replace(changed, event_of(changed, "updated"), expected_version=stored.version)
        assert (await client.get("/users", headers=as_admin)).status_code == 200

        assert (await client.delete(f"/users/{bob['id']}", headers=as_admin)).status_code == 404
        assert (await client.patch(f"/users/{ada['id']}", json={"role": "admin"}, headers=as_admin)).status_code == 403
        await client.delete(f"/users/{bob['id']}", headers=admin)
        assert (await client.post(f"/users/{bob['id']}/restore", headers=as_admin)).status_code == 403
        assert (await client.delete(f"/users/{ada['id']}/sessions", headers=as_admin)).status_code == 403


async def test_a_new_password_ends_the_other_sessions(client, ada, as_ada, api):
    elsewhere = await api.tokens("ada")

    answer = await client.patch(f"/users/{ada['id']}", json={"password": "battery staple"}, headers=as_ada)

    assert answer.status_code == 200
    assert (await client.get("/auth/me", headers=as_ada)).status_code == 200
    refused = await client.post("/auth/refresh", json={"refresh_token": elsewhere["refresh_token"]})
    assert refused.status_code == 401
    at_once = await client.get("/auth/sessions", headers={"Authorization": f"Bearer {elsewhere['access_token']}"})
    assert (at_once.status_code, at_once.json()["code"]) == (401, "session_ended")
    old = await client.post("/auth/token", data={"username": "ada", "password": "correct horse"})
    assert old.status_code == 401
    await api.tokens("ada", "battery staple")


async def test_an_admin_lists_everybody_page_by_page(client, api):
    users = [await api.register() for _ in range(5)]
    admin = await api.admin()

    found, cursor, pages = [], "", 0
    while cursor is not None:
        answer = await client.get("/users", params={"limit": 2, "cursor": cursor}, headers=admin)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        found += answer.json()["items"]
        cursor = answer.json()["next"]
        pages += 1

    assert pages == 3
    assert [user["username"] for user in found] == ["admin", *(user["username"] for user in users)]
    assert found[1:] == users


async def test_a_page_has_20_users_unless_asked_otherwise(client, api):
    for _ in range(21):
        await api.register()
    answer = await client.get("/users", headers=await api.admin())

    assert len(answer.json()["items"]) == 20
    assert answer.json()["next"]


async def test_get_db_hands_out_the_one_store_of_the_process(make_settings, api_of):
    app = create(make_settings())
    seen: list[Store] = []

    @app.fastapi.get("/seen")
    async def look(store: Store = Depends(get_db)) -> int:  # noqa: B008 - how FastAPI is told
        seen.append(store)
        return (await store.users.list(UserQuery(is_counted=True))).count

    async with running(app) as client:
        await api_of(client).register("ada")
        assert [(await client.get("/seen")).json() for _ in range(2)] == [2, 2]

    assert seen[0] is seen[1]


async def test_registrations_are_counted(client, api):
    await api.register()
    await api.tokens("admin", "admin-secret")
    await client.post("/auth/token", data={"username": "admin", "password": "wrong"})
    lines = (await client.get("/metrics")).text.splitlines()

    # The first admin is one of the two.
    assert "users_created_total 2.0" in lines
    assert 'logins_total{result="ok"} 1.0' in lines
    assert 'logins_total{result="refused"} 1.0' in lines
    assert any(line.startswith("outbox_backlog ") for line in lines)


async def test_the_whole_story_on_postgres(make_settings, api_of, postgres_url):
    settings = make_settings(database_url=SecretStr(postgres_url))
    async with running(create(settings)) as one, running(create(settings)) as two:
        user = await api_of(one).register("ada", full_name="Ada")
        bearer = await api_of(two).bearer("ada")
        path = f"/users/{user['id']}"
        assert (await one.get("/auth/me", headers=bearer)).json() == user
        answer = await two.patch(path, json={"full_name": None}, headers={**bearer, "If-Match": '"v1"'})
        assert answer.status_code == 200
        # Two replicas on memory:// hear nothing of each other, so the store is asked.
        asking = {**bearer, "If-None-Match": '"v2"', "Cache-Control": "no-cache"}
        assert (await one.get(path, headers=asking)).status_code == 304
        assert len((await one.get("/users", headers=await api_of(two).admin())).json()["items"]) == 2
        assert (await one.post("/auth/logout", headers=bearer)).status_code == 204
        assert (await two.get("/auth/me", headers=bearer)).status_code == 401
        assert (await one.get(f"/users/{new_id()}", headers=await api_of(one).admin())).status_code == 404
        assert (await one.get("/ready")).json() == {"state": "ready", "checks": {"postgres": "ok"}}


async def test_what_is_over_is_forgotten_while_the_service_runs(make_settings, api_of):
    day_s = 24 * 3600
    settings = make_settings(cleaning_every_s=0.01, deleted_kept_days=0.2 / day_s, audit_kept_days=0.2 / day_s)
    async with running(create(settings)) as client:
        api = api_of(client)
        user = await api.register("ada")
        admin = await api.admin()
        await client.delete(f"/users/{user['id']}", headers=admin)

        async with asyncio.timeout(10):
            while (await client.get("/users?deleted=true", headers=admin)).json()["items"]:
                await asyncio.sleep(0.01)
            while (await client.get("/audit", headers=admin)).json()["items"]:
                await asyncio.sleep(0.01)

        assert (await client.post(f"/users/{user['id']}/restore", headers=admin)).status_code == 404
