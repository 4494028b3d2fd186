"""The Redis cache keeps the contract, and a dead or silent server costs its callers next to nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from shared.breaker import BreakerConfig, CircuitBreaker, State
from shared.cache import redis
from shared.cache.base import Cache, CacheUnavailable
from shared.cache.connect import connect
from shared.cache.redis import RedisCache
from shared.testing.bus_probe import eventually
from shared.testing.cache_contract import CacheContract
from shared.testing.processes import RedisProcess


class TestRedisCache(CacheContract):
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the calls do is tested here, not how fast a busy machine does it; the bounds have tests of their own below."""
        for bound in ("SOCKET_WAIT_S", "CALL_WAIT_S", "TOTAL_WAIT_S"):
            monkeypatch.setattr(redis, bound, 5.0)

    @pytest.fixture
    async def cache(self, redis_url: str) -> AsyncIterator[Cache]:
        cache = connect(redis_url)
        yield cache
        await cache.close()

    @pytest.fixture
    async def other(self, redis_url: str) -> AsyncIterator[Cache]:
        cache = connect(redis_url)
        yield cache
        await cache.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def cache(server: RedisProcess) -> AsyncIterator[RedisCache]:
    cache = RedisCache(server.url)
    await cache.set("test:a", b"x", ttl_s=600)
    yield cache
    await cache.close()


def calls(cache: Cache) -> list[Callable[[], Awaitable[object]]]:
    return [
        lambda: cache.get("test:a"),
        lambda: cache.set("test:a", b"x", ttl_s=600),
        lambda: cache.add("test:b", b"x", ttl_s=600),
        lambda: cache.count("test:c", ttl_s=600),
        lambda: cache.ttl_s("test:a"),
        lambda: cache.delete("test:b"),
        lambda: cache.ping(),
    ]


async def failing_s(call: Callable[[], Awaitable[object]]) -> float:
    started = time.monotonic()
    with pytest.raises(CacheUnavailable):
        await call()
    return time.monotonic() - started


async def answers(cache: Cache) -> bool:
    try:
        await cache.ping()
    except CacheUnavailable:
        return False
    return True


@pytest.mark.slow
async def test_a_silent_server_holds_no_call_up_and_is_taken_again(server: RedisProcess, cache: RedisCache) -> None:
    server.pause()
    # The bound is the promise itself (0.25 s), not a measurement.
    assert max([await failing_s(call) for call in calls(cache)]) < 0.25
    assert cache._breaker.state is State.OPEN
    server.resume()
    await eventually(lambda: answers(cache))
    assert cache._breaker.state is State.CLOSED
    assert await cache.get("test:a") == b"x"


@pytest.mark.slow
async def test_many_callers_of_a_silent_server_all_go_on_in_time(server: RedisProcess, cache: RedisCache) -> None:
    server.pause()
    took = await asyncio.gather(*(failing_s(lambda: cache.get("test:a")) for _ in range(200)))
    # 0.24 s is the bound of each; the rest is 200 tasks taking their turn on a busy machine.
    assert max(took) < 0.5
    server.resume()


@pytest.mark.slow
async def test_a_new_cache_on_a_silent_server_holds_no_call_up(server: RedisProcess) -> None:
    server.pause()
    cache = RedisCache(server.url)
    assert max([await failing_s(call) for call in calls(cache)]) < 0.25
    await cache.close()


@pytest.mark.slow
async def test_a_dead_server_fails_at_once_and_comes_back(server: RedisProcess, cache: RedisCache) -> None:
    server.kill()
    for call in calls(cache):
        await failing_s(call)
    assert cache._breaker.state is State.OPEN
    server.start()
    await eventually(lambda: answers(cache))
    await cache.set("test:a", b"new", ttl_s=60)
    assert await cache.get("test:a") == b"new"


@pytest.mark.slow
async def test_pooled_connections_of_a_restarted_server_do_not_fail_calls(server: RedisProcess) -> None:
    breaker = CircuitBreaker("never", BreakerConfig(window=10_000, volume_min=10_000))
    cache = RedisCache(server.url, breaker=breaker)
    await asyncio.gather(*(cache.ping() for _ in range(20)))
    witness, writer = await asyncio.open_connection("127.0.0.1", server.port)
    server.kill()
    # The loop hears of the closed connections all at once: when the newest is at its end, so are the pooled ones.
    assert await witness.read() == b""
    writer.close()
    server.start()
    await asyncio.gather(*(cache.ping() for _ in range(20)))
    await cache.close()


@pytest.mark.slow
async def test_an_open_breaker_makes_no_call(server: RedisProcess) -> None:
    breaker = CircuitBreaker("stuck", BreakerConfig(volume_min=1, open_s=600))
    cache = RedisCache(server.url, breaker=breaker)
    await cache.ping()
    breaker.acquire().fail()
    with pytest.raises(CacheUnavailable, match="left alone"):
        await cache.ping()
    await cache.close()


@pytest.mark.slow
async def test_errors_show_neither_host_nor_password(server: RedisProcess) -> None:
    wrong = RedisCache(server.url.replace(server.password, "hunter2"))
    server_gone = RedisCache("redis://:hunter2@127.0.0.1:9/0")
    for cache in (wrong, server_gone):
        with pytest.raises(CacheUnavailable) as caught:
            await cache.ping()
        assert "hunter2" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)
        await cache.close()


@pytest.mark.slow
async def test_a_server_out_of_memory_is_an_unavailable_cache(server: RedisProcess, cache: RedisCache) -> None:
    await cache._redis.config_set("maxmemory-policy", "noeviction")
    await cache._redis.config_set("maxmemory", 1)
    with pytest.raises(CacheUnavailable):
        await cache.set("test:big", b"x", ttl_s=60)
    await cache._redis.config_set("maxmemory", 0)
    await cache.set("test:big", b"x", ttl_s=60)


@pytest.mark.slow
async def test_a_counter_left_without_a_time_gets_one(server: RedisProcess, cache: RedisCache) -> None:
    await cache._redis.set("test:bare", 7)
    assert await cache.count("test:bare", ttl_s=60) == 8
    assert 50 < await cache.ttl_s("test:bare") <= 60
