"""The cache inside one process: the twin of Redis for tests and for a fleet of one replica."""

import asyncio
from weakref import WeakValueDictionary

from shared.cache import checks
from shared.cache.base import CacheUnavailable
from shared.cache.memory_store import MemoryStore

SWEEP_INTERVAL_S = 1.0


class MemoryCache:
    """A cache on a store of this process; closing it leaves the store to its other users. `available` False plays an outage.

    While the store holds anything, a timer removes what has expired once a second, so that an idle cache gives its memory back.
    """

    def __init__(self, store: MemoryStore | None = None) -> None:
        # An empty store is false.
        self.store = MemoryStore() if store is None else store
        self.available = True
        self._closed = False
        self._sweep_timer: asyncio.TimerHandle | None = None

    def _use(self) -> MemoryStore:
        if self._closed or not self.available:
            raise CacheUnavailable("the cache is not available")
        return self.store

    def _plan_sweep(self) -> None:
        if self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        self.store.remove_expired()
        if len(self.store):
            self._plan_sweep()

    async def get(self, key: str) -> bytes | None:
        checks.check_key(key)
        return self._use().get(key)

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        checks.check_key(key)
        checks.check_value(value)
        checks.check_ttl(ttl_s)
        self._use().put(key, bytes(value), ttl_s=ttl_s)
        self._plan_sweep()

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        checks.check_key(key)
        checks.check_value(value)
        checks.check_ttl(ttl_s)
        added = self._use().add(key, bytes(value), ttl_s=ttl_s)
        self._plan_sweep()
        return added

    async def count(self, key: str, *, ttl_s: float) -> int:
        checks.check_key(key)
        checks.check_ttl(ttl_s)
        counted = self._use().count(key, ttl_s=ttl_s)
        self._plan_sweep()
        return counted

    async def ttl_s(self, key: str) -> float:
        checks.check_key(key)
        return self._use().ttl_s(key)

    async def delete(self, *keys: str) -> int:
        for key in keys:
            checks.check_key(key)
        store = self._use()
        return sum(store.delete(key) for key in keys)

    async def ping(self) -> None:
        self._use()

    async def close(self) -> None:
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None


_named: WeakValueDictionary[str, MemoryStore] = WeakValueDictionary()


def store_named(name: str) -> MemoryStore:
    """Return the process-wide store of a name; it lives as long as a cache uses it."""
    found = _named.get(name)
    if found is None:
        found = _named[name] = MemoryStore()
    return found
