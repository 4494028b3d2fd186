"""The assembled application: probes, problems, ids, limits and deadlines, as every service has them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import httpx2
import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from pydantic_settings import SettingsConfigDict

from shared import context
from shared.app import Application, Opened, Runtime, build
from shared.errors import Conflict
from shared.settings import Settings
from shared.testing.client import running


class DemoSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RH_DEMO_")
    service: ClassVar[str] = "demo"


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    count: int = 1


@dataclass
class Parts:
    healthy: bool = True


def create(parts: Parts) -> Application:
    router = APIRouter()

    @router.post("/items", status_code=201)
    async def add(item: Item) -> Item:
        return item

    @router.get("/items/{item_id}")
    async def read(item_id: str) -> dict[str, str]:
        found = context.current()
        assert found is not None
        return {"id": item_id, "request_id": found.request_id, "traceparent": found.traceparent}

    @router.delete("/items/{item_id}")
    async def remove(item_id: str) -> None:
        raise Conflict(f"{item_id} is in use")

    @router.get("/bug")
    async def bug() -> None:
        raise RuntimeError("postgresql://user:pw@host/db fell over")

    @router.get("/slow")
    async def slow() -> None:
        await asyncio.Event().wait()

    @router.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @asynccontextmanager
    async def resources(_: DemoSettings, __: Runtime) -> AsyncIterator[Opened[Parts]]:
        async def check() -> None:
            if not parts.healthy:
                raise ConnectionError("away")

        yield Opened(parts, {"thing": check})

    return build(DemoSettings(body_bytes_max=2048), routers=[router], resources=resources, title="Demo")


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def app(parts: Parts) -> Application:
    return create(parts)


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(app) as found:
        yield found


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= set(body)
    assert body["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    return body


async def test_probes_answer(client: httpx2.AsyncClient, parts: Parts, app: Application) -> None:
    assert (await client.get("/live")).json() == {"state": "live"}
    assert (await client.get("/ready")).json() == {"state": "ready", "checks": {"thing": "ok"}}


async def test_ready_is_503_while_a_required_check_fails(client: httpx2.AsyncClient, parts: Parts) -> None:
    parts.healthy = False

    response = await client.get("/ready")

    assert response.status_code == 503
    assert response.json() == {"state": "not_ready", "checks": {"thing": "failing"}}


async def test_ready_is_503_while_draining(client: httpx2.AsyncClient, app: Application) -> None:
    app.runtime.readiness.draining.set()

    response = await client.get("/ready")

    assert response.status_code == 503
    assert response.json()["state"] == "draining"
    assert (await client.get("/live")).status_code == 200


async def test_while_draining_every_response_ends_its_connection(client: httpx2.AsyncClient, app: Application) -> None:
    assert "connection" not in (await client.get("/items/1")).headers
    app.runtime.readiness.draining.set()
    for path in ("/items/1", "/nowhere", "/bug"):
        assert (await client.get(path)).headers["connection"] == "close"


async def test_metrics_count_requests_by_route_not_by_path(client: httpx2.AsyncClient) -> None:
    await client.get("/items/1")
    await client.get("/items/2")
    for number in range(3):
        await client.get(f"/nowhere/{number}")

    text = (await client.get("/metrics")).text

    assert 'requests_total{method="GET",route="/items/{item_id}",status="200"} 2.0' in text
    assert 'requests_total{method="GET",route="unmatched",status="404"} 3.0' in text
    assert "request_duration_seconds_bucket" in text
    assert 'active_connections{kind="http"} 1.0' in text


async def test_unknown_path_is_a_404_problem(client: httpx2.AsyncClient) -> None:
    body = assert_problem(await client.get("/nowhere"), 404, "not_found")
    assert body["instance"] == "/nowhere"


async def test_wrong_method_is_405_and_allow_names_all_methods_of_the_path(client: httpx2.AsyncClient) -> None:
    response = await client.patch("/items/1")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET"


async def test_malformed_json_is_400(client: httpx2.AsyncClient) -> None:
    response = await client.post("/items", content=b'{"name": ', headers={"content-type": "application/json"})
    assert_problem(response, 400, "malformed_json")


async def test_json_without_its_content_type_is_415(client: httpx2.AsyncClient) -> None:
    response = await client.post("/items", content=b'{"name": "a"}')
    assert_problem(response, 415, "unsupported_media_type")


async def test_bad_fields_are_422_and_each_is_listed(client: httpx2.AsyncClient) -> None:
    response = await client.post("/items", json={"name": 5, "count": "x", "role": "admin"})
    body = assert_problem(response, 422, "invalid_input")
    assert {e["field"] for e in body["errors"]} == {"body.name", "body.count", "body.role"}  # type: ignore[attr-defined]


async def test_a_hostile_number_of_unknown_fields_gives_a_small_answer(client: httpx2.AsyncClient) -> None:
    response = await client.post("/items", json={"name": "a", **{f"f{i}": 1 for i in range(150)}})
    assert_problem(response, 422, "invalid_input")
    assert len(response.content) < 8192


async def test_deep_json_is_a_4xx(client: httpx2.AsyncClient) -> None:
    response = await client.post("/items", content=b"[" * 2000, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)


async def test_domain_problem_becomes_its_document(client: httpx2.AsyncClient) -> None:
    body = assert_problem(await client.delete("/items/7"), 409, "conflict")
    assert body["detail"] == "7 is in use"


async def test_a_bug_is_500_without_its_text(client: httpx2.AsyncClient) -> None:
    response = await client.get("/bug")
    assert_problem(response, 500, "internal_error")
    assert "postgresql" not in response.text
    assert "Traceback" not in response.text


async def test_declared_body_over_the_limit_is_413(client: httpx2.AsyncClient) -> None:
    response = await client.post("/raw", content=b"x" * 3000)
    assert_problem(response, 413, "body_too_large")


async def test_undeclared_body_over_the_limit_is_413(client: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    response = await client.post("/items", content=chunks(), headers={"content-type": "application/json"})
    assert_problem(response, 413, "body_too_large")


async def test_compressed_body_is_415(client: httpx2.AsyncClient) -> None:
    response = await client.post("/raw", content=b"x", headers={"content-encoding": "gzip"})
    assert_problem(response, 415, "unsupported_media_type")


async def test_a_good_request_id_is_kept_and_a_bad_one_replaced(client: httpx2.AsyncClient) -> None:
    kept = await client.get("/items/1", headers={"X-Request-ID": "abc.DEF_1-2"})
    assert kept.headers["x-request-id"] == kept.json()["request_id"] == "abc.DEF_1-2"
    for bad in ("a b", "x" * 129, "<script>"):
        replaced = await client.get("/items/1", headers={"X-Request-ID": bad})
        assert replaced.headers["x-request-id"] != bad


async def test_a_trace_is_continued_and_a_broken_one_replaced(client: httpx2.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await client.get("/items/1", headers={"traceparent": trace})).json()["traceparent"] == trace
    broken = f"00-{'0' * 32}-b7ad6b7169203331-01"
    assert (await client.get("/items/1", headers={"traceparent": broken})).json()["traceparent"] != broken


async def test_expired_work_is_refused_and_late_work_stopped_with_504(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.get("/items/1", headers={"X-Request-Timeout-Ms": "0"}), 504, "deadline_exceeded")
    assert_problem(await client.get("/slow", headers={"X-Request-Timeout-Ms": "50"}), 504, "deadline_exceeded")


async def test_every_response_says_nosniff(client: httpx2.AsyncClient) -> None:
    for path in ("/live", "/nowhere", "/bug"):
        assert (await client.get(path)).headers["x-content-type-options"] == "nosniff"
