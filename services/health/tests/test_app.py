"""The whole service: a fleet of small servers around it that rises, falls and hangs."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import orjson
import pytest
from pydantic import SecretStr

from services.health.app import create
from services.health.settings import HealthSettings
from services.health.tests import servers
from services.health.tests.servers import Place, serving
from shared.ids import new_id
from shared.testing.bus_probe import eventually
from shared.testing.client import running
from shared.testing.processes import NatsProcess, RedisProcess
from shared.testing.revocation import end_session
from shared.testing.tokens import TokenMint

pytestmark = pytest.mark.slow  # waits for states to turn


def settings_of(**more: object) -> HealthSettings:
    values: dict[str, object] = {"environment": "test", "probe_every_s": 0.05, "probe_timeout_s": 0.3, **more}
    return HealthSettings(**values)  # type: ignore[arg-type]


def write_endpoints(path: Path, services: dict[str, list[str]]) -> str:
    part = path.with_suffix(".part")
    part.write_bytes(orjson.dumps(services))
    part.rename(path)
    return f"file://{path}"


@asynccontextmanager
async def fleet(tmp_path: Path, **replicas: int) -> AsyncIterator[tuple[dict[str, list[Place]], str]]:
    """Serve so many ready replicas of each service and yield them with the setting that finds them."""
    async with AsyncExitStack() as stack:
        places = {
            name: [await stack.enter_async_context(serving(servers.READY)) for _ in range(count)]
            for name, count in replicas.items()
        }
        addresses = {name: [place.address for place in found] for name, found in places.items()}
        yield places, write_endpoints(tmp_path / "endpoints.json", addresses)


async def state(client: httpx2.AsyncClient) -> tuple[int, str]:
    response = await client.get("/health")
    return response.status_code, response.json()["state"]


async def detail(client: httpx2.AsyncClient) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = (await client.get("/health/detailed")).json()["components"]
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # type: ignore[misc]
            await asyncio.sleep(0.01)


async def becomes(client: httpx2.AsyncClient, expected: str) -> None:
    async def is_so() -> bool:
        return (await state(client))[1] == expected

    await until(is_so)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def test_a_fleet_goes_down_and_up_with_its_replicas(tmp_path: Path) -> None:
    async with (
        fleet(tmp_path, users=2, realtime=1) as (places, endpoints),
        running(create(settings_of(services="users,realtime", endpoints=endpoints))) as client,
    ):
        await becomes(client, "up")
        assert await state(client) == (200, "up")

        places["users"][1].answer = servers.NOT_READY
        await becomes(client, "degraded")
        assert (await state(client))[0] == 200
        users = (await detail(client))["users"]
        assert users["state"] == "degraded"
        assert users["replicas"]["users-1"]["state"] == "up"  # type: ignore[index]
        assert users["replicas"]["users-2"]["last_error"] == "not_ready"  # type: ignore[index]

        places["users"][0].answer = servers.hang
        await becomes(client, "down")
        assert (await state(client))[0] == 503
        assert (await detail(client))["realtime"]["state"] == "up", "only the component that is hit turns"

        for place in places["users"]:
            place.answer = servers.READY
        await becomes(client, "up")


async def test_a_service_that_vanishes_from_the_list_is_down_and_a_new_replica_is_found(tmp_path: Path) -> None:
    async with (
        fleet(tmp_path, users=2) as (places, endpoints),
        running(create(settings_of(services="users", endpoints=endpoints))) as client,
    ):
        await becomes(client, "up")
        write_endpoints(tmp_path / "endpoints.json", {"users": []})
        await becomes(client, "down")
        assert (await detail(client))["users"]["last_error"] == "no_address"
        write_endpoints(tmp_path / "endpoints.json", {"users": [places["users"][1].address]})
        await becomes(client, "up")


async def test_with_everything_down_it_starts_at_once_and_answers_quickly() -> None:
    settings = settings_of(
        nats_url=SecretStr(f"nats://u:pw@127.0.0.1:{free_port()}"),
        redis_url=SecretStr(f"redis://:pw@127.0.0.1:{free_port()}/0"),
        database_url=SecretStr(f"postgresql://u:pw@127.0.0.1:{free_port()}/x"),
        endpoints=f"users=127.0.0.1:{free_port()}",
    )
    async with running(create(settings)) as client:
        assert await state(client) == (503, "down"), "before anything has been asked"
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/live")).status_code == 200

        async def all_asked() -> bool:
            found = await detail(client)
            return {found[name].get("last_error") for name in ("nats", "redis", "postgres")} == {"refused"}

        await until(all_asked)
        fastest_s = 1.0
        for _ in range(5):
            started = time.perf_counter()
            assert await state(client) == (503, "down")
            fastest_s = min(fastest_s, time.perf_counter() - started)
        assert fastest_s < 0.05


async def test_while_everything_hangs_it_waits_for_nothing(tmp_path: Path) -> None:
    async with serving(servers.hang) as place:
        settings = settings_of(
            nats_url=SecretStr(f"nats://u:pw@{place.address}"),
            redis_url=SecretStr(f"redis://:pw@{place.address}/0"),
            database_url=SecretStr(f"postgresql://u:pw@{place.address}/x"),
            endpoints=f"users={place.address}",
            probe_timeout_s=10,
        )
        async with running(create(settings)) as client:
            async with asyncio.timeout(2):
                for _ in range(10):
                    assert await state(client) == (503, "down")


async def test_real_servers_turn_exactly_their_component(tmp_path: Path, postgres_url: str) -> None:
    nats, redis = NatsProcess(tmp_path), RedisProcess(tmp_path)
    nats.start()
    redis.start()
    settings = settings_of(
        services="",
        nats_url=SecretStr(nats.url),
        redis_url=SecretStr(redis.url),
        database_url=SecretStr(postgres_url),
    )
    try:
        async with running(create(settings)) as client:
            await becomes(client, "up")
            redis.pause()
            await becomes(client, "degraded")
            assert (await detail(client))["redis"]["state"] == "down"
            redis.resume()
            await becomes(client, "up")
            nats.pause()
            await becomes(client, "down")
            found = await detail(client)
            assert {name: part["state"] for name, part in found.items()} == {
                "nats": "down",
                "redis": "up",
                "postgres": "up",
            }
            nats.resume()
            await becomes(client, "up")
            nats.kill()
            await becomes(client, "down")
            assert (await detail(client))["nats"]["last_error"] == "refused"
            nats.start()
            await becomes(client, "up")
    finally:
        nats.kill()
        redis.kill()


async def test_results_that_grow_old_count_as_down(tmp_path: Path) -> None:
    async with fleet(tmp_path, users=1) as (_, endpoints):
        settings = settings_of(services="users", endpoints=endpoints, stale_after_s=0.2)
        app = create(settings)
        async with running(app) as client:
            await becomes(client, "up")
            # As when the rounds stand still for whatever reason.
            await app.runtime.tasks.close()
            await becomes(client, "down")
            assert (await detail(client))["users"]["replicas"]["users-1"]["last_error"] == "stale"  # type: ignore[index]


async def test_no_address_or_secret_is_shown(tmp_path: Path) -> None:
    async with (
        fleet(tmp_path, users=2, realtime=1) as (places, endpoints),
        serving(servers.raw(b"ERR you are at 127.0.0.1\r\n")) as liar,
        serving(servers.hang) as silent,
    ):
        places["users"][0].answer = servers.http(500, b'{"detail":"postgresql://roundhouse:s3cret@db.internal/x"}')
        places["users"][1].answer = servers.hang
        settings = settings_of(
            endpoints=endpoints,
            nats_url=SecretStr(f"nats://bus:s3cret@{liar.address}"),
            redis_url=SecretStr(f"redis://:s3cret@{silent.address}/0"),
            database_url=SecretStr(f"postgresql://roundhouse:s3cret@{liar.address}/x"),
        )
        async with running(create(settings)) as client:

            async def all_asked() -> bool:
                return "not_asked" not in (await client.get("/health/detailed")).text

            await until(all_asked)
            for path in ("/health", "/health/detailed", "/ready", "/openapi.json"):
                text = (await client.get(path)).text
                ports = [place.port for found in places.values() for place in found] + [liar.port, silent.port]
                for word in ("127.0.0.1", "localhost", "s3cret", "db.internal", "://", *map(str, ports)):
                    assert word not in text, f"{word} in {path}"


async def test_head_has_the_same_head_and_no_store(tmp_path: Path) -> None:
    async with running(create(settings_of(services="users"))) as client:
        for path in ("/health", "/health/detailed"):
            got, head = await client.get(path), await client.head(path)
            assert head.status_code == got.status_code
            assert got.headers["cache-control"] == head.headers["cache-control"] == "no-store"
            assert head.headers["content-length"] == got.headers["content-length"]


async def test_details_need_a_token_in_production_and_the_one_word_never() -> None:
    mint = TokenMint()
    async with running(create(settings_of(environment="production", services=""), keys=mint)) as client:
        assert await state(client) == (200, "up")
        for method in ("GET", "HEAD"):
            refused = await client.request(method, "/health/detailed")
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        refused = await client.get("/health/detailed", headers={"Authorization": "Bearer a.b.c"})
        assert refused.status_code == 401
        assert (await client.get("/health/detailed", headers=mint.bearer())).status_code == 200


async def test_wrong_methods_are_405() -> None:
    async with running(create(settings_of(services=""))) as client:
        for path in ("/health", "/health/detailed"):
            response = await client.post(path)
            assert response.status_code == 405
            assert response.headers["allow"] == "GET, HEAD"


async def test_memory_addresses_are_not_probed() -> None:
    settings = settings_of(services="", nats_url=SecretStr("memory://"), redis_url=SecretStr("memory://x"))
    async with running(create(settings)) as client:
        assert await detail(client) == {}


async def test_the_state_is_in_the_metrics(tmp_path: Path) -> None:
    async with (
        fleet(tmp_path, users=1) as (_, endpoints),
        running(create(settings_of(services="users,realtime", endpoints=endpoints))) as client,
    ):

        async def seen() -> bool:
            return 'component_state{component="users"} 1.0' in (await client.get("/metrics")).text

        await until(seen)
        text = (await client.get("/metrics")).text
        assert "fleet_state 0.0" in text
        assert 'component_state{component="realtime"} 0.0' in text


@pytest.mark.parametrize("services", ["users,", "Users", "a b", ",", "users;x"])
def test_a_malformed_list_of_services_is_refused(services: str) -> None:
    with pytest.raises(ValueError, match="services"):
        settings_of(services=services)


async def test_the_tokens_of_an_ended_session_are_refused_at_once(tmp_path: Path) -> None:
    mint, bus_url = TokenMint(), f"memory://{new_id()}"
    async with fleet(tmp_path, users=1) as (_, endpoints):
        settings = settings_of(endpoints=endpoints, environment="production", nats_url=SecretStr(bus_url))
        async with running(create(settings, keys=mint)) as client:
            token = mint.token()
            client.headers["Authorization"] = f"Bearer {token}"
            assert (await client.get("/health/detailed")).status_code == 200

            await end_session(bus_url, token)

            async def is_refused() -> bool:
                return (await client.get("/health/detailed")).status_code == 401

            await eventually(is_refused)
            assert (await client.get("/health/detailed")).json()["code"] == "session_ended"
