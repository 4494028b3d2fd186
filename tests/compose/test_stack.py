"""The fleet in containers, under traffic: scaled, killed from within, cut off its servers, taken down and up again."""

import asyncio
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.compose.stack import GATEWAY_WORKERS, ROOT, SERVICES, Stack, inspect, ok, run
from tests.fleet import until
from tests.load import CALLERS, Tally, assert_none_lost, during

# The first of them waits for the images to be built, too.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATHS = ("/users?limit=1", "/live")
SPREAD_S = 5
RECOVERY_S = 30
"""On a quiet machine it takes 1 to 3 s; the bound is for one where much else runs."""
PASSWORD = "long enough 1"
KILL = "import os; os.kill(-1, 9)"
KILL_A_WORKER = """
import os
from pathlib import Path

def is_gateway(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"python\\0-m\\0services.gateway")

parents = {path.name: (path / "stat").read_text().rpartition(")")[2].split()[1] for path in Path("/proc").glob("[0-9]*")}
workers = [pid for pid, parent in parents.items() if is_gateway(pid) and parent in parents and is_gateway(parent)]
os.kill(int(workers[0]), 9)
print(len(workers))
"""


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=stack.url, timeout=15, trust_env=False) as found:
        yield found


async def register(client: httpx2.AsyncClient) -> tuple[str, str]:
    """Return name and id of a new user."""
    name = f"c{secrets.token_hex(6)}"
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    response = await client.post("/users", json=body)
    assert response.status_code == 201, response.text
    return name, response.json()["id"]


async def sign_in(client: httpx2.AsyncClient, name: str) -> httpx2.Response:
    return await client.post("/auth/token", data={"username": name, "password": PASSWORD})


def test_e2e_passes_through_compose(stack: Stack) -> None:
    environment = {**os.environ, "ROUNDHOUSE_URL": stack.url, "ROUNDHOUSE_ADMIN_PASSWORD": stack.admin_password}
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e"),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 100


def test_the_limits_are_in_force(stack: Stack) -> None:
    for service in SERVICES:
        host = inspect(stack.ids(service)[0])
        assert host["Config"]["User"] == "10001:10001"
        assert host["HostConfig"]["ReadonlyRootfs"]
        assert min(host["HostConfig"][name] for name in ("Memory", "NanoCpus", "PidsLimit")) > 0
        attempt = "open('/app/x', 'w')"
        refused = run(*stack.command("exec", "-T", service, "python", "-S", "-c", attempt))
        assert "Read-only file system" in refused.stderr
        assert run(*stack.command("exec", "-T", service, "sh", "-c", "true")).returncode != 0


def test_the_gateway_reaches_the_bus_and_the_store_of_its_limits_and_not_the_database(stack: Stack) -> None:
    attempt = "import socket; socket.create_connection(('{}', {}), 3)"
    for name, port in (("postgres", 5432), ("nats", 4222), ("valkey", 6379)):
        from_users = run(*stack.command("exec", "-T", "users", "python", "-S", "-c", attempt.format(name, port)))
        assert from_users.returncode == 0, from_users.stderr
        from_gateway = run(*stack.command("exec", "-T", "gateway", "python", "-S", "-c", attempt.format(name, port)))
        assert ("gaierror" in from_gateway.stderr) == (name == "postgres")
        assert (from_gateway.returncode == 0) == (name != "postgres")


async def test_scaling_under_traffic_loses_no_call_and_a_new_replica_gets_its_share(stack: Stack) -> None:
    tallies = {path: Tally() for path in PATHS}
    headers = {"Authorization": f"Bearer {stack.admin_token()}"}

    async def scale() -> None:
        await asyncio.to_thread(stack.scale, "users", 3)
        newest = (await asyncio.to_thread(stack.ids, "users"))[-1]
        has_answered: Callable[[], bool] = lambda: '"route":"/users"' in ok("docker", "logs", newest)  # noqa: E731
        await asyncio.to_thread(until, has_answered, "the new replica answers requests", SPREAD_S)
        for count in (1, 2):
            await asyncio.to_thread(stack.scale, "users", count)

    await during(stack.url, headers, tallies, scale)
    assert tallies["/live"].problems == []
    assert_none_lost(tallies["/users?limit=1"])


