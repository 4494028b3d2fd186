"""Reading one user: the short way answers as the framework does, from memory, and never what is known to be over."""

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx2
import pytest
from pydantic import SecretStr

from services.users.app import create
from services.users.routes.reads import HotReads, asks_the_store
from shared.bus.memory import broker_named
from shared.cache.entries import Found
from shared.ids import new_id
from shared.middleware import RequestLog
from shared.testing.bus_probe import eventually
from shared.testing.client import running


@pytest.fixture
def app(make_settings):
    return create(make_settings())


@pytest.fixture
async def client(app):
    async with running(app) as found:
        yield found


@pytest.fixture
def asked(app, client, monkeypatch):
    """Ids that the store was asked for."""
    users = app.fastapi.state.parts.store.users._users
    found, read_json = [], users.read_json

    async def counted(user_id):
        found.append(user_id)
        return await read_json(user_id)

    monkeypatch.setattr(users, "read_json", counted)
    return found


def forget(app):
    app.fastapi.state.parts.reads._cache.flush()


async def both_ways(client, path, method="GET", **headers):
    """The answers by the short way and by the framework, which takes what has a query string."""
    fixed = {"X-Request-ID": "the-same", **headers}
    return await client.request(method, path, headers=fixed), await client.request(method, f"{path}?x", headers=fixed)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"If-None-Match": '"v1"'},
        {"If-None-Match": 'W/"v9", W/"v1"'},
        {"If-None-Match": "*"},
        {"If-None-Match": '"v2"'},
        {"If-None-Match": "v1"},
        {"Cache-Control": "no-cache"},
        {"Authorization": ""},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic eDp5"},
    ],
)
async def test_the_short_way_answers_as_the_framework_does(client, api, method, headers):
    user = await api.register("ada", full_name='Ada "λ" \\ <b>\u200d</b> 😀')
    sent = {**await api.bearer("ada"), **headers}

    for _ in range(2):
        short, framework = await both_ways(client, f"/users/{user['id']}", method, **sent)
        assert (short.status_code, dict(short.headers)) == (framework.status_code, dict(framework.headers))
        assert short.content == (framework.content if method == "GET" else b"") or short.status_code >= 400
        if short.status_code == 200 and method == "GET":
            assert short.json() == user


@pytest.mark.parametrize("which", ["another's", "nobody's", "no id", "not version 7", "upper case"])
async def test_to_others_there_is_no_such_user_either_way(client, api, which):
    user = await api.register("ada")
    await api.register("eve")
    paths = {
        "another's": user["id"],
        "nobody's": new_id(),
        "no id": "x" * 36,
        "not version 7": user["id"][:14] + "4" + user["id"][15:],
        "upper case": user["id"].upper(),
    }
    readers = {"eve": await api.bearer("eve")} | ({} if which == "another's" else {"admin": await api.admin()})
    for headers in readers.values():
        for _ in range(2):
            short, framework = await both_ways(client, f"/users/{paths[which]}", **headers)
            assert (short.status_code, dict(short.headers)) == (404, dict(framework.headers))
            assert short.content == framework.content


async def test_a_record_is_asked_for_once_and_known_to_admins_too(client, api, app, asked):
    user = await api.register("ada")
    forget(app)
    for headers in (await api.bearer("ada"), await api.admin()):
        for _ in range(3):
            assert (await client.get(f"/users/{user['id']}", headers=headers)).json() == user
    assert asked == [user["id"]]


async def test_nobody_is_remembered_for_a_while(client, api, asked):
    missing, admin = new_id(), await api.admin()
    for _ in range(3):
        assert (await client.get(f"/users/{missing}", headers=admin)).status_code == 404
    assert asked == [missing]


async def test_a_client_may_ask_the_store(client, api, asked):
    user = await api.register("ada")
    headers = {**await api.bearer("ada"), "Cache-Control": "no-cache"}
    for _ in range(3):
        assert (await client.get(f"/users/{user['id']}", headers=headers)).json() == user
    assert asked == [user["id"]] * 3


@pytest.mark.parametrize(
    ("header", "asks"),
    [
        ("no-cache", True),
        ("No-Cache", True),
        ("max-age=60, no-cache", True),
        ("max-age=0", True),
        ("no-store", True),
        ("", False),
        ("max-age=60", False),
        ("x-no-cache", False),
    ],
)
def test_which_wishes_ask_the_store(header, asks):
    assert asks_the_store(header) is asks


async def test_a_writer_reads_what_it_wrote_without_asking_the_store(client, api, asked):
    user = await api.register("ada")
    path, headers = f"/users/{user['id']}", await api.bearer("ada")
    for name in ("Ada", "Ada Lovelace"):
        changed = await client.patch(path, json={"full_name": name}, headers=headers)
        read = await client.get(path, headers=headers)
        assert read.content == changed.content
        assert read.headers["etag"] == changed.headers["etag"]
    assert asked == []


async def test_what_was_deleted_is_gone_and_what_was_restored_is_back(client, api):
    user = await api.register("ada")
    path, headers, admin = f"/users/{user['id']}", await api.bearer("ada"), await api.admin()
    assert (await client.get(path, headers=admin)).status_code == 200
    assert (await client.delete(path, headers=headers)).status_code == 204
    assert (await client.get(path, headers=admin)).status_code == 404
    assert (await client.post(f"{path}/restore", headers=admin)).status_code == 200
    assert (await client.get(path, headers=admin)).json()["version"] == 2


