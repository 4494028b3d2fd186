"""Bad input through the gateway: each gets the right refusal, and the platform goes on."""

import http.client
import json
import secrets
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.e2e.client import Account, Fleet, MakeAccount, assert_problem

JSON = {"content-type": "application/json"}


async def test_an_unknown_path_is_404(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.get("/no/such/thing"), 404)


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/users"), ("GET", "/cpu-intensive"), ("PUT", "/auth/token"), ("POST", "/health")]
)
async def test_a_wrong_method_is_405_and_says_what_is_allowed(
    client: httpx2.AsyncClient, account: Account, method: str, path: str
) -> None:
    response = await client.request(method, path, headers=account.headers)
    assert_problem(response, 405)
    assert response.headers["allow"]
    assert method not in response.headers["allow"].split(", ")


async def test_malformed_json_is_400(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.post("/users", content=b'{"username": "a', headers=JSON), 400, 422)


@pytest.mark.parametrize(
    "wrong",
    [
        {"username": 5},
        {"username": "a"},
        {"username": "bad name!"},
        {"username": "nul\x00byte"},
        {"username": "\ud800abc"},
        {"username": "x" * 1_000},
        {"email": "no-at-sign"},
        {"email": "a@b@c.example"},
        {"password": "short"},
        {"password": "x" * 5_000},
        {"full_name": "x" * 1_000},
        {"full_name": ["x"]},
        {"role": "admin"},
        {"id": "1"},
        {"is_admin": True},
    ],
    ids=lambda wrong: next(f"{k}={str(v)[:12]!a}" for k, v in wrong.items()),
)
async def test_a_bad_field_is_422_and_named_and_nothing_is_stored(
    client: httpx2.AsyncClient, admin_headers: dict[str, str], wrong: dict[str, object]
) -> None:
    name = f"w{secrets.token_hex(6)}"
    body = {"username": name, "email": f"{name}@example.com", "password": "long enough 1", **wrong}
    response = await client.post("/users", content=json.dumps(body).encode(), headers=JSON)
    problem = assert_problem(response, 422)
    assert any(next(iter(wrong)) in error["field"] for error in problem["errors"]), problem
    login = await client.post("/auth/token", data={"username": name, "password": "long enough 1"})
    assert_problem(login, 401)


async def test_a_10_mb_body_is_413_and_the_service_goes_on(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.post("/users", content=b"x" * 10_000_000, headers=JSON), 413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b"x" * 65536

    try:
        response = await client.post("/users", content=chunks(), headers=JSON)
    except (httpx2.WriteError, httpx2.RemoteProtocolError):
        # The refusal may close the connection while we still send; a client that reads first sees the 413.
        pass
    else:
        assert_problem(response, 413)
    assert (await client.get("/live")).status_code == 200


@pytest.mark.parametrize("path", ["/auth/me", "/users", "/async-demo", "/sse/stream"])
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer x.y.z", "Basic YTpi", "Bearer " + "x" * 9000])
async def test_a_bad_token_is_401(client: httpx2.AsyncClient, path: str, header: str) -> None:
    response = await client.get(path, headers={"Authorization": header} if header else {})
    assert_problem(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_of_another_key_is_401(client: httpx2.AsyncClient, account: Account) -> None:
    head, body, signature = account.token.split(".")
    forged = f"{head}.{body}.{signature[::-1]}"
    assert_problem(await client.get("/auth/me", headers={"Authorization": f"Bearer {forged}"}), 401)


async def test_identity_headers_from_outside_mean_nothing(
    client: httpx2.AsyncClient, make_account: MakeAccount
) -> None:
    victim, attacker = await make_account(), await make_account()
    forged = {"X-User-Id": victim.id, "X-Auth-Sub": victim.id, "X-Auth-Role": "admin", "X_Auth_Role": "admin"}
    assert_problem(await client.get(f"/users/{victim.id}", headers={**attacker.headers, **forged}), 404)
    assert_problem(await client.get("/users", headers={**attacker.headers, **forged}), 403)


@pytest.mark.parametrize(
    "path", ["/users/%2e%2e/metrics", "/users/..%2fmetrics", "/users/../metrics", "/health/../ready", "/users//"]
)
async def test_a_twisted_path_reaches_nothing_it_should_not(fleet: Fleet, account: Account, path: str) -> None:
    address = urlsplit(fleet.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    connection.request("GET", path, headers=account.headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status in (400, 404), body[:200]
    assert b"requests_total" not in body


async def test_a_request_id_is_kept_and_shown_in_refusals(client: httpx2.AsyncClient) -> None:
    response = await client.get("/auth/me", headers={"X-Request-ID": "my-id.1"})
    assert assert_problem(response, 401)["request_id"] == "my-id.1"
