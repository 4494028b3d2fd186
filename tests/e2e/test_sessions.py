"""Sessions through the gateway: seen, refreshed and ended, on every service at once."""

import asyncio
import contextlib
import json
from typing import Any

import httpx2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

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
