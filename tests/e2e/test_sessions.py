"""Sessions through the gateway: seen, refreshed and ended, on every service at once."""

import asyncio
import contextlib
import json
from typing import Any

import httpx2
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.client import Account, Fleet, MakeAccount, assert_problem, sign_in

EFFECTIVE_WITHIN_S = 1.0


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def assert_refused_soon(client: httpx2.AsyncClient, path: str, headers: dict[str, str]) -> None:
    """Wait until a token is refused, no longer than a log-out may take."""
    async with asyncio.timeout(EFFECTIVE_WITHIN_S):
        while (await client.get(path, headers=headers)).status_code != 401:
            await asyncio.sleep(0.01)
    assert assert_problem(await client.get(path, headers=headers), 401)["code"] == "session_ended"


async def test_logging_out_is_effective_everywhere_within_a_second(
    client: httpx2.AsyncClient, account: Account, fleet: Fleet
) -> None:
    other = await sign_in(client, account.username, account.password)
    address = f"{fleet.websocket_url}/ws/chat"
    async with connect(address, additional_headers=account.headers, proxy=None) as socket:
        assert json.loads(await socket.recv())["type"] == "welcome"
        assert (await client.get("/async-demo", headers=account.headers)).status_code == 200

        assert (await client.post("/auth/logout", headers=account.headers)).status_code == 204

        await assert_refused_soon(client, "/async-demo", account.headers)
        for path in (f"/users/{account.id}", "/auth/sessions", "/sse/stream"):
            assert assert_problem(await client.get(path, headers=account.headers), 401)["code"] == "session_ended"
        async with asyncio.timeout(EFFECTIVE_WITHIN_S):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
        assert socket.close_code == 4401
    assert (await client.get("/async-demo", headers=bearer(other))).status_code == 200


async def test_sessions_are_listed_and_one_is_ended(client: httpx2.AsyncClient, account: Account) -> None:
    other = await sign_in(client, account.username, account.password)
    items = (await client.get("/auth/sessions", headers=account.headers)).json()["items"]
    assert [item["current"] for item in items] == [False, True]
    assert all(item["address"] and item["user_agent"] for item in items)

    gone = await client.delete(f"/auth/sessions/{items[0]['id']}", headers=account.headers)

    assert gone.status_code == 204
    await assert_refused_soon(client, "/async-demo", bearer(other))
    assert_problem(await client.post("/auth/refresh", json={"refresh_token": other["refresh_token"]}), 401)
    assert len((await client.get("/auth/sessions", headers=account.headers)).json()["items"]) == 1


async def test_all_other_sessions_are_ended(client: httpx2.AsyncClient, account: Account) -> None:
    others = [await sign_in(client, account.username, account.password) for _ in range(2)]

    assert (await client.delete("/auth/sessions", headers=account.headers)).status_code == 204

    for tokens in others:
        await assert_refused_soon(client, "/async-demo", bearer(tokens))
    assert (await client.get("/async-demo", headers=account.headers)).status_code == 200


async def test_a_new_password_ends_the_other_sessions(client: httpx2.AsyncClient, account: Account) -> None:
    other = await sign_in(client, account.username, account.password)
    body = {"password": "another correct horse 17"}

    changed = await client.patch(f"/users/{account.id}", json=body, headers=account.headers)

    assert changed.status_code == 200, changed.text
    await assert_refused_soon(client, "/async-demo", bearer(other))
    assert (await client.get("/async-demo", headers=account.headers)).status_code == 200


async def test_an_admin_ends_the_sessions_of_a_user(
    client: httpx2.AsyncClient, account: Account, admin_headers: dict[str, str]
) -> None:
    path = f"/users/{account.id}/sessions"
    assert len((await client.get(path, headers=admin_headers)).json()["items"]) == 1
    assert_problem(await client.get(path, headers=account.headers), 403)

    assert (await client.delete(path, headers=admin_headers)).status_code == 204

    await assert_refused_soon(client, "/async-demo", account.headers)


