"""The contract of a cache: facts that hold for every adapter, inherited by its test class."""

import asyncio
import os

import pytest

from shared.cache.base import KEY_BYTES_MAX, VALUE_BYTES_MAX, Cache, CacheUnavailable, Versioned
from shared.cache.versions import VERSION_MAX
from shared.testing.bus_probe import eventually


class CacheContract:
    """A test class gives the fixtures `cache` and `other`: two caches on the same store, closed afterwards."""

    @pytest.fixture
    def key(self) -> str:
        """A key that no other test uses, on a server that outlives this run too."""
        return f"test:{os.getpid()}:{os.urandom(6).hex()}"

    async def test_what_is_set_is_found_by_everyone(self, cache: Cache, other: Cache, key: str) -> None:
        assert await cache.get(key) is None
        value = bytes(range(256))
        await cache.set(key, value, ttl_s=60)
        assert await other.get(key) == value
        await other.set(key, b"", ttl_s=60)
        assert await cache.get(key) == b""

    async def test_a_value_is_gone_after_its_time(self, cache: Cache, key: str) -> None:
        await cache.set(key, b"x", ttl_s=0.15)
        assert await cache.get(key) == b"x"

        async def gone() -> bool:
            return await cache.get(key) is None

        await eventually(gone)
        assert await cache.ttl_s(key) == 0.0

    async def test_setting_again_renews_value_and_time(self, cache: Cache, key: str) -> None:
        await cache.set(key, b"old", ttl_s=5)
        await cache.set(key, b"new", ttl_s=100)
        assert await cache.get(key) == b"new"
        assert 90 < await cache.ttl_s(key) <= 100

    async def test_only_one_of_many_adds(self, cache: Cache, other: Cache, key: str) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task((cache, other)[n % 2].add(key, b"%d" % n, ttl_s=60)) for n in range(20)]
        winners = [n for n, task in enumerate(tasks) if task.result()]
        assert len(winners) == 1
        assert await cache.get(key) == b"%d" % winners[0]
        await cache.delete(key)
        assert await cache.add(key, b"again", ttl_s=60)

    async def test_a_newer_version_is_not_overwritten(self, cache: Cache, other: Cache, key: str) -> None:
        assert await cache.get_newest(key) is None
        assert await cache.set_newer(key, b"nine", version=9, ttl_s=60)
        assert not await other.set_newer(key, b"old", version=8, ttl_s=60)
        assert await other.get_newest(key) == Versioned(b"nine", 9)
        assert await other.set_newer(key, b"v1:ten\r\n", version=10, ttl_s=60)
        assert await cache.get_newest(key) == Versioned(b"v1:ten\r\n", 10)
        assert await cache.set_newer(key, b"", version=10, ttl_s=100)
        assert await cache.get_newest(key) == Versioned(b"", 10)
        assert 90 < await cache.ttl_s(key) <= 100

    async def test_of_many_versions_at_once_the_newest_stays(self, cache: Cache, other: Cache, key: str) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(40):
                version = n * 7 % 40
                call = (cache, other)[n % 2].set_newer(key, b"%d" % version, version=version, ttl_s=60)
                group.create_task(call)
        assert await cache.get_newest(key) == Versioned(b"39", 39)

    async def test_a_version_is_forgotten_with_its_value(self, cache: Cache, key: str) -> None:
        await cache.set_newer(key, b"9", version=VERSION_MAX, ttl_s=60)
        assert await cache.get_newest(key) == Versioned(b"9", VERSION_MAX)
        await cache.delete(key)
        assert await cache.set_newer(key, b"1", version=0, ttl_s=60)
        assert await cache.get_newest(key) == Versioned(b"1", 0)

    async def test_what_has_no_version_is_not_read_as_one_and_overwritten(self, cache: Cache, key: str) -> None:
        for plain in (b"plain", b"v:", b"vx:1", b"v99"):
            await cache.set(key, plain, ttl_s=60)
            assert await cache.get_newest(key) is None
            assert await cache.set_newer(key, b"x", version=1, ttl_s=60)
            assert await cache.get_newest(key) == Versioned(b"x", 1)

    @pytest.mark.parametrize("version", [-1, VERSION_MAX + 1])
    async def test_a_bad_version_is_a_value_error(self, cache: Cache, key: str, version: int) -> None:
        with pytest.raises(ValueError, match="version"):
            await cache.set_newer(key, b"", version=version, ttl_s=60)

    async def test_counting_is_atomic_and_keeps_the_first_time(self, cache: Cache, other: Cache, key: str) -> None:
        assert await cache.count(key, ttl_s=50) == 1
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task((cache, other)[n % 2].count(key, ttl_s=5000)) for n in range(30)]
        assert sorted(task.result() for task in tasks) == list(range(2, 32))
        assert 40 < await cache.ttl_s(key) <= 50
        assert await cache.get(key) == b"31"

    async def test_a_counter_begins_anew_after_its_time(self, cache: Cache, key: str) -> None:
        await cache.count(key, ttl_s=0.15)
        await cache.count(key, ttl_s=60)

        async def gone() -> bool:
            return await cache.ttl_s(key) == 0.0

        await eventually(gone)
        assert await cache.count(key, ttl_s=60) == 1

    async def test_counting_what_is_no_counter_is_a_value_error(self, cache: Cache, key: str) -> None:
        await cache.set(key, b"text", ttl_s=60)
        for _ in range(10):
            with pytest.raises(ValueError, match="counter"):
                await cache.count(key, ttl_s=60)
        assert await cache.get(key) == b"text"

    async def test_delete_tells_how_many_were_there(self, cache: Cache, key: str) -> None:
        await cache.set(f"{key}:a", b"", ttl_s=60)
        await cache.set(f"{key}:b", b"", ttl_s=60)
        assert await cache.delete(f"{key}:a", f"{key}:b", f"{key}:none") == 2
        assert await cache.delete(f"{key}:a") == 0
        assert await cache.delete() == 0
        assert await cache.get(f"{key}:a") is None

    async def test_time_left_is_told_and_zero_for_nothing(self, cache: Cache, key: str) -> None:
        assert await cache.ttl_s(key) == 0.0
        await cache.add(key, b"x", ttl_s=10.5)
        assert 9 < await cache.ttl_s(key) <= 10.5

    @pytest.mark.parametrize("bad", ["", "x" * (KEY_BYTES_MAX + 1), "é" * (KEY_BYTES_MAX // 2 + 1)])
    async def test_a_bad_key_is_a_value_error(self, cache: Cache, bad: str) -> None:
        for call in (
            cache.get(bad),
            cache.set(bad, b"", ttl_s=1),
            cache.add(bad, b"", ttl_s=1),
            cache.set_newer(bad, b"", version=1, ttl_s=1),
            cache.get_newest(bad),
            cache.count(bad, ttl_s=1),
            cache.ttl_s(bad),
            cache.delete("good", bad),
        ):
            with pytest.raises(ValueError, match="key"):
                await call

    async def test_sizes_at_the_limit_are_taken_and_above_refused(self, cache: Cache, key: str) -> None:
        long_key = key + "k" * (KEY_BYTES_MAX - len(key))
        await cache.set(long_key, bytes(VALUE_BYTES_MAX), ttl_s=60)
        assert await cache.get(long_key) == bytes(VALUE_BYTES_MAX)
        await cache.delete(long_key)
        for store in (cache.set, cache.add):
            with pytest.raises(ValueError, match="value"):
                await store(key, bytes(VALUE_BYTES_MAX + 1), ttl_s=60)

    @pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
    async def test_a_bad_time_to_live_is_a_value_error(self, cache: Cache, key: str, ttl_s: float) -> None:
        for call in (cache.set(key, b"", ttl_s=ttl_s), cache.add(key, b"", ttl_s=ttl_s), cache.count(key, ttl_s=ttl_s)):
            with pytest.raises(ValueError, match="time to live"):
                await call
        assert await cache.get(key) is None

    async def test_a_cancelled_call_leaves_its_answer_to_nobody_else(self, cache: Cache, key: str) -> None:
        for n in range(20):
            await cache.set(f"{key}:{n}", b"%d" % n, ttl_s=60)
        loop = asyncio.get_running_loop()
        for n in range(20):
            call = loop.create_task(cache.get(f"{key}:{n}"))
            for _ in range(n % 5):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait({call})
            other = (n + 1) % 20
            assert await cache.get(f"{key}:{other}") == b"%d" % other

    async def test_many_calls_at_once_all_get_their_own_answer(self, cache: Cache, key: str) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(cache.set(f"{key}:{n}", b"%d" % n, ttl_s=60))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cache.get(f"{key}:{n}")) for n in range(100)]
        assert [task.result() for task in tasks] == [b"%d" % n for n in range(100)]

    async def test_a_closed_cache_is_unavailable_and_others_are_not(self, cache: Cache, other: Cache, key: str) -> None:
        await cache.ping()
        await cache.close()
        await cache.close()
        with pytest.raises(CacheUnavailable):
            await cache.get(key)
        with pytest.raises(CacheUnavailable):
            await cache.ping()
        await other.ping()
