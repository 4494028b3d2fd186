"""The rate limits as clients meet them, on a fleet of its own where they are low and give nothing back while a test runs.

Each test comes from an address of its own: the gateway takes the test for a trusted proxy.
"""

import itertools
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx2
import pytest

from tests.e2e.client import assert_problem
from tests.fleet import OwnFleet, own_fleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif("ROUNDHOUSE_URL" in os.environ, reason="the fleet at ROUNDHOUSE_URL has limits of its own"),
]

SIGNED_IN, ANONYMOUS, REGISTRATION, FAILED = 12, 20, 3, 5
WINDOW_S = 3600
CONFIG = f"""
[[limits]]
name = "signed-in"
by = "user"
quota = {SIGNED_IN}
window_s = {WINDOW_S}
applies_to = "signed_in"

[[limits]]
name = "anonymous"
by = "address"
quota = {ANONYMOUS}
window_s = {WINDOW_S}
applies_to = "anonymous"

[[limits]]
name = "registration"
by = "address"
quota = {REGISTRATION}
window_s = {WINDOW_S}

[[limits]]
name = "failed-logins"
by = "address"
quota = {FAILED}
window_s = {WINDOW_S}
counts = "unauthorized"
"""
"""The platform's own limits by name, smaller."""

EXEMPT = "198.51.100.7"
_addresses = (f"192.0.2.{number}" for number in itertools.count(1))


@dataclass(frozen=True, slots=True)
class Person:
    username: str
    password: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def limited_fleet() -> Iterator[OwnFleet]:
    with own_fleet(RH_GATEWAY_CONFIG=CONFIG, RH_GATEWAY_EXEMPT=EXEMPT, RH_GATEWAY_TRUSTED_PROXIES="127.0.0.1") as found:
        yield found


@pytest.fixture
async def client(limited_fleet: OwnFleet) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"X-Forwarded-For": next(_addresses)}
    async with httpx2.AsyncClient(base_url=limited_fleet.url, headers=headers, timeout=15, trust_env=False) as found:
        yield found


@pytest.fixture
async def person(client: httpx2.AsyncClient) -> Person:
    """Somebody who registered from the address that no limit holds for."""
    name, password = f"u{secrets.token_hex(6)}", secrets.token_urlsafe(12)
    elsewhere = {"X-Forwarded-For": EXEMPT}
    body = {"username": name, "email": f"{name}@example.com", "password": password}
    created = await client.post("/users", json=body, headers=elsewhere)
    assert created.status_code == 201, created.text
    answer = await client.post("/auth/token", data={"username": name, "password": password}, headers=elsewhere)
    assert answer.status_code == 200, answer.text
    return Person(name, password, {"Authorization": f"Bearer {answer.json()['access_token']}"})


def left_of(response: httpx2.Response, limit: str) -> int:
    """Return what is left of a limit by the header RateLimit."""
    (found,) = (item for item in response.headers["ratelimit"].split(", ") if item.startswith(f'"{limit}";'))
    return int(found.split(";")[1].removeprefix("r="))


def assert_limited(response: httpx2.Response, limit: str) -> None:
    problem = assert_problem(response, 429)
    assert problem["code"] == "rate_limited"
    assert limit in problem["detail"]
    assert 0 < int(response.headers["retry-after"]) <= WINDOW_S
    assert left_of(response, limit) == 0


async def test_a_users_quota_falls_by_one_a_request_and_then_refuses(
    client: httpx2.AsyncClient, person: Person
) -> None:
    answers = [await client.get("/auth/me", headers=person.headers) for _ in range(SIGNED_IN)]
    assert {answer.status_code for answer in answers} == {200}
    assert [left_of(answer, "signed-in") for answer in answers] == list(reversed(range(SIGNED_IN)))
    assert answers[0].headers["ratelimit-policy"] == f'"signed-in";q={SIGNED_IN};w={WINDOW_S}'

    assert_limited(await client.get("/auth/me", headers=person.headers), "signed-in")
    # It is the user's quota: another address does not help.
    elsewhere = person.headers | {"X-Forwarded-For": next(_addresses)}
    assert_limited(await client.get("/auth/me", headers=elsewhere), "signed-in")


async def test_health_is_never_limited(client: httpx2.AsyncClient) -> None:
    for _ in range(ANONYMOUS):
        assert (await client.get("/.well-known/jwks.json")).status_code == 200
    assert_limited(await client.get("/.well-known/jwks.json"), "anonymous")
    for _ in range(2 * ANONYMOUS):
        answer = await client.get("/health")
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


async def test_registrations_are_limited_by_address(client: httpx2.AsyncClient) -> None:
    for _ in range(REGISTRATION):
        answer = await client.post("/users", json={})
        assert_problem(answer, 422)
    assert left_of(answer, "registration") == 0
    assert_limited(await client.post("/users", json={}), "registration")


async def test_failed_logins_are_refused_after_the_quota_and_good_ones_cost_nothing(
    client: httpx2.AsyncClient, person: Person
) -> None:
    good = {"username": person.username, "password": person.password}
    for _ in range(FAILED - 1):
        assert_problem(await client.post("/auth/token", data=good | {"password": "wrong"}), 401)
        assert (await client.post("/auth/token", data=good)).status_code == 200
    assert_problem(await client.post("/auth/token", data={"username": "nobody", "password": "wrong"}), 401)

    # Whoever guesses on is not told when he is right.
    assert_limited(await client.post("/auth/token", data=good), "failed-logins")
    elsewhere = {"X-Forwarded-For": next(_addresses)}
    assert (await client.post("/auth/token", data=good, headers=elsewhere)).status_code == 200


async def test_exempt_addresses_meet_no_limit(client: httpx2.AsyncClient, person: Person) -> None:
    exempt = person.headers | {"X-Forwarded-For": EXEMPT}
    for _ in range(SIGNED_IN + 1):
        answer = await client.get("/auth/me", headers=exempt)
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers
