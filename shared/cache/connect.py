"""Choosing the cache: the URL's scheme picks the adapter, and only that one's driver is imported."""

from urllib.parse import urlsplit

from shared.cache.base import Cache


def connect(url: str) -> Cache:
    """Return a cache; nothing is asked of a server yet, because a missing cache is no reason not to start.

    `memory://` is a new one inside the process, `memory://word` the process-wide one of that name,
    `redis://user:password@host:port/0` a Redis or Valkey server, `rediss://` the same over TLS. Raises ValueError otherwise.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "memory":
        from shared.cache.memory import MemoryCache, store_named

        word = urlsplit(url).netloc
        return MemoryCache(store_named(word) if word else None)
    if scheme in ("redis", "rediss"):
        from shared.cache.redis import RedisCache

        return RedisCache(url)
    raise ValueError("the cache URL has an unknown scheme: use memory://, redis:// or rediss://")
