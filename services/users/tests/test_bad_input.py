"""Bad input: the right 4xx as problem+json, nothing half written, and the service goes on."""

import json

import pytest

GOOD = {"username": "ada", "email": "ada@example.com", "password": "correct horse"}


async def post(client, body, content_type="application/json"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post("/users", content=content, headers={"Content-Type": content_type})


def fields_of(answer):
    return {error["field"] for error in answer.json()["errors"]}


async def assert_untouched(client, api):
    listed = await client.get("/users", headers=await api.admin())
    assert [user["username"] for user in listed.json()["items"]] == ["admin"]
    assert (await post(client, GOOD)).status_code == 201


BAD_VALUES = {
    "username": [
        None,
        7,
        ["ada"],
        {"$ne": 1},
        "",
        "ab",
        "a" * 33,
        "a b",
        "ada\x00",
        "ada\n",
        "\u0430da",
        "'; DROP TABLE users; --",
        "../../etc/passwd",
        "\ud800da",
        "a" * 900_000,
    ],
    "email": [
        None,
        7,
        "",
        "ada",
        "ada@localhost",
        "ada@example.com\x00",
        "\udfffda@example.com",
        "a" * 250 + "@example.com",
        "a" * 900_000,
    ],
    "password": [
        None,
        12345678,
        "short12",
        "x" * 129,
        "e\u0301e\u0301e\u0301e\u0301",
        "correct\x00horse",
        "correct\ud800horse",
        "ada@example.com",
        "x" * 900_000,
    ],
    "full_name": [
        7,
        "x" * 101,
        "a\x00b",
        "a\nb",
        "\ud800",
        {"deep": {"deeper": []}},
    ],
}


@pytest.mark.parametrize("field", BAD_VALUES)
async def test_a_bad_value_is_a_422_that_names_its_field(client, api, field):
    for value in BAD_VALUES[field]:
        answer = await post(client, {**GOOD, field: value})
        assert answer.status_code == 422, repr(value)[:60]
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.content) < 4000
        assert fields_of(answer) == {f"body.{field}"}, repr(value)[:60]
    await assert_untouched(client, api)


async def test_a_field_that_is_not_the_clients_is_a_422_that_names_it(client, api):
    for field in ("role", "is_admin", "id", "version", "password_hash", "x" * 10_000, "\x00", "\u20ac"):
        answer = await post(client, {**GOOD, field: "admin"})
        assert answer.status_code == 422
        assert len(answer.content) < 4000
        shown = "?" if field in ("\x00", "\u20ac") else field
        assert fields_of(answer) == {f"body.{shown}"[:200]}
    assert (await post(client, {**GOOD, "\ud800": "x"})).status_code == 422
    await assert_untouched(client, api)


async def test_every_bad_field_is_listed(client):
    answer = await post(client, {"username": "a", "email": "b", "password": "c", "x": 1})

    assert fields_of(answer) == {"body.username", "body.email", "body.password", "body.x"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b'{"username": "ada",}', 400),
        (b"\xff\xfe", 400),
        (b"null", 422),
        (b"[]", 422),
        (b'"ada"', 422),
        (b"7", 422),
        (b"NaN", 422),
        (b"[" * 100_000, 400),
        (b'{"username":' * 20_000, 400),
        (b"7" * 10_000, 400),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_body_that_is_no_object_is_refused(client, api, body, status):
    answer = await post(client, body)

    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    await assert_untouched(client, api)


async def test_deep_json_in_a_field_is_a_422(client, api):
    answer = await post(client, b'{"full_name":' + b"[" * 500 + b"]" * 500 + b"}")

    assert answer.status_code == 422
    await assert_untouched(client, api)


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "application/octet-stream"])
async def test_json_under_another_name_is_a_415(client, api, content_type):
    answer = await post(client, GOOD, content_type)

    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    await assert_untouched(client, api)


async def test_ten_megabytes_are_a_413(client, api):
    answer = await post(client, b'{"full_name": "' + b"x" * 10_000_000 + b'"}')

    assert answer.status_code == 413
    await assert_untouched(client, api)


@pytest.mark.parametrize("field", ["username", "email", "password"])
async def test_a_patch_that_nulls_what_is_required_changes_nothing(client, api, field):
    user = await api.register("ada")
    bearer = await api.bearer("ada")

    answer = await client.patch(f"/users/{user['id']}", json={"full_name": "x", field: None}, headers=bearer)

    assert answer.status_code == 422
    assert fields_of(answer) == {f"body.{field}"}
    assert (await client.get("/auth/me", headers=bearer)).json() == user


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"7", b'[{"op":"replace","path":"/role","value":"admin"}]'])
async def test_a_patch_that_is_no_object_is_a_422(client, api, body):
    user = await api.register("ada")
    headers = {**await api.bearer("ada"), "Content-Type": "application/merge-patch+json"}

    assert (await client.patch(f"/users/{user['id']}", content=body, headers=headers)).status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=1e9",
        "cursor=x",
        "cursor=AAAAAAAAAAAAAAAAAAAAAA",
        "cursor=%00",
        "cursor=" + "A" * 2049,
        "cursor=" + "A" * 100,
        "cursor=%ED%A0%80",
        "sort=password_hash",
        "sort=deleted_at",
        "role=root",
        "role=",
        "username=a%20b",
        "email=none",
        "q=%00",
        "q=%20",
        "q=" + "x" * 101,
        "verified=maybe",
        "created_after=yesterday",
        "created_after=2026-01-01T00:00:00",
        "created_before=0001-01-01T00:00:00%2B01:00",
        "created_before=9999-12-31T23:59:59-01:00",
        "fields=password_hash",
        "fields=id,",
        "fields=deleted_at",
        "count=2",
        "deleted=2",
        "password_hash=x",
    ],
)
async def test_a_bad_query_is_a_422(client, api, query):
    answer = await client.get(f"/users?{query}", headers=await api.admin())

    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize("path", ["/user", "/users/", "/users/x/y", "/auth", "/auth/token/x", "/%2e%2e/users", "/docs"])
async def test_an_unknown_path_is_a_404(client, path):
    answer = await client.get(path)

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("DELETE", "/users", "GET, HEAD, OPTIONS, POST"), ("GET", "/auth/token", "POST")]
)
async def test_a_wrong_method_is_a_405_with_allow(client, method, path, allow):
    answer = await client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "body",
    [{}, {"refresh_token": None}, {"refresh_token": ""}, {"refresh_token": "x" * 257}, {"refresh_token": "x", "y": 1}],
)
async def test_a_refresh_without_a_token_is_a_422(client, body):
    assert (await client.post("/auth/refresh", json=body)).status_code == 422


async def test_a_login_form_of_a_megabyte_is_refused_and_hostile_ones_are_401(client, api):
    await api.register("ada")
    for form in (
        b"username=ada&password=" + b"x" * 900_000,
        b"username=ada%00&password=correct+horse",
        b"username=%ff%fe&password=%ff",
        b"username=%ED%A0%80&password=%ED%A0%80",
        b"username='+OR+1=1--&password='+OR+1=1--",
    ):
        answer = await client.post(
            "/auth/token", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert answer.status_code == 401, form[:40]
    answer = await client.post("/auth/token", json={"username": "ada", "password": "correct horse"})
    assert 400 <= answer.status_code < 500
    await api.tokens("ada")
