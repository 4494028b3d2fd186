"""Counts and marks that all replicas share in the cache; of this process alone, and bounded, while the cache is away."""

import structlog

from shared.cache.base import Cache, CacheUnavailable
from shared.cache.memory import MemoryCache
from shared.cache.memory_store import MemoryStore

LOCAL_ENTRIES_MAX = 50_000
"""The one used least lately goes first."""
LOCAL_BYTES_MAX = 16 * 1024 * 1024


class Counters:
    """Never raises: without the cache each replica counts for itself, which is said once when it begins."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._local = MemoryCache(MemoryStore(bytes_max=LOCAL_BYTES_MAX, entries_max=LOCAL_ENTRIES_MAX))
        self._is_away = False
        self._log = structlog.get_logger()

    async def count(self, key: str, *, ttl_s: float) -> int:
        """Add one and return the count; the first one sets how long it lives."""
        try:
            found = await self._cache.count(key, ttl_s=ttl_s)
        except CacheUnavailable:
            self._note_away()
            return await self._local.count(key, ttl_s=ttl_s)
        self._is_away = False
        return found

    async def mark(self, key: str, *, ttl_s: float) -> None:
        """Set a mark where none is."""
        try:
            await self._cache.add(key, b"1", ttl_s=ttl_s)
        except CacheUnavailable:
            self._note_away()
            await self._local.add(key, b"1", ttl_s=ttl_s)

    async def left_s(self, key: str) -> float:
        """Return the seconds that a count or mark has left, 0.0 where none is; one made while the cache was away counts as well."""
        local_s = await self._local.ttl_s(key)
        try:
            shared_s = await self._cache.ttl_s(key)
        except CacheUnavailable:
            self._note_away()
            return local_s
        self._is_away = False
        return max(shared_s, local_s)

    async def forget(self, *keys: str) -> None:
        await self._local.delete(*keys)
        try:
            await self._cache.delete(*keys)
        except CacheUnavailable:
            self._note_away()

    async def close(self) -> None:
        """Let go of this process's own counts; the cache belongs to whoever opened it."""
        await self._local.close()

    def _note_away(self) -> None:
        if not self._is_away:
            self._log.warning(
                "logins_counted_alone", reason="the cache is away: each replica counts failures for itself"
            )
        self._is_away = True
