"""The routes of `/auth` and the public keys, through the whole application on memory."""

import jwt
import pytest

from services.users.app import create
from services.users.domain import sessions
from shared.ids import new_id
from shared.testing.client import running
from shared.testing.tokens import TokenMint


async def test_a_login_gives_bearer_tokens_that_no_cache_keeps(client, api):
    await api.register("ada")
    answer = await client.post(
        "/auth/token", data={"grant_type": "password", "username": "ada", "password": "correct horse", "scope": "x"}
    )

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert set(body) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert (body["token_type"], body["expires_in"]) == ("bearer", 600)


async def test_unknown_users_and_wrong_passwords_get_the_same_answer(client, api):
    await api.register("ada")
    answers = [
        await client.post("/auth/token", data={"username": name, "password": "wrong password"})
        for name in ("ada", "ada@example.com", "nobody", "nobody@example.com")
    ]

    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len({tuple(sorted({**a.json(), "request_id": ""}.items())) for a in answers}) == 1


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"username": "ada"},
        {"username": "", "password": "x"},
        {"username": "ada", "password": ""},
        {"username": "a" * 255, "password": "x"},
        {"username": "ada", "password": "x", "grant_type": "client_credentials"},
    ],
)
async def test_a_form_that_is_not_whole_is_a_422(client, form):
    answer = await client.post("/auth/token", data=form)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_failed_logins_of_an_address_are_limited(make_settings, api_of):
    async with running(create(make_settings(failed_logins_max=3))) as client:
        await api_of(client).register("ada")

        async def attempt(address, password="wrong"):
            return await client.post(
                "/auth/token", data={"username": "ada", "password": password}, headers={"X-Forwarded-For": address}
            )

        assert [(await attempt("192.0.2.1")).status_code for _ in range(4)] == [401, 401, 401, 429]
        blocked = await attempt("192.0.2.1", "correct horse")
        assert (blocked.status_code, blocked.json()["code"]) == (429, "too_many_failed_logins")
        assert 0 < int(blocked.headers["retry-after"]) <= 600
        assert (await attempt("192.0.2.2, 192.0.2.1", "correct horse")).status_code == 200
        assert 'logins_total{result="limited"} 2.0' in (await client.get("/metrics")).text


async def test_me_is_the_own_record(client, api):
    user = await api.register("ada")
    answer = await client.get("/auth/me", headers=await api.bearer("ada@example.com"))

    assert (answer.status_code, answer.json()) == (200, user)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["etag"] == '"v1"'


async def test_after_logout_the_session_is_over(client, api):
    await api.register("ada")
    tokens = await api.tokens("ada")
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}

    answer = await client.post("/auth/logout", headers=bearer)

    assert (answer.status_code, answer.content) == (204, b"")
    me = await client.get("/auth/me", headers=bearer)
    assert (me.status_code, me.json()["code"]) == (401, "session_ended")
    refreshed = await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 401
    again = await client.post("/auth/logout", headers=bearer)
    assert (again.status_code, again.json()["code"]) == (401, "session_ended")
    # Also a read that asks no database.
    assert (await client.get("/auth/sessions", headers=bearer)).status_code == 401


async def test_refreshing_rotates_and_reuse_ends_the_session(client, api, monkeypatch):
    monkeypatch.setattr(sessions, "GRACE_S", -1.0)
    await api.register("ada")
    first = await api.tokens("ada")
    answer = await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    second = answer.json()
    bearer = {"Authorization": f"Bearer {second['access_token']}"}
    assert (await client.get("/auth/me", headers=bearer)).status_code == 200

    reused = await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})

    assert (reused.status_code, reused.json()["code"]) == (401, "refresh_invalid")
    assert (await client.get("/auth/me", headers=bearer)).status_code == 401
    dead = await client.post("/auth/refresh", json={"refresh_token": second["refresh_token"]})
    assert dead.status_code == 401


async def test_the_keys_are_public_and_cacheable(client, api):
    await api.register("ada")
    token = (await api.tokens("ada"))["access_token"]
    answer = await client.get("/.well-known/jwks.json")

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=300"
    key = jwt.PyJWKSet.from_dict(answer.json())[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["EdDSA"], audience="roundhouse", issuer="roundhouse")["role"] == "user"
    again = await client.get("/.well-known/jwks.json", headers={"If-None-Match": f'"x", W/{answer.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert (await client.head("/.well-known/jwks.json")).status_code == 200


async def test_tokens_that_are_not_ours_are_refused(client, api):
    user = await api.register("ada")
    good = (await api.tokens("ada"))["access_token"]
    mint = TokenMint()
    stolen_id = TokenMint(jwt.get_unverified_header(good)["kid"])
    claims = jwt.decode(good, options={"verify_signature": False})
    hostile = [
        "",
        "garbage",
        good[:-4] + "AAAA",
        good + "x",
        mint.token(user["id"]),
        stolen_id.token(user["id"]),
        jwt.encode(claims, None, algorithm="none", headers={"kid": stolen_id.key_id, "typ": "at+jwt"}),
        jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": stolen_id.key_id, "typ": "at+jwt"}),
        mint.token(user["id"], sid=new_id()),
        "x" * 10_000,
    ]
    for token in hostile:
        answer = await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), token[:60]
    for header in ({}, {"Authorization": f"Basic {good}"}, {"Authorization": good}):
        assert (await client.get("/auth/me", headers=header)).status_code == 401
