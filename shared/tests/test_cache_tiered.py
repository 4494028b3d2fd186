"""The tiered cache: loaded once, bounded, never older than what is known, with and without Redis and the bus."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from shared.cache import tiered
from shared.cache.base import Cache
from shared.cache.connect import connect as connect_cache
from shared.cache.entries import CacheConfig, Found, Loaded, patterns_of
from shared.cache.memory import MemoryCache
from shared.cache.tiered import TieredCache
from shared.metrics import Metrics
from shared.testing.cache_probe import Away, Clock, Truth, value


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def name() -> str:
    """A service that no other test plays, on a server that outlives this run too."""
    return f"test{os.getpid()}x{os.urandom(6).hex()}"


@pytest.fixture(params=["local", "memory", "redis"])
async def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cache | None]:
    """No shared tier, its memory twin, and Redis in turn."""
    if request.param == "local":
        yield None
        return
    if request.param == "redis":
        for bound in ("SOCKET_WAIT_S", "CALL_WAIT_S", "TOTAL_WAIT_S"):
            monkeypatch.setattr(f"shared.cache.redis.{bound}", 5.0)
    cache = MemoryCache() if request.param == "memory" else connect_cache(request.getfixturevalue("redis_url"))
    yield cache
    await cache.close()


@pytest.fixture
async def cache(name: str, remote: Cache | None, clock: Clock) -> AsyncIterator[TieredCache]:
    cache = TieredCache(name, remote=remote, clock=clock, away=(Away,))
    yield cache
    cache.close()


@pytest.fixture
async def local(name: str, clock: Clock) -> AsyncIterator[TieredCache]:
    """A cache without a shared tier that answers with stale entries."""
    cache = TieredCache(name, CacheConfig(stale_s=100, stale_after_s=0.05), clock=clock, away=(Away,))
    yield cache
    cache.close()


async def test_what_was_loaded_is_found_at_once_and_asked_for_once(cache: TieredCache, truth: Truth) -> None:
    assert cache.peek("a") is None
    assert await cache.get("a", truth.of("a")) == Found(b"one", 1, pytest.approx(0, abs=0.1))
    entry = cache.peek("a")
    assert entry is not None
    assert (entry.value, entry.version) == (b"one", 1)
    assert await value(cache, truth, "a") == b"one"
    assert truth.asked == ["a"]


async def test_many_at_once_load_once(cache: TieredCache, truth: Truth) -> None:
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(value(cache, truth, "a")) for _ in range(50)]
        await truth.until_asked(1)
        truth.go.set()
    assert {task.result() for task in tasks} == {b"one"}
    assert truth.asked == ["a"]
    assert cache.statistics.joined == 49


async def test_an_entry_is_loaded_again_after_its_time(local: TieredCache, truth: Truth, clock: Clock) -> None:
    await value(local, truth, "a")
    clock.now += 30 * 0.89
    assert local.peek("a") is not None
    clock.now += 30 * 0.12
    assert local.peek("a") is None
    assert await value(local, truth, "a") == b"one"
    assert truth.asked == ["a", "a"]


async def test_times_are_spread(local: TieredCache, truth: Truth) -> None:
    ends = set()
    for n in range(20):
        await local.get(f"k{n}", truth.of("a"))
        entry = local.peek(f"k{n}")
        assert entry is not None
        ends.add(round(entry.fresh_until - entry.stored_at, 2))
    assert len(ends) > 10
    assert all(27 <= end <= 30.1 for end in ends)


async def test_nothing_is_remembered_too_but_shorter(local: TieredCache, truth: Truth, clock: Clock) -> None:
    assert await value(local, truth, "none") is None
    assert await value(local, truth, "none") is None
    assert truth.asked == ["none"]
    clock.now += 5.1
    truth.values["none"] = (b"now", 1)
    assert await value(local, truth, "none") == b"now"


async def test_a_bypass_asks_and_what_it_learns_is_kept(cache: TieredCache, truth: Truth) -> None:
    await value(cache, truth, "a")
    truth.values["a"] = (b"two", 2)
    assert await value(cache, truth, "a", bypass=True) == b"two"
    assert await value(cache, truth, "a") == b"two"
    assert truth.asked == ["a", "a"]


async def test_the_writer_reads_what_it_wrote(cache: TieredCache, truth: Truth) -> None:
    await value(cache, truth, "a")
    truth.values["a"] = (b"two", 2)
    await cache.changed("a", 2)
    assert cache.peek("a") is None
    assert await value(cache, truth, "a") == b"two"
    await cache.changed("a", 3, value=b"three")
    assert await value(cache, truth, "a") == b"three"
    assert truth.asked == ["a", "a"]


@pytest.mark.parametrize("version", [0, 2])
async def test_a_slow_reader_overwrites_nothing_newer(cache: TieredCache, truth: Truth, version: int) -> None:
    truth.values["a"] = (b"old", version and 1)
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(value(cache, truth, "a"))
        await truth.until_asked(1)
        truth.values["a"] = (b"new", version)
        await cache.changed("a", version)
        after = group.create_task(value(cache, truth, "a"))
        await truth.until_asked(2)
        truth.go.set()
    assert slow.result() == b"old"
    assert after.result() == b"new"
    assert await value(cache, truth, "a") == b"new"
    assert truth.asked == ["a", "a"]
    assert cache.statistics.refused == 1


async def test_an_older_write_heard_late_changes_nothing(cache: TieredCache, truth: Truth) -> None:
    await cache.changed("a", 5, value=b"five")
    await cache.changed("a", 4, value=b"four")
    assert await value(cache, truth, "a") == b"five"
    assert truth.asked == []


async def test_what_was_deleted_does_not_come_back_by_a_slow_reader(cache: TieredCache, truth: Truth) -> None:
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(value(cache, truth, "a"))
        await truth.until_asked(1)
        del truth.values["a"]
        await cache.changed("a", 2)
        assert await asyncio.wait_for(value_now(cache, truth, "a"), 5) is None
        truth.go.set()
    assert slow.result() == b"one"
    assert await value(cache, truth, "a") is None
    # Restored, it is newer than what was deleted: at the version up to which nothing was shown.
    truth.values["a"] = (b"back", 2)
    await cache.changed("a", 2)
    assert await value(cache, truth, "a") == b"back"
    # The news of the deletion, heard again.
    await cache.changed("a", 2)
    assert cache.peek("a") is not None


async def value_now(cache: TieredCache, truth: Truth, key: str) -> bytes | None:
    async def load() -> Loaded:
        return Loaded(*truth.values.get(key, (None, 0)))

    return (await cache.get(key, load)).value


async def test_room_is_bounded_by_entries_and_bytes(name: str, truth: Truth) -> None:
    few = TieredCache(name, CacheConfig(entries_max=10))
    small = TieredCache(name, CacheConfig(bytes_max=10_000))
    for n in range(50):
        await few.get(f"k{n}", truth.of("a"))
        await small.get(f"k{n}", truth.of("a"))
    assert (few.statistics.entries, few.statistics.evicted) == (10, 40)
    assert 0 < small.statistics.bytes_used <= 10_000
    assert small.statistics.entries + small.statistics.evicted == 50
    assert few.peek("k49") is not None
    assert few.peek("k0") is None
    few.close()
    small.close()


async def test_a_tag_lets_go_of_all_that_was_loaded_with_it(cache: TieredCache, truth: Truth) -> None:
    await value(cache, truth, "a", tags=["list", "x"])
    await value(cache, truth, "b", tags=["x"])
    await cache.invalidate(tags=["list"])
    assert cache.peek("a") is None
    assert cache.peek("b") is not None
    truth.values["a"] = (b"new", 1)
    assert await value(cache, truth, "a", tags=["list", "x"]) == b"new"
    assert truth.asked == ["a", "b", "a"]


async def test_a_pattern_lets_go_of_the_keys_below_it(cache: TieredCache, truth: Truth) -> None:
    keys = ["list", "list:a", "list:admins:1", "list:admins:2", "other:1"]
    for key in keys:
        await value(cache, truth, key)
    await cache.invalidate(pattern="list:admins:*")
    assert [key for key in keys if cache.peek(key)] == ["list", "list:a", "other:1"]
    await cache.invalidate(pattern="list:*")
    assert [key for key in keys if cache.peek(key)] == ["list", "other:1"]
    for key in keys:
        await value(cache, truth, key)
    assert truth.asked == [*keys, "list:a", "list:admins:1", "list:admins:2"]
    with pytest.raises(ValueError, match="prefix"):
        await cache.invalidate(pattern="l*st")


def test_the_patterns_of_a_key_are_its_prefixes() -> None:
    assert patterns_of("a") == []
    assert patterns_of("a:b:c") == ["a:*", "a:b:*"]


async def test_what_was_being_loaded_for_a_tag_is_not_taken(cache: TieredCache, truth: Truth) -> None:
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(value(cache, truth, "a", tags=["t"]))
        await truth.until_asked(1)
        truth.values["a"] = (b"new", 1)
        await cache.invalidate(tags=["t"])
        truth.go.set()
    assert slow.result() == b"one"
    assert await value(cache, truth, "a", tags=["t"]) == b"new"


async def test_many_tags_take_no_more_memory_for_ever(
    local: TieredCache, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "GENERATIONS_MAX", 10)
    for n in range(100):
        await value(local, truth, "a", tags=[f"t{n}"])
        await local.invalidate(tags=[f"t{n}"])
        assert local.peek("a") is None
    assert len(local._generations) <= 10


async def test_what_a_flush_comes_upon_is_not_kept(local: TieredCache, truth: Truth) -> None:
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(value(local, truth, "a"))
        await truth.until_asked(1)
        local.flush()
        truth.go.set()
    assert local.peek("a") is None
    assert await value(local, truth, "a") == b"one"
    assert local.peek("a") is not None


async def test_what_it_counts_is_in_the_metrics(local: TieredCache, truth: Truth) -> None:
    metrics = Metrics()
    assert b"cache_" not in metrics.exposition()
    metrics.caches.watch("records", lambda: local.statistics)
    await value(local, truth, "a")
    await value(local, truth, "a")
    local.flush()
    text = metrics.exposition().decode()
    assert 'cache_reads_total{cache="records",result="hits"} 1.0' in text
    assert 'cache_reads_total{cache="records",result="misses"} 1.0' in text
    assert 'cache_removed_total{cache="records",reason="evicted"} 0.0' in text
    assert 'cache_flushes_total{cache="records"} 1.0' in text
    assert 'cache_entries{cache="records"} 0.0' in text


@pytest.mark.parametrize(
    "bad", [{"ttl_s": 0}, {"ttl_s": 3601}, {"missing_ttl_s": -1}, {"stale_s": -1}, {"entries_max": 0}, {"bytes_max": 0}]
)
def test_a_config_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cache"):
        CacheConfig(**bad)  # type: ignore[arg-type]


async def test_a_flood_of_changes_pushes_nothing_out_that_is_kept(name: str, truth: Truth) -> None:
    cache = TieredCache(name, CacheConfig(entries_max=10))
    for n in range(10):
        await cache.get(f"k{n}", truth.of("a"))
    await cache.changed_all({f"other{n}": 2 for n in range(1000)})
    assert all(cache.peek(f"k{n}") for n in range(10))
    assert cache.statistics.evicted == 0
    cache.close()


async def test_where_a_change_is_forgotten_early_no_load_under_way_is_kept(
    name: str, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiered, "FLOORS_MAX", 10)
    cache = TieredCache(name)
    truth.go.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(value(cache, truth, "a"))
        await truth.until_asked(1)
        await cache.changed("a", 2)
        await cache.changed_all({f"other{n}": 2 for n in range(20)})
        truth.go.set()
    assert cache.peek("a") is None
    assert len(cache._floors) == 10
    cache.close()
