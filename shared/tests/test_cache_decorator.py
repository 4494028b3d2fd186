"""Cached results: found, computed once for all, kept apart by their arguments, and never in the way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from shared.cache.base import VALUE_BYTES_MAX, Cache
from shared.cache.connect import connect
from shared.cache.decorator import cache_result
from shared.cache.flights import IN_FLIGHT_MAX
from shared.cache.memory import MemoryCache
from shared.cache.memory_store import MemoryStore
from shared.testing.bus_probe import eventually


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


class Source:
    """Counts what it is asked; waits for `go` where a test holds it back."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()

    async def answer(self, value: Any) -> Any:
        self.asked.append(value)
        await self.go.wait()
        return value


async def test_the_second_call_is_a_hit(cache: MemoryCache) -> None:
    source = Source()

    @cache_result(ttl=60, cache=lambda: cache)
    async def double(number: int) -> int:
        """Twice as much."""
        return 2 * int(await source.answer(number))

    assert [await double(2), await double(2), await double(number=2), await double(3)] == [4, 4, 4, 6]
    assert source.asked == [2, 3]
    assert (double.statistics.hits, double.statistics.misses, double.statistics.errors) == (2, 2, 0)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")


async def test_it_works_without_a_cache_given() -> None:
    source = Source()

    @cache_result(ttl=60)
    async def own(value: int) -> Any:
        return await source.answer(value)

    @cache_result(ttl=60)
    async def another(value: int) -> Any:
        return await source.answer(value)

    assert [await own(1), await own(1), await another(1)] == [1, 1, 1]
    assert source.asked == [1, 1]


async def test_none_is_cached_and_empty_values_too(cache: MemoryCache) -> None:
    source = Source()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    for value in (None, 0, "", [], {}):
        assert await cached(value) == value
        assert await cached(value) == value
    assert source.asked == [None, 0, "", [], {}]


def source_of(source: Source) -> Any:
    async def answer(value: Any, extra: Any = None) -> Any:
        return await source.answer(value)

    return answer


async def test_arguments_that_differ_are_kept_apart(cache: MemoryCache) -> None:
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(Source()))
    values = [1, "1", True, 1.0, None, "null", [1], {"a": 1}, {"a": "1"}, "é", "x" * 1000, "x" * 1001]
    keys = {cached.key_for(value) for value in values} | {cached.key_for(1, 2)}
    assert len(keys) == len(values) + 1
    assert all(len(key) <= 512 and key.isascii() for key in keys)
    assert cached.key_for({"a": 1, "b": 2}) == cached.key_for({"b": 2, "a": 1})
    assert cached.key_for(1, extra=None) == cached.key_for(value=1)


async def test_the_key_begins_with_the_service(cache: MemoryCache) -> None:
    async def find(user_id: str) -> str:
        return user_id

    find.__module__, find.__qualname__ = "services.users.domain", "find"
    assert cache_result(ttl=1)(find).key_for("u1") == 'users:domain.find:{"user_id":"u1"}'
    find.__qualname__ = "find" * 100
    assert cache_result(ttl=1)(find).key_for("u1").startswith("users:")
    assert len(cache_result(ttl=1)(find).key_for("u1")) < 100


async def test_arguments_that_make_no_key_ask_for_one(cache: MemoryCache) -> None:
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(Source()))
    with pytest.raises(TypeError, match="give key="):
        await cached(object())


async def test_a_method_is_cached_with_a_key_of_its_own(cache: MemoryCache) -> None:
    class Repository:
        def __init__(self, name: str) -> None:
            self.name = name
            self.asked = 0

        @cache_result(ttl=60, cache=lambda: cache, key=lambda self, user_id: f"{self.name}:{user_id}")
        async def find(self, user_id: str) -> str:
            self.asked += 1
            return f"{self.name} {user_id}"

    one, two = Repository("one"), Repository("two")
    assert [await one.find("a"), await one.find("a"), await two.find("a")] == ["one a", "one a", "two a"]
    assert (one.asked, two.asked) == (1, 1)
    assert Repository.find.statistics.hits == 1  # type: ignore[attr-defined]


async def test_many_callers_at_once_compute_once(cache: MemoryCache) -> None:
    source = Source()
    source.go.clear()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cached([1])) for _ in range(50)]
        await eventually(lambda: source.asked != [])
        source.go.set()
    results = [task.result() for task in tasks]
    assert results == [[1]] * 50
    assert len({id(result) for result in results}) == 50
    assert source.asked == [[1]]
    assert (cached.statistics.misses, cached.statistics.joined) == (1, 49)
    assert len(cached._flights) == 0


async def test_a_cancelled_first_caller_does_not_fail_the_others(cache: MemoryCache) -> None:
    source = Source()
    source.go.clear()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    loop = asyncio.get_running_loop()
    first, second = loop.create_task(cached(1)), loop.create_task(cached(1))
    await eventually(lambda: source.asked != [])
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    source.go.set()
    assert await second == 1
    assert source.asked == [1]


