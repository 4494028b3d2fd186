"""Users through the gateway: registering, signing in, and what each may do with a record."""

import asyncio
import uuid

import httpx2
import pytest

from tests.e2e.client import Account, MakeAccount, answered, assert_problem, sign_in

UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"


async def test_registering_answers_with_the_record_its_address_and_no_secret(client: httpx2.AsyncClient) -> None:
    name = f"u{uuid.uuid4().hex[:12]}"
    response = await client.post(
        "/users",
        json={"username": name, "email": f"{name}@Example.COM", "password": "correct horse 9", "full_name": "Ada L."},
    )
    assert response.status_code == 201
    body = response.json()
    assert response.headers["location"] == f"/users/{body['id']}"
    assert response.headers["etag"]
    assert uuid.UUID(body["id"]).version == 7
    assert (body["username"], body["full_name"], body["role"]) == (name, "Ada L.", "user")
    assert "correct horse" not in response.text
    assert "argon2" not in response.text
    assert not any("hash" in key or "password" in key for key in body)


async def test_signing_in_works_by_username_and_by_email(client: httpx2.AsyncClient, account: Account) -> None:
    for login in (account.username, account.email, account.email.upper()):
        tokens = await sign_in(client, login, account.password)
        assert tokens["token_type"].lower() == "bearer"
        assert tokens["expires_in"] == 600
        me = await client.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
        assert me.json()["id"] == account.id
        assert me.headers["cache-control"] == "no-store"


async def test_wrong_password_and_unknown_user_answer_alike(client: httpx2.AsyncClient, account: Account) -> None:
    wrong = await client.post("/auth/token", data={"username": account.username, "password": "wrong-password"})
    unknown = await client.post("/auth/token", data={"username": "nobody-here", "password": "wrong-password"})
    first, second = assert_problem(wrong, 401), assert_problem(unknown, 401)
    assert (first["code"], first["detail"]) == (second["code"], second["detail"])
    assert wrong.headers["www-authenticate"].startswith("Bearer")


async def test_a_record_is_read_changed_and_deleted_by_its_owner(client: httpx2.AsyncClient, account: Account) -> None:
    address, headers = f"/users/{account.id}", account.headers

    read = await client.get(address, headers=headers)
    assert read.status_code == 200
    assert (await client.get(address, headers={**headers, "If-None-Match": read.headers["etag"]})).status_code == 304

    patched = await client.patch(address, json={"full_name": "Grace H."}, headers=headers)
    assert patched.json()["full_name"] == "Grace H."
    assert patched.headers["etag"] != read.headers["etag"]
    stale = await client.patch(address, json={"full_name": "X"}, headers={**headers, "If-Match": read.headers["etag"]})
    assert_problem(stale, 412)

    body = {"username": account.username, "email": account.email}
    replaced = await client.put(address, json=body, headers={**headers, "If-Match": patched.headers["etag"]})
    assert replaced.status_code == 200, replaced.text
    assert replaced.json()["full_name"] is None

    # Another replica knows of the change within a second.
    is_known = {**headers, "If-None-Match": replaced.headers["etag"]}
    await answered(lambda: client.get(address, headers=is_known), 304)
    head = await client.head(address, headers={**headers, "Cache-Control": "no-cache"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == replaced.headers["etag"]
    options = await client.options(address, headers=headers)
    assert {"GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"} <= {
        m.strip() for m in options.headers["allow"].split(",")
    }

    assert (await client.delete(address, headers=headers)).status_code == 204
    assert_problem(await client.get("/auth/me", headers=headers), 401)
    again = await client.post("/auth/token", data={"username": account.username, "password": account.password})
    assert_problem(again, 401)


async def test_other_peoples_records_and_unknown_ids_are_404(
    client: httpx2.AsyncClient, make_account: MakeAccount, account: Account
) -> None:
    other = await make_account()
    for identifier in (other.id, UNKNOWN_ID, "1", "admin", "%00", "x" * 300):
        for method in ("GET", "PATCH", "DELETE"):
            body = {"full_name": "x"} if method == "PATCH" else None
            response = await client.request(method, f"/users/{identifier}", json=body, headers=account.headers)
            assert_problem(response, 404, 400)
    assert (await client.get(f"/users/{other.id}", headers=other.headers)).status_code == 200


async def test_a_taken_name_or_address_is_409(client: httpx2.AsyncClient, account: Account) -> None:
    fresh = {
        "username": f"v{uuid.uuid4().hex[:10]}",
        "email": f"{uuid.uuid4().hex[:10]}@example.com",
        "password": "long enough 1",
    }
    for taken in ({"username": account.username.upper()}, {"email": account.email.upper()}):
        assert_problem(await client.post("/users", json={**fresh, **taken}), 409)


async def test_a_race_for_one_name_has_one_winner(client: httpx2.AsyncClient) -> None:
    name = f"r{uuid.uuid4().hex[:12]}"
    body = {"username": name, "email": f"{name}@example.com", "password": "long enough 1"}
    answers = await asyncio.gather(*(client.post("/users", json=body) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7


async def test_only_an_admin_lists_users_page_by_page(
    client: httpx2.AsyncClient, make_account: MakeAccount, admin_headers: dict[str, str]
) -> None:
    accounts = [await make_account() for _ in range(3)]
    assert_problem(await client.get("/users", headers=accounts[0].headers), 403)
    assert_problem(await client.get("/users"), 401)

    seen: list[str] = []
    cursor = None
    for _ in range(500):
        parameters = {"limit": "20", **({"cursor": cursor} if cursor else {})}
        page = (await client.get("/users", params=parameters, headers=admin_headers)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert {account.id for account in accounts} <= set(seen)


async def test_a_refresh_token_works_once(client: httpx2.AsyncClient, account: Account) -> None:
    first = await client.post("/auth/refresh", json={"refresh_token": account.refresh_token})
    assert first.status_code == 200
    headers = {"Authorization": f"Bearer {first.json()['access_token']}"}
    assert (await client.get("/auth/me", headers=headers)).status_code == 200
    assert_problem(await client.post("/auth/refresh", json={"refresh_token": "not-a-token"}), 401)


async def test_logging_out_ends_the_session(client: httpx2.AsyncClient, account: Account) -> None:
    assert (await client.post("/auth/logout", headers=account.headers)).status_code in (200, 204)
    assert_problem(await client.get("/auth/me", headers=account.headers), 401)
    assert_problem(await client.post("/auth/refresh", json={"refresh_token": account.refresh_token}), 401)


async def test_the_public_keys_verify_a_token(client: httpx2.AsyncClient, account: Account) -> None:
    jwt = pytest.importorskip("jwt")
    keys = (await client.get("/.well-known/jwks.json")).json()["keys"]
    header = jwt.get_unverified_header(account.token)
    assert (header["alg"], header["typ"]) == ("EdDSA", "at+jwt")
    (key,) = [item for item in keys if item["kid"] == header["kid"]]
    assert "d" not in key
    claims = jwt.decode(account.token, jwt.PyJWK(key), algorithms=["EdDSA"], audience="roundhouse")
    assert claims["sub"] == account.id
    assert claims["exp"] - claims["iat"] == 600
