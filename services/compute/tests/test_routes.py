"""The routes on the whole application, its pool of real processes included."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr
from starlette.types import Message

from services.compute import tasks
from services.compute.app import create
from services.compute.pool.supervisor import ProcessPool
from services.compute.routes import Parts
from services.compute.settings import ComputeSettings
from services.compute.tests import faulty
from shared.app import Application
from shared.deadline import Deadline
from shared.ids import new_id
from shared.testing.bus_probe import eventually
from shared.testing.client import running
from shared.testing.revocation import end_session
from shared.testing.tokens import TokenMint

pytestmark = pytest.mark.slow  # a pool of real processes


@pytest.fixture
def mint() -> TokenMint:
    return TokenMint()


@pytest.fixture
def app(mint: TokenMint) -> Application:
    return create(ComputeSettings(environment="test", slots=1, queue_max=2, threads=1), keys=mint)


@pytest.fixture
async def client(app: Application, mint: TokenMint) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(app) as found:
        found.headers.update(mint.bearer())
        yield found


@pytest.fixture
def pool(app: Application, client: httpx2.AsyncClient) -> ProcessPool:
    parts: Parts = app.fastapi.state.parts
    assert isinstance(parts.pool, ProcessPool)
    return parts.pool


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def assert_problem(response: httpx2.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


async def test_primes_below_20000(client: httpx2.AsyncClient) -> None:
    response = await client.post("/cpu-intensive", json={"n": 20000})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"n", "primes", "duration_ms", "worker_pid", "queue_ms"}
    assert (body["n"], body["primes"]) == (20000, 2262)
    assert body["worker_pid"] != os.getpid()
    assert body["duration_ms"] > 0
    assert body["queue_ms"] >= 0


@pytest.mark.parametrize("n", [1, 5_000_000])
async def test_the_limits_of_n_are_allowed(client: httpx2.AsyncClient, n: int) -> None:
    response = await client.post("/cpu-intensive", json={"n": n})
    assert (response.status_code, response.json()["primes"]) == (200, {1: 0, 5_000_000: 348513}[n])


@pytest.mark.parametrize("n", [0, -1, 5_000_001, 10**40, 1.5, 20000.0, "20000", True, None, [1]])
async def test_n_outside_its_limits_is_422(client: httpx2.AsyncClient, n: object) -> None:
    response = await client.post("/cpu-intensive", json={"n": n})
    assert_problem(response, 422, "invalid_input")
    assert response.json()["errors"][0]["field"] == "body.n"


async def test_missing_and_unknown_fields_are_422(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.post("/cpu-intensive", json={}), 422, "invalid_input")
    assert_problem(await client.post("/cpu-intensive", json={"n": 5, "m": 1}), 422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/cpu-intensive"), ("GET", "/async-demo"), ("GET", "/blocking-demo")]
)
async def test_without_a_good_token_every_route_is_401(
    client: httpx2.AsyncClient, mint: TokenMint, method: str, path: str
) -> None:
    for authorization in ("", "Bearer x.y.z", "Basic abc", f"Bearer {mint.token(lasts_s=-100)}"):
        response = await client.request(method, path, json={"n": 5}, headers={"Authorization": authorization})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"


async def test_a_full_pool_is_503_with_retry_after(
    client: httpx2.AsyncClient, pool: ProcessPool, tmp_path: Path
) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(2):
            work = (str(tmp_path / str(n)), str(tmp_path / "gate"))
            group.create_task(pool.run(faulty.tell_and_wait, work, Deadline.after(20)))
        await until(lambda: pool.busy + pool.queued == 2)

        response = await client.post("/cpu-intensive", json={"n": 5})

        assert_problem(response, 503, "pool_full")
        assert int(response.headers["retry-after"]) >= 1
        assert (await client.get("/ready")).status_code == 200
        (tmp_path / "gate").touch()
    assert (await client.post("/cpu-intensive", json={"n": 5})).status_code == 200


async def test_waiting_past_the_deadline_is_504(client: httpx2.AsyncClient, pool: ProcessPool, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        work = (str(tmp_path / "pid"), str(tmp_path / "gate"))
        group.create_task(pool.run(faulty.tell_and_wait, work, Deadline.after(20)))
        await until(lambda: pool.busy == 1)

        response = await client.post("/cpu-intensive", json={"n": 5}, headers={"X-Request-Timeout-Ms": "100"})

        assert_problem(response, 504, "deadline_exceeded")
        assert pool.queued == 0
        (tmp_path / "gate").touch()


async def test_a_worker_killed_before_it_began_is_not_noticed(client: httpx2.AsyncClient, pool: ProcessPool) -> None:
    response = await client.post("/cpu-intensive", json={"n": 5})
    pid = response.json()["worker_pid"]
    os.kill(pid, signal.SIGSTOP)  # so that the job is surely not done when the child is killed
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.post("/cpu-intensive", json={"n": 5_000_000}))
        await until(lambda: pool.busy == 1)
        os.kill(pid, signal.SIGKILL)
    # Stopped before it began: the job was handed to the next child, and nobody noticed.
    assert asked.result().status_code == 200
    assert asked.result().json()["worker_pid"] != pid


async def test_a_worker_that_dies_in_mid_job_is_500_and_the_next_request_works(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "count_primes", faulty.leave)
        assert_problem(await client.post("/cpu-intensive", json={"n": 5}), 500, "worker_died")
    assert (await client.post("/cpu-intensive", json={"n": 5})).status_code == 200


async def test_a_task_that_raises_is_500_without_its_text(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "count_primes", faulty.fail)
    response = await client.post("/cpu-intensive", json={"n": 1234})
    assert_problem(response, 500, "task_failed")
    assert "1234" not in response.text


async def ask_and_leave(app: Application, token: str, leave: asyncio.Event) -> list[Message]:
    """Ask for CPU work and disconnect when `leave` is set; return what was sent."""
    body = b'{"n": 5}'
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/cpu-intensive",
        "raw_path": b"/cpu-intensive",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "server": ("service.test", 80),
        "scheme": "http",
    }
    to_send = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if to_send:
            return to_send.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_a_client_that_leaves_while_its_job_runs_ends_the_job(
    app: Application, pool: ProcessPool, mint: TokenMint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "count_primes", faulty.spin)
    leave = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(ask_and_leave(app, mint.token(), leave))
        await until(lambda: pool.busy == 1)
        leave.set()
    assert asked.result() == []
    assert pool.busy + pool.queued == 0
    monkeypatch.undo()
    assert (await pool.run(tasks.count_primes, (100,), Deadline.after(5))).value == 25


async def test_a_client_that_leaves_while_waiting_frees_its_place(
    app: Application, pool: ProcessPool, mint: TokenMint, tmp_path: Path
) -> None:
    leave = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        work = (str(tmp_path / "pid"), str(tmp_path / "gate"))
        running_job = group.create_task(pool.run(faulty.tell_and_wait, work, Deadline.after(20)))
        await until(lambda: pool.busy == 1)
        asked = group.create_task(ask_and_leave(app, mint.token(), leave))
        await until(lambda: pool.queued == 1)
        leave.set()
        await until(lambda: pool.queued == 0)
        assert not running_job.done()
        (tmp_path / "gate").touch()
    assert asked.result() == []


async def test_async_demo_overlaps(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/async-demo")).json()
    assert (body["tasks"], body["limit"], body["max_in_flight"]) == (10, 5, 5)
    assert body["duration_ms"] < body["serial_ms"]
    body = (await client.get("/async-demo", params={"tasks": 3, "limit": 20})).json()
    assert (body["tasks"], body["limit"], body["max_in_flight"]) == (3, 20, 3)


@pytest.mark.parametrize("query", ["tasks=0", "tasks=101", "limit=0", "limit=21", "tasks=x", "limit=1.5", "tasks="])
async def test_async_demo_outside_its_limits_is_422(client: httpx2.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/async-demo?{query}"), 422, "invalid_input")


async def test_blocking_demo_blocks_a_thread_and_not_the_loop(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/blocking-demo", params={"ms": 200})).json()
    assert set(body) == {"ms", "duration_ms", "loop_lag_ms_max", "thread"}
    assert body["duration_ms"] >= 200
    assert body["loop_lag_ms_max"] < 200
    assert body["thread"].startswith("blocking")


@pytest.mark.parametrize("ms", ["0", "2001", "x"])
async def test_blocking_demo_outside_its_limits_is_422(client: httpx2.AsyncClient, ms: str) -> None:
    assert_problem(await client.get("/blocking-demo", params={"ms": ms}), 422, "invalid_input")


async def test_none_stalls_another(client: httpx2.AsyncClient, pool: ProcessPool, tmp_path: Path) -> None:
    order: list[str] = []

    async def ask(name: str, request: object) -> None:
        assert (await request).status_code == 200  # type: ignore[misc]
        order.append(name)

    async with asyncio.TaskGroup() as group:
        work = (str(tmp_path / "pid"), str(tmp_path / "gate"))
        group.create_task(pool.run(faulty.tell_and_wait, work, Deadline.after(20)))
        await until((tmp_path / "pid").exists)
        cpu = group.create_task(ask("cpu", client.post("/cpu-intensive", json={"n": 5})))
        blocked = group.create_task(ask("blocking", client.get("/blocking-demo", params={"ms": 500})))
        await ask("async", client.get("/async-demo"))
        await ask("live", client.get("/live"))
        assert not cpu.done()
        assert not blocked.done()
        (tmp_path / "gate").touch()
    assert order[:2] == ["async", "live"]


async def test_a_full_thread_pool_is_503(client: httpx2.AsyncClient) -> None:
    responses = await asyncio.gather(*(client.get("/blocking-demo", params={"ms": 100}) for _ in range(10)))
    found = sorted(response.status_code for response in responses)
    assert found == [200] * 4 + [503] * 6
    refused = next(response for response in responses if response.status_code == 503)
    assert_problem(refused, 503, "threads_full")
    assert "retry-after" in refused.headers


async def test_the_pool_is_in_the_metrics(client: httpx2.AsyncClient) -> None:
    await client.post("/cpu-intensive", json={"n": 5})
    text = (await client.get("/metrics")).text
    for line in (
        "pool_slots 1.0",
        "pool_busy 0.0",
        "pool_queue 0.0",
        'pool_jobs_total{result="ok"} 1.0',
        "pool_wait_seconds_count 1.0",
    ):
        assert line in text


async def test_the_tokens_of_an_ended_session_are_refused_at_once(mint: TokenMint) -> None:
    bus_url = f"memory://{new_id()}"
    settings = ComputeSettings(environment="test", slots=1, threads=1, nats_url=SecretStr(bus_url))
    token = mint.token()
    async with running(create(settings, keys=mint)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        assert (await client.get("/blocking-demo")).status_code == 200

        await end_session(bus_url, token)

        async def is_refused() -> bool:
            return (await client.get("/blocking-demo")).status_code == 401

        await eventually(is_refused)
        assert_problem(await client.get("/blocking-demo"), 401, "session_ended")