async def test_tabs_that_refresh_together_go_on_together(client: httpx2.AsyncClient, account: Account) -> None:
    body = {"refresh_token": account.refresh_token}

    answers = await asyncio.gather(*(client.post("/auth/refresh", json=body) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1


async def test_an_old_refresh_token_ends_its_session_everywhere(
    client: httpx2.AsyncClient, make_account: MakeAccount
) -> None:
    account = await make_account()
    first = (await client.post("/auth/refresh", json={"refresh_token": account.refresh_token})).json()
    second = (await client.post("/auth/refresh", json={"refresh_token": first["refresh_token"]})).json()

    reused = await client.post("/auth/refresh", json={"refresh_token": account.refresh_token})

    assert assert_problem(reused, 401)["code"] == "refresh_invalid"
    await assert_refused_soon(client, "/async-demo", bearer(second))
    assert_problem(await client.post("/auth/refresh", json={"refresh_token": second["refresh_token"]}), 401)


async def test_a_ticket_opens_one_socket_or_stream(client: httpx2.AsyncClient, account: Account, fleet: Fleet) -> None:
    async def ticket() -> str:
        answer = await client.post("/auth/ticket", headers=account.headers)
        assert (answer.status_code, answer.json()["expires_in"]) == (200, 30)
        return str(answer.json()["ticket"])

    address = f"{fleet.websocket_url}/ws/chat?ticket={(used := await ticket())}"
    async with connect(address, proxy=None) as socket:
        assert json.loads(await socket.recv())["type"] == "welcome"
    with pytest.raises(InvalidStatus) as caught:
        async with connect(address, proxy=None):
            pass
    assert caught.value.response.status_code == 401
    assert_problem(await client.get("/sse/stream", params={"ticket": used}), 401)

    async with client.stream("GET", "/sse/stream", params={"ticket": await ticket()}) as response:
        assert response.status_code == 200
        assert await anext(response.aiter_lines())
    assert_problem(await client.get("/auth/me", headers={"Authorization": f"Bearer {await ticket()}"}), 401)


async def test_a_page_keeps_its_refresh_token_in_a_cookie(
    client: httpx2.AsyncClient, account: Account, fleet: Fleet
) -> None:
    form = {"username": account.username, "password": account.password, "cookie": "true"}
    page = {"Origin": fleet.url, "X-CSRF": "1"}
    signed_in = await client.post("/auth/token", data=form, headers=page)
    assert signed_in.status_code == 200, signed_in.text
    assert "refresh_token" not in signed_in.json()
    cookie = signed_in.headers["set-cookie"]
    assert cookie.startswith("__Host-rh_refresh=")
    assert {"HttpOnly", "Secure", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    # By hand: on plain http this client rightly keeps a Secure cookie to itself, as a browser does but for localhost.
    client.cookies.clear()
    sent = {"Cookie": cookie.partition(";")[0]}

    for refused in (sent, {**sent, "Origin": fleet.url}, {**sent, **page, "Origin": "https://evil.example"}):
        assert_problem(await client.post("/auth/refresh", headers=refused), 403)
    refreshed = await client.post("/auth/refresh", headers={**sent, **page})

    assert refreshed.status_code == 200, refreshed.text
    assert (await client.get("/auth/me", headers=bearer(refreshed.json()))).status_code == 200
    assert refreshed.headers["set-cookie"].partition(";")[0] != sent["Cookie"]


async def test_an_admin_rotates_the_signing_key_and_nobody_is_refused(
    client: httpx2.AsyncClient, account: Account, admin_headers: dict[str, str]
) -> None:
    assert_problem(await client.get("/auth/keys", headers=account.headers), 403)
    before = (await client.get("/auth/keys", headers=admin_headers)).json()["items"]

    rotated = await client.post("/auth/keys/rotate", json={"at_once": True}, headers=admin_headers)

    assert rotated.status_code == 200, rotated.text
    newest = rotated.json()["items"][0]
    assert newest["state"] == "active"
    assert newest["kid"] not in {key["kid"] for key in before}
    # Tokens of the key before are good until they expire; those of the new one as soon as every replica knows it.
    assert (await client.get("/async-demo", headers=account.headers)).status_code == 200

    async def is_used_and_accepted() -> bool:
        tokens = await sign_in(client, account.username, account.password)
        answers = [await client.get(path, headers=bearer(tokens)) for path in ("/auth/me", "/async-demo")]
        kid = jwt.get_unverified_header(tokens["access_token"])["kid"]
        return kid == newest["kid"] and all(answer.status_code == 200 for answer in answers)

    async with asyncio.timeout(10):
        while not await is_used_and_accepted():
            await asyncio.sleep(0.1)
    published = {key["kid"] for key in (await client.get("/.well-known/jwks.json")).json()["keys"]}
    assert {newest["kid"], *(key["kid"] for key in before)} <= published
