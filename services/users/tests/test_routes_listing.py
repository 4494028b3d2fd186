"""`GET /users`: filters, sorts, projections, counts and cursors as an admin uses them, on memory and on PostgreSQL."""

import pytest
from pydantic import SecretStr

from services.users.app import create
from services.users.routes.cursors import Cursors
from shared.errors import InvalidInput
from shared.testing.client import running


@pytest.fixture(params=["memory", "postgres"])
def database_url(request):
    return "memory://" if request.param == "memory" else request.getfixturevalue("postgres_url")


@pytest.fixture
async def client(database_url, make_settings):
    """The service on each store, in the place of the one on memory."""
    async with running(create(make_settings(database_url=SecretStr(database_url)))) as found:
        yield found


@pytest.fixture
async def listed(client, api):
    """Ask for a page as an admin, beside ada, Bob and cleo."""
    for name, values in {
        "ada": {"full_name": "Ada Lovelace"},
        "Bob": {},
        "cleo": {"email": "adele@example.com"},
    }.items():
        await api.register(name, **values)
    admin = await api.admin()

    async def get(**params):
        answer = await client.get("/users", params=params, headers=admin)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return get


def names(page):
    return [user["username"] for user in page["items"]]


async def test_each_filter_limits(listed):
    everybody = (await listed())["items"]

    assert names({"items": everybody}) == ["admin", "ada", "Bob", "cleo"]
    assert names(await listed(role="admin")) == ["admin"]
    assert names(await listed(username="BOB")) == ["Bob"]
    assert names(await listed(email="ADELE@example.com")) == ["cleo"]
    assert names(await listed(verified="false")) == ["admin", "ada", "Bob", "cleo"]
    assert names(await listed(verified="true")) == []
    assert names(await listed(created_after=everybody[1]["created_at"])) == ["Bob", "cleo"]
    assert names(await listed(created_before=everybody[1]["created_at"])) == ["admin"]
    assert names(await listed(q="AD")) == ["admin", "ada", "cleo"]
    assert names(await listed(q="love")) == ["ada"]
    assert names(await listed(q="AD", role="user", sort="-username")) == ["cleo", "ada"]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("created_at", ["admin", "ada", "Bob", "cleo"]),
        ("-created_at", ["cleo", "Bob", "ada", "admin"]),
        ("username", ["ada", "admin", "Bob", "cleo"]),
        ("-email", ["Bob", "admin", "cleo", "ada"]),
    ],
)
async def test_each_sort_goes_over_all_pages(listed, sort, expected):
    found, cursor = [], ""
    while cursor is not None:
        page = await listed(sort=sort, limit=3, cursor=cursor)
        found += names(page)
        cursor = page["next"]

    assert found == expected


async def test_fields_are_a_projection(listed):
    page = await listed(fields="username,id", limit=1)

    assert [list(user) for user in page["items"]] == [["id", "username"]]
    assert page["next"]


async def test_a_count_is_of_all_pages_and_only_when_asked_for(listed):
    assert "count" not in await listed()
    assert (await listed(count="true", limit=1))["count"] == 4
    assert (await listed(count="true", q="ada"))["count"] == 1


async def test_an_admin_lists_the_deleted_and_nobody_else_sees_them(client, api, listed):
    gone = (await listed(username="ada"))["items"][0]
    await client.delete(f"/users/{gone['id']}", headers=await api.admin())

    assert names(await listed()) == ["admin", "Bob", "cleo"]
    page = await listed(deleted="true", sort="-deleted_at", q="love")
    assert [{**user, "deleted_at": ""} for user in page["items"]] == [{**gone, "deleted_at": ""}]
    assert page["items"][0]["deleted_at"].endswith("Z")
    assert names(await listed(deleted="true", username="bob")) == []


async def test_a_cursor_belongs_to_its_filters_and_sort(client, api, listed):
    cursor = (await listed(sort="username", limit=1))["next"]
    admin = await api.admin()
    flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")

    for params in (
        {"sort": "-username", "cursor": cursor},
        {"cursor": cursor},
        {"sort": "username", "cursor": cursor, "role": "user"},
        {"sort": "username", "cursor": cursor, "deleted": "true"},
        {"sort": "username", "cursor": flipped},
        {"sort": "username", "cursor": cursor[:-4]},
    ):
        answer = await client.get("/users", params=params, headers=admin)
        assert (answer.status_code, [error["code"] for error in answer.json()["errors"]]) == (422, ["cursor"])
    assert names(await listed(sort="username", cursor=cursor, limit=2, fields="username", count="true"))


async def test_head_has_the_headers_of_the_list(client, api, listed):
    admin = await api.admin()
    get, head = await client.get("/users", headers=admin), await client.head("/users", headers=admin)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_cursor_is_read_under_its_key_and_scope_only():
    cursors = Cursors(b"k" * 32)
    cursor = cursors.write(b"scope", ["é", 1])

    assert cursors.read(b"scope", cursor) == ["é", 1]
    for other, scope, text in (
        (cursors, b"scop", cursor),
        (Cursors(b"x" * 32), b"scope", cursor),
        (cursors, b"scope", cursor + "A"),
        (cursors, b"scope", ""),
        (cursors, b"scope", "é"),
    ):
        with pytest.raises(InvalidInput):
            other.read(scope, text)
