"""The fleet's state through the gateway, and the gateway's own probes."""

import httpx2

from tests.e2e.client import Account, Fleet, assert_problem


async def test_health_is_up_and_public(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"state": "up"})
    assert response.headers["cache-control"] == "no-store"


async def test_detailed_health_names_every_component_and_no_address(client: httpx2.AsyncClient, fleet: Fleet) -> None:
    response = await client.get("/health/detailed")
    body = response.json()
    assert body["state"] == "up"
    assert {"gateway", "users", "realtime", "compute", "nats", "postgres"} <= set(body["components"])
    assert all(component["state"] == "up" for component in body["components"].values())
    assert "127.0.0.1" not in response.text
    assert "://" not in response.text


async def test_the_gateways_own_probes_answer(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/live")).status_code == 200
    assert (await client.get("/ready")).json()["state"] == "ready"


async def test_the_gateways_metrics_need_a_token(client: httpx2.AsyncClient, account: Account) -> None:
    assert_problem(await client.get("/metrics"), 401, 403)
    text = (await client.get("/metrics", headers=account.headers)).text
    assert "requests_total{" in text
