"""The cache as its users see it: bytes under a key for a time; everything in it may be lost at any moment."""

from dataclasses import dataclass
from typing import Protocol

KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 1024 * 1024


class CacheUnavailable(Exception):
    """The cache did not answer in time, or its circuit breaker is open. Callers go on without it."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value and the version of what it shows."""

    value: bytes
    version: int


class Cache(Protocol):
    """Keys begin with the service's name (`users:...`); every value has a TTL. All calls may raise CacheUnavailable.

    ValueError: a key over KEY_BYTES_MAX bytes or empty, a value over VALUE_BYTES_MAX, a `ttl_s` <= 0, a version that is negative or
    over 2**53 - 1.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value, None when there is none or it has expired."""

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> None: ...

    async def add(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Store only where nothing is; True when this call stored it. Atomic."""

    async def set_newer(self, key: str, value: bytes, *, version: int, ttl_s: float) -> bool:
        """Store unless a newer version is there; True when this call stored it. Atomic, so a slow reader overwrites nothing newer.

        Read it with `get_newest`; to `get` the value is as it is stored, with its version.
        """

    async def get_newest(self, key: str) -> Versioned | None:
        """Return what `set_newer` stored, None when there is nothing or something else."""

    async def count(self, key: str, *, ttl_s: float) -> int:
        """Add one to a counter and return it; the first call starts it at 1 and sets the TTL, later ones keep it. Atomic."""

    async def ttl_s(self, key: str) -> float:
        """Return the seconds a key has left, 0.0 when it is not there."""

    async def delete(self, *keys: str) -> int:
        """Remove keys; return how many were there."""

    async def ping(self) -> None:
        """Make one round trip."""

    async def close(self) -> None: ...
