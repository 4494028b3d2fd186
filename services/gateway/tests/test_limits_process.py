"""The limits of a real process on a real Valkey, that comes late and goes again: clients are served all the time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.gateway.adapters.quota_redis import KEY_PREFIX
from services.gateway.tests.process import Process, started
from services.gateway.tests.scripted import WAIT_S, Message
from shared.testing.processes import RedisProcess

pytestmark = pytest.mark.slow  # real processes

QUOTA = 40
LIMITED = f"""
[[limits]]
name = "everyone"
by = "address"
quota = {QUOTA}
window_s = 3600

[[routes]]
path = "/open/*"
service = "open"
methods = ["GET"]
auth = "public"
limits = ["everyone"]
"""


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path)
    yield server
    server.kill()


async def ask(process: Process) -> Message:
    return await process.ask(process.public_port, "/open/x")


def left_of(answer: Message) -> int:
    """Return `r` of the header RateLimit."""
    return int(answer.get("ratelimit").partition(";r=")[2].partition(";")[0])


@asynccontextmanager
async def gateway_on(valkey: RedisProcess, folder: Path, serve) -> AsyncIterator[Process]:
    folder.mkdir()
    async with started(folder, await serve(), config=LIMITED, REDIS_URL=valkey.url) as process:
        yield process


async def test_a_gateway_starts_and_serves_while_the_store_is_away_and_counts_there_once_it_comes(
    valkey, serve, tmp_path
):
    async with gateway_on(valkey, tmp_path / "a", serve) as process:
        answers = [await ask(process) for _ in range(3)]
        assert [answer.status for answer in answers] == [200] * 3
        assert (await process.ask(process.private_port, "/ready")).status == 200

        valkey.start()

        async with asyncio.timeout(WAIT_S), Redis.from_url(valkey.url) as redis:
            while not await redis.keys(f"{KEY_PREFIX}*"):
                assert (await ask(process)).status == 200
                await asyncio.sleep(0.05)  # the pace of looking


async def test_a_gateway_goes_on_when_the_store_dies(valkey, serve, tmp_path):
    valkey.start()
    async with gateway_on(valkey, tmp_path / "a", serve) as process:
        assert [left_of(await ask(process)) for _ in range(3)] == [QUOTA - 1, QUOTA - 2, QUOTA - 3]
        valkey.kill()
        answers = [await ask(process) for _ in range(2 * QUOTA)]
        assert {answer.status for answer in answers} == {200}
        assert left_of(answers[-1]) == 0


async def test_what_one_process_has_spent_another_does_not_have(valkey, serve, tmp_path):
    valkey.start()
    async with gateway_on(valkey, tmp_path / "a", serve) as one, gateway_on(valkey, tmp_path / "b", serve) as other:
        statuses = [(await ask(process)).status for _ in range(QUOTA) for process in (one, other)]
        # Each alone would have let all of its own through. The half more is room for a store that a busy machine makes late.
        assert QUOTA <= statuses.count(200) < 1.5 * QUOTA
        refused = await ask(one)
        assert refused.status == 429
        assert refused.get("content-type") == "application/problem+json"
        assert int(refused.get("retry-after")) > 0
