"""The gateway's admin side, as an operator with an admin's token sees it from outside."""

import httpx2
import pytest

from tests.e2e.client import Fleet, assert_problem

SERVICES = {"users", "realtime", "compute", "health"}


@pytest.fixture
def admin(fleet: Fleet) -> dict[str, str]:
    if not fleet.admin_token:
        pytest.skip("no admin of this fleet is known")
    return {"Authorization": f"Bearer {fleet.admin_token}"}


async def test_every_service_is_shown_with_its_replicas(client: httpx2.AsyncClient, admin: dict[str, str]) -> None:
    await client.get("/health")
    shown = (await client.get("/admin/gateway/instances", headers=admin)).json()
    assert set(shown["services"]) == SERVICES
    assert "failed" not in shown["workers"]
    for service in shown["services"].values():
        assert service["replicas"]


async def test_routes_limits_and_requests_under_way_are_shown(
    client: httpx2.AsyncClient, admin: dict[str, str]
) -> None:
    routes = (await client.get("/admin/gateway/routes", headers=admin)).json()
    assert {found["route"]["service"] for found in routes} == SERVICES
    limits = (await client.get("/admin/gateway/limits", headers=admin)).json()
    assert {limit["name"] for limit in limits["configured"]} >= {"signed-in", "anonymous"}
    assert limits["limits"]["store"] == "up"
    assert (await client.get("/admin/gateway/in-flight", headers=admin)).json()["in_flight"]["count"] >= 0


async def test_a_request_is_explained(client: httpx2.AsyncClient, admin: dict[str, str]) -> None:
    asked = {"method": "GET", "path": "/users/42"}
    found = (await client.get("/admin/gateway/explain", params=asked, headers=admin)).json()
    assert found["refusal"]["status"] == 401
    found = (await client.get("/admin/gateway/explain", params={**asked, "role": "user"}, headers=admin)).json()
    assert (found["answered_by"], found["route"]["path"]) == ("users", "/users/*")


async def test_what_is_not_known_is_refused(client: httpx2.AsyncClient, admin: dict[str, str]) -> None:
    assert_problem(await client.post("/admin/gateway/breakers/nowhere/open", headers=admin), 404)
    assert_problem(await client.get("/admin/gateway/explain", headers=admin), 422)
    assert_problem(await client.get("/admin/gateway/nothing", headers=admin), 404)


async def test_a_page_elsewhere_gets_nothing_without_a_token(client: httpx2.AsyncClient) -> None:
    page = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for method, path in (("GET", "in-flight"), ("POST", "breakers/users/open")):
        assert_problem(await client.request(method, f"/admin/gateway/{path}", headers=page), 401, 403)
    assert (await client.get("/health")).status_code in (200, 503)
