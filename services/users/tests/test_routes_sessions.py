"""The routes that show and end sessions, through the whole application on memory."""

import asyncio

import jwt

from shared.ids import new_id


def bearer(tokens):
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def test_the_own_sessions_are_listed_newest_first(client, api):
    await api.register("ada")
    form = {"username": "ada", "password": "correct horse"}
    headers = {"User-Agent": "Fire\tfox " + "x" * 300, "X-Forwarded-For": "192.0.2.7, 10.0.0.1"}
    first = (await client.post("/auth/token", data=form, headers=headers)).json()
    second = await api.tokens("ada")
    await api.register("grace")
    await api.tokens("grace")

    answer = await client.get("/auth/sessions", headers=bearer(first))

    assert answer.headers["cache-control"] == "no-store"
    newest, oldest = answer.json()["items"]
    assert set(newest) == {"id", "created_at", "used_at", "expires_at", "address", "user_agent", "current"}
    assert (newest["current"], oldest["current"]) == (False, True)
    assert oldest["address"] == "192.0.2.7"
    assert oldest["user_agent"].startswith("Firefox xxx")
    assert len(oldest["user_agent"]) <= 256
    assert (await client.get("/auth/sessions", headers=bearer(second))).json()["items"][0]["current"]


async def test_an_ended_session_is_refused_at_once_and_others_go_on(client, api):
    await api.register("ada")
    here, there = await api.tokens("ada"), await api.tokens("ada")
    mine = (await client.get("/auth/sessions", headers=bearer(there))).json()["items"]
    target = next(item["id"] for item in mine if item["current"])

    answer = await client.delete(f"/auth/sessions/{target}", headers=bearer(here))

    assert (answer.status_code, answer.content) == (204, b"")
    refused = await client.get("/auth/sessions", headers=bearer(there))
    assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")
    assert (await client.get("/auth/sessions", headers=bearer(here))).status_code == 200
    for session_id in (target, new_id(), "x"):
        assert (await client.delete(f"/auth/sessions/{session_id}", headers=bearer(here))).status_code == 404


async def test_nobody_ends_the_session_of_another(client, api):
    await api.register("ada")
    await api.register("eve")
    ada, eve = await api.tokens("ada"), await api.tokens("eve")
    (session,) = (await client.get("/auth/sessions", headers=bearer(ada))).json()["items"]

    assert (await client.delete(f"/auth/sessions/{session['id']}", headers=bearer(eve))).status_code == 404
    assert (await client.get("/auth/me", headers=bearer(ada))).status_code == 200


async def test_all_other_sessions_are_ended(client, api):
    await api.register("ada")
    tokens = [await api.tokens("ada") for _ in range(3)]

    assert (await client.delete("/auth/sessions", headers=bearer(tokens[0]))).status_code == 204

    statuses = [(await client.get("/auth/sessions", headers=bearer(item))).status_code for item in tokens]
    assert statuses == [200, 401, 401]
    later = await api.tokens("ada")
    assert (await client.get("/auth/sessions", headers=bearer(later))).status_code == 200


async def test_an_admin_sees_and_ends_the_sessions_of_a_user(client, api):
    user = await api.register("ada")
    ada, admin = await api.tokens("ada"), await api.admin()
    path = f"/users/{user['id']}/sessions"
    for method in ("GET", "DELETE"):
        assert (await client.request(method, path, headers=bearer(ada))).status_code == 403
        assert (await client.request(method, path)).status_code == 401

    (session,) = (await client.get(path, headers=admin)).json()["items"]
    assert not session["current"]
    assert (await client.delete(path, headers=admin)).status_code == 204

    assert (await client.get("/auth/me", headers=bearer(ada))).status_code == 401
    assert (await client.get(path, headers=admin)).json()["items"] == []
    assert (await client.get("/users/x/sessions", headers=admin)).json()["items"] == []


async def test_twenty_refreshes_at_once_have_one_successor(client, api):
    await api.register("ada")
    token = (await api.tokens("ada"))["refresh_token"]

    answers = await asyncio.gather(*(client.post("/auth/refresh", json={"refresh_token": token}) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert len({answer.json()["access_token"] for answer in answers}) == 20


async def test_a_ticket_stands_for_the_session_until_the_token_that_asked_expires(client, api):
    user = await api.register("ada")
    tokens = await api.tokens("ada")

    answer = await client.post("/auth/ticket", headers=bearer(tokens))

    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["expires_in"] == 30
    ticket = answer.json()["ticket"]
    claims = jwt.decode(ticket, options={"verify_signature": False})
    access = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["sid"], claims["until"]) == (user["id"], access["sid"], access["exp"])
    assert claims["exp"] - claims["iat"] == 30
    assert jwt.get_unverified_header(ticket)["typ"] == "ticket+jwt"
    for path in ("/auth/me", "/auth/sessions"):
        refused = await client.get(path, headers={"Authorization": f"Bearer {ticket}"})
        assert refused.status_code == 401
    other = (await client.post("/auth/ticket", headers=bearer(tokens))).json()["ticket"]
    assert jwt.decode(other, options={"verify_signature": False})["jti"] != claims["jti"]
