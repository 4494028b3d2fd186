"""The memory cache keeps the contract; its store forgets the least recently used and what has expired."""

import gc
from collections.abc import AsyncIterator

import pytest

from shared.cache.base import Cache, CacheUnavailable
from shared.cache.connect import connect
from shared.cache.memory import MemoryCache
from shared.cache.memory_store import ENTRY_OVERHEAD_BYTES, MemoryStore
from shared.testing.bus_probe import eventually
from shared.testing.cache_contract import CacheContract


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestMemoryCache(CacheContract):
    @pytest.fixture
    async def cache(self, store: MemoryStore) -> AsyncIterator[Cache]:
        cache = MemoryCache(store)
        yield cache
        await cache.close()

    @pytest.fixture
    async def other(self, store: MemoryStore) -> AsyncIterator[Cache]:
        cache = MemoryCache(store)
        yield cache
        await cache.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_least_recently_used_goes_first() -> None:
    store = MemoryStore(bytes_max=3 * (ENTRY_OVERHEAD_BYTES + 11))
    for key in "abc":
        store.put(key, bytes(10), ttl_s=60)
    assert store.get("a") is not None
    store.put("d", bytes(10), ttl_s=60)
    assert [key for key in "abcd" if store.get(key) is not None] == ["a", "c", "d"]


def test_no_more_entries_are_kept_than_asked_for() -> None:
    store = MemoryStore(entries_max=2)
    for key in "abc":
        store.put(key, b"", ttl_s=60)
    assert [key for key in "abc" if store.get(key) is not None] == ["b", "c"]
    assert (store.evicted, store.expired) == (1, 0)


def test_a_value_larger_than_the_whole_store_is_not_kept() -> None:
    store = MemoryStore(bytes_max=1000)
    store.put("a", bytes(2000), ttl_s=60)
    assert store.get("a") is None
    assert store.bytes_used == 0


def test_what_has_expired_gives_its_memory_back() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for n in range(100):
        store.put(f"k{n}", bytes(100), ttl_s=10 + n)
    clock.now += 59.5
    store.remove_expired()
    assert len(store) == 50
    clock.now += 1000
    store.remove_expired()
    assert (len(store), store.bytes_used) == (0, 0)
    assert (store.evicted, store.expired) == (0, 100)


def test_an_old_expiry_does_not_remove_a_renewed_value() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    store.put("a", b"1", ttl_s=5)
    store.put("a", b"2", ttl_s=50)
    clock.now += 10
    assert store.get("a") == b"2"
    assert store.ttl_s("a") == pytest.approx(40)


def test_setting_one_key_for_ever_uses_no_more_memory() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for _ in range(10_000):
        clock.now += 0.001
        store.put("a", b"x", ttl_s=1000)
    assert len(store) == 1
    assert len(store._expiries) < 100
    store.delete("a")
    assert store.bytes_used == 0


async def test_an_idle_cache_cleans_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.cache.memory_store.SWEEP_INTERVAL_S", 0.02)
    cache = MemoryCache()
    await cache.set("a", bytes(1000), ttl_s=0.05)
    assert cache.store.bytes_used > 1000
    await eventually(lambda: cache.store.bytes_used == 0)
    await eventually(lambda: not cache._sweeper.is_planned)


async def test_a_planted_outage_is_seen_as_one_and_passes() -> None:
    cache = MemoryCache()
    await cache.set("a", b"x", ttl_s=60)
    cache.available = False
    with pytest.raises(CacheUnavailable):
        await cache.get("a")
    cache.available = True
    assert await cache.get("a") == b"x"
    await cache.close()


async def test_memory_is_new_each_time_unless_named() -> None:
    one, two, three, four = connect("memory://"), connect("memory://"), connect("memory://n"), connect("memory://n")
    await one.set("a", b"1", ttl_s=60)
    await three.set("a", b"3", ttl_s=60)
    assert await two.get("a") is None
    assert await four.get("a") == b"3"
    for cache in (one, two, three, four):
        await cache.close()
    del one, two, three, four, cache
    gc.collect()
    assert await connect("memory://n").get("a") is None


@pytest.mark.parametrize("url", ["kafka://u:hunter2@h", "hunter2", "", "redis://:hunter2@", "redis://:hunter2@h:port"])
def test_a_bad_url_is_a_value_error_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="redis://") as caught:
        connect(url)
    assert "hunter2" not in str(caught.value)
