"""The probe of Redis: one round trip through the cache that every service uses."""

from services.health.adapters.kinds import kind_of
from services.health.model import ProbeFailed, Role, Target
from shared.cache.base import Cache, CacheUnavailable


class CacheProbe:
    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.target = Target("redis", Role.OPTIONAL)

    async def check(self) -> None:
        try:
            await self._cache.ping()
        except CacheUnavailable as error:
            raise ProbeFailed(kind_of(error)) from error

    async def close(self) -> None:
        await self._cache.close()
