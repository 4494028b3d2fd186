"""The cache inside one process: the twin of Redis for tests and for a fleet of one replica."""

from weakref import WeakValueDictionary

from shared.cache import checks, versions
from shared.cache.base import CacheUnavailable, Versioned
from shared.cache.memory_store import MemoryStore, Sweeper


class MemoryCache:
    """A cache on a store of this process; closing it leaves the store to its other users. `available` False plays an outage."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        # An empty store is false.
        self.store = MemoryStore() if store is None else store
        self.available = True
        self._closed = False
        self._sweeper = Sweeper(self.store)

    def _use(self) -> MemoryStore:
        if self._closed or not self.available:
            raise CacheUnavailable("the cache is not available")
        return self.store

    async def get(self, key: str) -> bytes | None:
        checks.check_key(key)
        return self._use().get(key)

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None:
        checks.check_key(key)
        checks.check_value(value)
        checks.check_ttl(ttl_s)
        self._use().put(key, bytes(value), ttl_s=ttl_s)
        self._sweeper.plan()

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        checks.check_key(key)
        checks.check_value(value)
        checks.check_ttl(ttl_s)
        added = self._use().add(key, bytes(value), ttl_s=ttl_s)
        self._sweeper.plan()
        return added

    async def set_newer(self, key: str, value: bytes, *, version: int, ttl_s: float) -> bool:
        checks.check_key(key)
        checks.check_value(value)
        versions.check_version(version)
        checks.check_ttl(ttl_s)
        found = versions.unpack(self._use().get(key))
        if found is not None and found.version > version:
            return False
        self.store.put(key, versions.pack(value, version), ttl_s=ttl_s)
        self._sweeper.plan()
        return True

    async def get_newest(self, key: str) -> Versioned | None:
        return versions.unpack(await self.get(key))

    async def count(self, key: str, *, ttl_s: float) -> int:
        checks.check_key(key)
        checks.check_ttl(ttl_s)
        counted = self._use().count(key, ttl_s=ttl_s)
        self._sweeper.plan()
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
        self._sweeper.stop()


_named: WeakValueDictionary[str, MemoryStore] = WeakValueDictionary()


def store_named(name: str) -> MemoryStore:
    """Return the process-wide store of a name; it lives as long as a cache uses it."""
    found = _named.get(name)
    if found is None:
        found = _named[name] = MemoryStore()
    return found
