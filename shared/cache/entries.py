"""What a tiered cache is told, keeps and answers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from shared.cache import checks

JITTER = 0.1
"""Times to live are spread by so much, so that what was loaded at one moment is not loaded anew at one moment."""

FLOOR_S = 30.0
"""So long what is older than an announced change is refused: longer than any load takes."""

TTL_S_MAX = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """`stale_s`: so long after it stopped being fresh an entry may stand in for a truth that cannot be asked (0: never).

    `stale_after_s`: who has such an entry waits no longer for the truth.
    """

    ttl_s: float = 30.0
    missing_ttl_s: float = 5.0
    stale_s: float = 0.0
    stale_after_s: float = 0.5
    bytes_max: int = 32 * 1024 * 1024
    entries_max: int = 50_000

    def __post_init__(self) -> None:
        for ttl_s in (self.ttl_s, self.missing_ttl_s):
            checks.check_ttl(ttl_s)
        if max(self.ttl_s, self.missing_ttl_s) > TTL_S_MAX:
            raise ValueError(f"a cached value lasts at most {TTL_S_MAX:g} s")
        if self.stale_s < 0 or self.stale_after_s <= 0 or self.bytes_max < 1 or self.entries_max < 1:
            raise ValueError("a cache needs room for an entry, stale_s of 0 or more and stale_after_s above 0")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is true: a value and its version (rising with each change; 0 where there are none), or None where nothing is."""

    value: bytes | None
    version: int = 0


Load = Callable[[], Awaitable[Loaded]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a cache answers; `age_s` since it was loaded, `is_stale` where the truth could not be asked."""

    value: bytes | None
    version: int
    age_s: float = 0.0
    is_stale: bool = False


@dataclass(slots=True)
class CacheStatistics:
    """Since the start: reads answered by what was kept, by Redis, by loading, by joining a load, and by something stale.

    `errors`: the cache failed or could not hold a value. `evicted`: what had to go for want of room; `expired`: what went at its time.
    """

    hits: int = 0
    remote_hits: int = 0
    misses: int = 0
    joined: int = 0
    stale: int = 0
    refused: int = 0
    """Loads that were older than what was known already, and so not kept."""
    changes: int = 0
    """Changes heard of other replicas."""
    flushes: int = 0
    errors: int = 0
    evicted: int = 0
    expired: int = 0
    entries: int = 0
    bytes_used: int = 0


def patterns_of(key: str) -> list[str]:
    """Return the patterns that take a key: `a:b:c` is taken by `a:*` and `a:b:*`."""
    parts = key.split(":")
    return [":".join(parts[:count]) + ":*" for count in range(1, len(parts))]