@pytest.mark.parametrize("name", [*SERVICES, "valkey", "nats", "postgres"])
async def test_a_process_killed_in_its_container_comes_back(stack: Stack, name: str) -> None:
    container = stack.ids(name)[0]
    restarts = inspect(container)["RestartCount"]
    tally = Tally()
    headers = {"Authorization": f"Bearer {stack.admin_token()}"}
    kill = ("python", "-S", "-c", KILL) if name in SERVICES else ("sh", "-c", "kill -9 -1")
    user = ("-u", "postgres") if name == "postgres" else ()

    def is_back() -> bool:
        found = inspect(container)
        return found["RestartCount"] > restarts and found["State"]["Health"]["Status"] == "healthy"

    async def work() -> None:
        await asyncio.to_thread(run, "docker", "exec", *user, container, *kill)
        await asyncio.to_thread(until, is_back, f"{name} is healthy again", RECOVERY_S)
        await asyncio.to_thread(stack.until_state, "up", RECOVERY_S)

    await during(stack.url, headers, {"/users?limit=1": tally}, work)
    # The gateway and PostgreSQL are needed by every call. Of the two replicas of users one dies, and the gateway repeats on the
    # other what was in flight there; nobody else is needed by any call.
    if name not in ("gateway", "postgres"):
        assert_none_lost(tally)


async def test_a_killed_worker_of_the_gateway_is_replaced_within_its_container(
    stack: Stack, client: httpx2.AsyncClient
) -> None:
    (container,) = stack.ids("gateway")
    restarts = inspect(container)["RestartCount"]
    headers = {"Authorization": f"Bearer {stack.admin_token()}"}
    tally = Tally()

    def starts() -> int:
        return ok("docker", "logs", container).count('"event":"started"')

    async def work() -> None:
        before = await asyncio.to_thread(starts)
        killed = await asyncio.to_thread(ok, "docker", "exec", container, "python", "-S", "-c", KILL_A_WORKER)
        assert int(killed) == GATEWAY_WORKERS
        await asyncio.to_thread(until, lambda: starts() == before + 1, "a worker takes its place", RECOVERY_S)

    await during(stack.url, headers, {"/users?limit=1": tally}, work)
    # What the worker had in flight, at most one call of each caller; nobody was refused.
    assert tally.failed <= CALLERS, f"{tally.statuses} {tally.problems[:5]}"
    assert inspect(container)["RestartCount"] == restarts
    metrics = (await client.get("/metrics", headers=headers)).text
    assert f'gateway_workers{{state="answering"}} {GATEWAY_WORKERS}' in metrics


@asynccontextmanager
async def cut(stack: Stack, name: str) -> AsyncIterator[None]:
    """Pull a server's network cable, and plug it in again at the end."""
    container, network = stack.ids(name)[0], f"{stack.project}_stores"
    await asyncio.to_thread(ok, "docker", "network", "disconnect", network, container)
    try:
        yield
    finally:
        await asyncio.to_thread(ok, "docker", "network", "connect", "--alias", name, network, container)


async def test_without_valkey_the_fleet_is_degraded_and_goes_on(stack: Stack, client: httpx2.AsyncClient) -> None:
    async with cut(stack, "valkey"):
        await asyncio.to_thread(stack.until_state, "degraded", RECOVERY_S)
        name, _ = await register(client)
        assert (await sign_in(client, name)).status_code == 200
    await asyncio.to_thread(stack.until_state, "up", RECOVERY_S)


async def test_without_nats_users_are_kept_and_told_of_later(stack: Stack, client: httpx2.AsyncClient) -> None:
    async with cut(stack, "nats"):
        await asyncio.to_thread(stack.until_state, "down", RECOVERY_S)
        name, user_id = await register(client)
        assert (await sign_in(client, name)).status_code == 200
    await asyncio.to_thread(stack.until_state, "up", RECOVERY_S)
    heard = re.compile(rf'"user":"{user_id}".*"event":"audit"')
    told: Callable[[], bool] = lambda: bool(heard.search(stack.compose("logs", "--no-color", "realtime")))  # noqa: E731
    await asyncio.to_thread(until, told, "realtime hears of the new user", 20)


async def test_everything_ends_by_itself_and_data_survive_down_and_up(stack: Stack, client: httpx2.AsyncClient) -> None:
    name, user_id = await register(client)
    token = (await sign_in(client, name)).json()["access_token"]

    await asyncio.to_thread(stack.compose, "stop")
    stopped = (await asyncio.to_thread(stack.compose, "ps", "-aq")).split()
    ends = {str(found["Name"]): found["State"]["ExitCode"] for found in map(inspect, stopped)}
    assert set(ends.values()) == {0}, f"not all ended by themselves: {ends}"
    await asyncio.to_thread(stack.compose, "down")
    await asyncio.to_thread(stack.up)
    await asyncio.to_thread(stack.until_state, "up")

    me = await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})
    assert (me.status_code, me.json().get("id")) == (200, user_id)
    assert (await sign_in(client, name)).status_code == 200