async def test_when_all_callers_have_gone_the_computing_ends_and_a_new_call_computes(cache: MemoryCache) -> None:
    ended: list[str] = []
    source = Source()
    source.go.clear()

    @cache_result(ttl=60, cache=lambda: cache)
    async def slow(value: int) -> Any:
        try:
            return await source.answer(value)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    call = asyncio.get_running_loop().create_task(slow(1))
    await eventually(lambda: source.asked != [])
    call.cancel()
    again = asyncio.get_running_loop().create_task(slow(1))
    await asyncio.wait({call})
    source.go.set()
    assert await again == 1
    assert call.cancelled()
    await eventually(lambda: len(slow._flights) == 0)
    assert ended in ([], ["cancelled"])


async def test_an_abandoned_computing_is_not_joined(cache: MemoryCache) -> None:
    source = Source()
    source.go.clear()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    call = asyncio.get_running_loop().create_task(cached(1))
    await eventually(lambda: source.asked != [])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(cached._flights) == 0
    source.go.set()
    assert await cached(1) == 1
    assert source.asked == [1, 1]


async def test_an_exception_reaches_all_who_wait_and_is_not_cached(cache: MemoryCache) -> None:
    asked = 0

    @cache_result(ttl=60, cache=lambda: cache)
    async def failing(value: int) -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise LookupError("planted")

    results = await asyncio.gather(*(failing(1) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError] * 3
    assert asked == 1
    with pytest.raises(LookupError):
        await failing(1)
    assert asked == 2


async def test_an_absent_cache_is_gone_around(cache: MemoryCache) -> None:
    source = Source()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    cache.available = False
    assert [await cached(1), await cached(1)] == [1, 1]
    assert source.asked == [1, 1]
    assert (cached.statistics.errors, cached.statistics.misses, cached.statistics.hits) == (4, 2, 0)
    cache.available = True
    assert [await cached(1), await cached(1)] == [1, 1]
    assert source.asked == [1, 1, 1]


async def test_strange_bytes_under_the_key_are_computed_anew(cache: MemoryCache) -> None:
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(Source()))
    await cache.set(cached.key_for(1), b"\xff not JSON", ttl_s=60)
    assert await cached(1) == 1
    assert await cached(1) == 1
    assert (cached.statistics.errors, cached.statistics.hits) == (1, 1)


async def test_a_result_too_large_is_returned_uncached(cache: MemoryCache) -> None:
    cached = cache_result(ttl=60, key=lambda *_: "k", cache=lambda: cache)(source_of(Source()))
    large = "x" * VALUE_BYTES_MAX
    assert [await cached(large), await cached(large)] == [large, large]
    assert (cached.statistics.errors, cached.statistics.misses) == (2, 2)


async def test_a_miss_gives_the_same_types_as_a_hit(cache: MemoryCache) -> None:
    @dataclass
    class Point:
        x: int

    @cache_result(ttl=60, cache=lambda: cache)
    async def point() -> Any:
        return (Point(1), (2, 3))

    assert await point() == await point() == [{"x": 1}, [2, 3]]


async def test_results_expire_and_not_all_at_one_moment() -> None:
    times: list[float] = []

    class Recording(MemoryCache):
        async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
            times.append(ttl_s)
            await super().set(key, value, ttl_s=ttl_s)

    now = [0.0]
    cache = Recording(MemoryStore(clock=lambda: now[0]))
    source = Source()
    cached = cache_result(ttl=10, cache=lambda: cache)(source_of(source))
    for n in range(50):
        await cached(n)
    assert 9 <= min(times) < max(times) <= 11
    assert len(set(times)) == 50
    now[0] += 8.9
    await cached(0)
    assert len(source.asked) == 50
    now[0] += 2.2
    await cached(0)
    assert len(source.asked) == 51


async def test_past_the_bound_each_caller_computes_for_itself(cache: MemoryCache) -> None:
    source = Source()
    source.go.clear()
    cached = cache_result(ttl=60, cache=lambda: cache)(source_of(source))
    async with asyncio.TaskGroup() as group:
        for n in range(IN_FLIGHT_MAX):
            group.create_task(cached(n))
        await eventually(lambda: len(source.asked) == IN_FLIGHT_MAX)
        for _ in range(2):
            group.create_task(cached("more"))
        await eventually(lambda: source.asked[-2:] == ["more", "more"])
        assert len(cached._flights) == IN_FLIGHT_MAX
        source.go.set()
    assert len(cached._flights) == 0


def test_only_async_functions_and_sensible_times_are_taken() -> None:
    with pytest.raises(TypeError, match="async"):
        cache_result(ttl=1)(lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="time to live"):
        cache_result(ttl=0)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Cache]:
    redis = connect(redis_url)
    yield redis
    await redis.close()


async def test_it_works_on_redis(redis: Cache) -> None:
    source = Source()
    cached = cache_result(ttl=60, cache=lambda: redis)(source_of(source))
    await redis.delete(cached.key_for({"a": ["é", None, 1.5]}))
    for _ in range(2):
        assert await cached({"a": ["é", None, 1.5]}) == {"a": ["é", None, 1.5]}
    assert len(source.asked) == 1
    assert cached.statistics.hits == 1