async def test_a_stale_answer_says_so(client, api, app):
    user = await api.register("ada")
    path, headers = f"/users/{user['id']}", await api.bearer("ada")
    parts = app.fastapi.state.parts

    class Stale:
        def peek(self, _):
            return None

        async def read(self, *_, **__):
            return Found(b"{}", 7, age_s=42.7, is_stale=True)

    app.fastapi.state.parts = replace(parts, reads=Stale())
    for answer in await both_ways(client, path, **headers):
        assert answer.headers["age"] == "42"
        assert answer.headers["cache-status"] == 'users; hit; detail="the store is away"'
        assert (answer.status_code, answer.headers["etag"]) == (200, '"v7"')
    app.fastapi.state.parts = parts
    assert "age" not in (await client.get(path, headers=headers)).headers


async def test_the_short_way_is_counted_and_logged_as_the_route(client, api):
    user = await api.register("ada")
    headers = await api.bearer("ada")
    await client.get(f"/users/{user['id']}", headers=headers)
    await client.get(f"/users/{user['id']}?x", headers=headers)
    await client.get(f"/users/{new_id()}", headers=headers)
    text = (await client.get("/metrics")).text
    assert 'requests_total{method="GET",route="/users/{user_id}",status="200"} 2.0' in text
    assert 'requests_total{method="GET",route="/users/{user_id}",status="404"} 1.0' in text
    # A busy machine may let what is kept grow old between the two.
    hits = re.search(r'cache_reads_total{cache="records",result="hits"} (\d)', text)
    assert hits is not None
    assert 1 <= int(hits[1]) <= 2


@pytest.mark.parametrize(("flags", "is_short"), [("00", True), ("01", False), ("03", False)])
async def test_a_request_whose_span_is_exported_goes_to_the_framework(app, client, api, flags, is_short):
    user = await api.register("ada")
    headers = {**await api.bearer("ada"), "traceparent": f"00-{'a' * 32}-{'b' * 16}-{flags}"}
    came = []

    async def framework(scope, receive, send):
        came.append(scope["path"])
        await app.fastapi(scope, receive, send)

    hot = HotReads(framework, app.fastapi.state, traces=True)
    transport = httpx2.ASGITransport(app=RequestLog(hot))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service.test") as traced:
        assert (await traced.get(f"/users/{user['id']}", headers=headers)).json() == user
    assert came == ([] if is_short else [f"/users/{user['id']}"])


async def test_other_methods_and_paths_go_to_the_framework(client, api):
    user = await api.register("ada")
    headers = await api.bearer("ada")
    assert (await client.options(f"/users/{user['id']}")).headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"
    assert (await client.post(f"/users/{user['id']}", headers=headers)).status_code == 405
    assert (await client.get(f"/users/{user['id']}/", headers=headers)).status_code == 404


@pytest.fixture
async def replicas(make_settings, postgres_url, redis_url):
    """Two replicas on one database and one bus."""
    broker = broker_named("reads")
    settings = make_settings(
        database_url=SecretStr(postgres_url), nats_url=SecretStr("memory://reads"), redis_url=SecretStr(redis_url)
    )
    async with AsyncExitStack() as stack:
        apps = [create(settings) for _ in range(2)]
        clients = [await stack.enter_async_context(running(app)) for app in apps]
        lines = [app.fastapi.state.parts.reads._cache._line for app in apps]
        await eventually(lambda: all(line._vouched_at > 0 for line in lines))
        yield clients
    del broker


async def test_another_replica_answers_what_was_written_within_a_second(replicas, api_of):
    one, two = replicas
    user = await api_of(one).register("ada")
    path, headers, admin = f"/users/{user['id']}", await api_of(one).bearer("ada"), await api_of(one).admin()

    async def seen(status, full_name=None):
        answer = await two.get(path, headers=admin)
        return (answer.status_code, answer.json().get("full_name")) == (status, full_name)

    assert await seen(200)
    for n in range(5):
        await one.patch(path, json={"full_name": f"name {n}"}, headers=headers)
        await eventually(lambda n=n: seen(200, f"name {n}"), timeout_s=1)
    assert (await one.delete(path, headers=headers)).status_code == 204
    await eventually(lambda: seen(404), timeout_s=1)
    assert (await one.post(f"{path}/restore", headers=admin)).status_code == 200
    await eventually(lambda: seen(200, "name 4"), timeout_s=1)


async def test_many_readers_and_a_writer_never_see_a_version_again_that_was_left_behind(replicas, api_of):
    one, two = replicas
    user = await api_of(one).register("ada")
    path, headers = f"/users/{user['id']}", await api_of(one).bearer("ada")
    done = asyncio.Event()

    async def reader(client):
        versions = []
        while not done.is_set():
            versions.append((await client.get(path, headers=headers)).json()["version"])
            await asyncio.sleep(0)  # an answer from memory lets nobody else have a turn
        return versions

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(reader(client)) for client in (one, one, two, two)]
        for n in range(30):
            changed = await one.patch(path, json={"full_name": f"n{n}"}, headers=headers)
            assert (await one.get(path, headers=headers)).content == changed.content
        done.set()
    for task in readers:
        assert task.result() == sorted(task.result())
