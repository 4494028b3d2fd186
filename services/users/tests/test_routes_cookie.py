"""The refresh token in a cookie: who gets it, who may use it, and what keeps other pages away."""

from http.cookies import SimpleCookie

import pytest

from services.users.app import create
from services.users.routes.cookie import NAME
from shared.testing.client import running

OURS = {"X-CSRF": "1", "Origin": "http://test"}
FORM = {"username": "ada", "password": "correct horse", "cookie": "true"}


def cookie_of(answer):
    """Return the one cookie that an answer sets."""
    (header,) = answer.headers.get_list("set-cookie")
    ((name, morsel),) = SimpleCookie(header).items()
    assert name == NAME
    return morsel


@pytest.fixture
async def log_in(client, api):
    await api.register("ada")

    async def post(**headers):
        answer = await client.post("/auth/token", data=FORM, headers={"Host": "test", **OURS, **headers})
        # Sent by hand below: on plain http the client itself rightly keeps a Secure cookie back.
        client.cookies.clear()
        return answer

    return post


def sent(morsel, **headers):
    return {"Host": "test", "Cookie": f"{NAME}={morsel.value}", **OURS, **headers}


async def test_a_login_by_cookie_keeps_the_refresh_token_from_scripts(log_in):
    answer = await log_in()

    assert answer.status_code == 200
    assert set(answer.json()) == {"access_token", "token_type", "expires_in"}
    morsel = cookie_of(answer)
    assert (morsel["path"], morsel["samesite"], morsel["secure"], morsel["httponly"]) == ("/", "strict", True, True)
    assert morsel["domain"] == ""
    assert int(morsel["max-age"]) == 30 * 24 * 3600


async def test_refreshing_by_cookie_rotates_the_cookie(client, log_in):
    first = cookie_of(await log_in())

    answer = await client.post("/auth/refresh", headers=sent(first))

    assert answer.status_code == 200
    assert set(answer.json()) == {"access_token", "token_type", "expires_in"}
    second = cookie_of(answer)
    assert second.value != first.value
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await client.get("/auth/me", headers=bearer)).status_code == 200
    again = await client.post("/auth/refresh", headers=sent(first))
    assert cookie_of(again).value == second.value


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-CSRF": ""}, "csrf_header_missing"),
        ({"Origin": ""}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "http://test.evil.example"}, "origin_not_allowed"),
        ({"Origin": "http://test:8080"}, "origin_not_allowed"),
    ],
)
async def test_another_page_neither_uses_nor_plants_the_cookie(client, log_in, headers, code):
    first = cookie_of(await log_in())

    for answer in (
        await client.post("/auth/refresh", headers=sent(first, **headers)),
        await client.post("/auth/token", data=FORM, headers={"Host": "test", **OURS, **headers}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, code)
        assert "set-cookie" not in answer.headers
    assert (await client.post("/auth/refresh", headers=sent(first))).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:3000"},
        {"Origin": "https://API.example", "X-Forwarded-Host": "api.example"},
        {"Origin": "http://api.example:8080", "X-Forwarded-Host": "api.example:8080"},
    ],
)
async def test_our_own_and_listed_pages_use_the_cookie(client, log_in, headers):
    first = cookie_of(await log_in())

    assert (await client.post("/auth/refresh", headers=sent(first, **headers))).status_code == 200


async def test_origins_are_a_setting(make_settings, api_of):
    async with running(create(make_settings(origins="https://app.example, https://b.example"))) as client:
        await api_of(client).register("ada")
        for origin, status in (("https://app.example", 200), ("http://localhost:3000", 403)):
            answer = await client.post("/auth/token", data=FORM, headers={"X-CSRF": "1", "Origin": origin})
            assert answer.status_code == status


async def test_the_body_needs_no_rule_and_sets_no_cookie(client, api):
    await api.register("ada")
    tokens = await api.tokens("ada")

    answer = await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})

    assert answer.json()["refresh_token"]
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("value", ["", "x", "x" * 5000])
async def test_a_cookie_that_is_none_is_refused(client, value):
    answer = await client.post("/auth/refresh", headers={"Host": "test", "Cookie": f"{NAME}={value}", **OURS})

    assert answer.status_code == (401 if value else 422)


async def test_logging_out_clears_the_cookie(client, log_in):
    answer = await log_in()
    bearer = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    out = await client.post("/auth/logout", headers=sent(cookie_of(answer), **bearer))

    assert out.status_code == 204
    morsel = cookie_of(out)
    assert (morsel.value, morsel["max-age"], morsel["secure"]) == ("", "0", True)
