"""Choosing the store of quotas: the URL's scheme picks the adapter, and only that one's driver is imported."""

from services.gateway.domain.quota import QuotaStore


def open_quota_store(url: str) -> QuotaStore:
    """Return a store; nothing is asked of a server yet, because a missing one is no reason not to start.

    `memory://` counts inside this process, `redis://` and `rediss://` on a Redis or Valkey server. Raises ValueError otherwise.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme == "memory":
        from services.gateway.adapters.quota_memory import MemoryQuotaStore

        return MemoryQuotaStore()
    if scheme in ("redis", "rediss"):
        from services.gateway.adapters.quota_redis import RedisQuotaStore

        return RedisQuotaStore(url)
    raise ValueError("the URL of the store of quotas has an unknown scheme: use memory://, redis:// or rediss://")
