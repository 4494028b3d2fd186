"""The cache as its users see it: bytes under a key for a time; everything in it may be lost at any moment."""

from typing import Protocol

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1024 * 1024


class CacheUnavailable(Exception):
    """The cache did not answer in time, or its circuit breaker is open. Callers go on without it."""


class Cache(Protocol):
    """Keys begin with the service's name (`users:...`); every value has a TTL. All calls may raise CacheUnavailable.

    ValueError: a key over KEY_BYTES_MAX bytes or empty, a value over VALUE_BYTES_MAX, a `ttl_s` <= 0.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, None when there is none or it has expired."""

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Store only where nothing is; True when this call stored it. Atomic."""

    async def count(self, key: str, *, ttl_s: float) -> int:
        """Add one to a counter and return it; the first call starts it at 1 and sets the TTL, later ones keep it. Atomic."""

    async def ttl_s(self, key: str) -> float:
        """Return the seconds a key has left, 0.0 when it is not there."""

    async def delete(self, *keys: str) -> int:
        """Remove keys; return how many were there."""

    async def ping(self) -> None:
        """Make one round trip."""

    async def close(self) -> None: ...
