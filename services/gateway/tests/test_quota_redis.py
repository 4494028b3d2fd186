"""The store on a real server keeps the contract; a dead, silent or forgetful one costs its callers next to nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.gateway.adapters import quota_redis
from services.gateway.adapters.quota import open_quota_store
from services.gateway.adapters.quota_redis import KEY_PREFIX, RedisQuotaStore
from services.gateway.domain.gcra import Demand, Rate
from services.gateway.domain.quota import Ask, QuotaStore, QuotaUnavailable
from services.gateway.tests.quota_contract import RATE, QuotaContract
from shared.testing.processes import RedisProcess


class TestRedisQuotaStore(QuotaContract):
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the calls do is tested here, not how fast a busy machine does it; the bounds have tests of their own below."""
        monkeypatch.setattr(quota_redis, "CALL_WAIT_S", 5.0)

    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[QuotaStore]:
        store = open_quota_store(redis_url)
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, redis_url: str) -> AsyncIterator[QuotaStore]:
        store = open_quota_store(redis_url)
        yield store
        await store.close()

    @pytest.fixture
    async def redis(self, redis_url: str) -> AsyncIterator[Redis]:
        async with Redis.from_url(redis_url) as redis:
            yield redis

    async def test_every_key_ends_when_its_bucket_is_full(self, store: QuotaStore, redis: Redis, key: str) -> None:
        rate = Rate(60, 600.0)
        await self.ask(store, key, rate, wanted=12, least=1)
        assert 118_000 < await redis.pttl(KEY_PREFIX + key) <= 120_000
        await self.ask(store, key, rate, wanted=60, least=1, ahead=60)
        assert 600_000 < await redis.pttl(KEY_PREFIX + key) <= 1_200_000

    async def test_full_bucket_has_no_key(self, store: QuotaStore, redis: Redis, key: str) -> None:
        await self.ask(store, key, wanted=5, least=1)
        await self.ask(store, key, returned=5)
        assert not await redis.exists(KEY_PREFIX + key)

    async def test_refusal_writes_nothing(self, store: QuotaStore, redis: Redis, key: str) -> None:
        await self.ask(store, key, wanted=600, least=1)
        before = await redis.get(KEY_PREFIX + key)
        await self.ask(store, key, wanted=1, least=1)
        assert await redis.get(KEY_PREFIX + key) == before

    async def test_server_that_forgot_the_script_learns_it_again(
        self, store: QuotaStore, redis: Redis, key: str
    ) -> None:
        await self.ask(store, key, wanted=500, least=1)
        await redis.script_flush()
        asks = [Ask(key, RATE, Demand(wanted=80, least=1))] * 2
        assert [grant.granted for grant in await store.lease(asks)] == [80, 20]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(server: RedisProcess) -> AsyncIterator[RedisQuotaStore]:
    store = RedisQuotaStore(server.url)
    await take(store)
    yield store
    await store.close()


async def take(store: QuotaStore) -> int:
    (grant,) = await store.lease([Ask("test:a", RATE, Demand(wanted=1, least=1))])
    return grant.granted


async def failing_s(store: QuotaStore) -> float:
    started = time.monotonic()
    with pytest.raises(QuotaUnavailable):
        await take(store)
    return time.monotonic() - started


async def comes_back(store: QuotaStore) -> None:
    async with asyncio.timeout(10):
        while not store.is_available:
            try:
                await take(store)
            except QuotaUnavailable:
                await asyncio.sleep(0.02)


async def test_a_late_loop_does_not_take_the_store_for_away(redis_url: str) -> None:
    store = RedisQuotaStore(redis_url)
    for _ in range(4):
        asyncio.get_running_loop().call_soon(time.sleep, quota_redis.CALL_WAIT_S * 1.5)
        assert await take(store) == 1
    assert store.is_available
    await store.close()


@pytest.mark.slow
async def test_a_silent_server_holds_two_calls_up_and_none_after(server: RedisProcess, store: RedisQuotaStore) -> None:
    server.pause()
    # The bound is the promise itself (80 ms), not a measurement.
    assert max([await failing_s(store) for _ in range(3)]) < 0.2
    assert not store.is_available
    server.resume()
    await comes_back(store)
    assert await take(store) == 1


@pytest.mark.slow
async def test_a_dead_server_fails_at_once_and_comes_back(server: RedisProcess, store: RedisQuotaStore) -> None:
    server.kill()
    for _ in range(3):
        await failing_s(store)
    assert not store.is_available
    server.start()
    await comes_back(store)
    assert await take(store) == 1


@pytest.mark.slow
async def test_a_store_opened_while_the_server_is_away_finds_it_later(tmp_path: Path) -> None:
    server = RedisProcess(tmp_path)
    store = RedisQuotaStore(server.url)
    for _ in range(3):
        await failing_s(store)
    server.start()
    try:
        await comes_back(store)
        assert await take(store) == 1
    finally:
        await store.close()
        server.kill()


@pytest.mark.slow
async def test_errors_show_neither_host_nor_password(server: RedisProcess) -> None:
    wrong = RedisQuotaStore(server.url.replace(server.password, "hunter2"))
    gone = RedisQuotaStore("redis://:hunter2@127.0.0.1:9/0")
    for store in (wrong, gone):
        with pytest.raises(QuotaUnavailable) as caught:
            await take(store)
        assert "hunter2" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)
        await store.close()


@pytest.mark.slow
async def test_a_server_that_refuses_to_write_is_not_available(server: RedisProcess, store: RedisQuotaStore) -> None:
    await store._redis.config_set("maxmemory-policy", "noeviction")
    await store._redis.config_set("maxmemory", 1)
    for _ in range(3):
        await failing_s(store)
    assert not store.is_available
    async with Redis.from_url(server.url) as redis:
        await redis.config_set("maxmemory", 0)
    await comes_back(store)


@pytest.mark.slow
async def test_a_cancelled_call_leaves_the_next_one_its_own_answer(store: RedisQuotaStore) -> None:
    for wait_s in (0.0, 0.0001, 0.0003, 0.001):
        try:
            async with asyncio.timeout(wait_s):
                await store.lease([Ask("test:other", RATE, Demand(wanted=3, least=3))] * 50)
        except TimeoutError:
            pass
        assert await take(store) == 1
