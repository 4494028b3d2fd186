"""Caching a function's result: `@cache_result(ttl=5, cache=lambda: the_cache)` over an async function."""

import functools
import hashlib
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar

import orjson

from shared.cache.base import VALUE_BYTES_MAX, Cache, CacheUnavailable
from shared.cache.checks import check_ttl
from shared.cache.entries import JITTER, CacheStatistics
from shared.cache.flights import Flights
from shared.cache.memory import MemoryCache

KEY_PLAIN_CHARS_MAX = 200

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_JSON = orjson.OPT_NON_STR_KEYS


class CachedFunction(Generic[_Parameters, _Result]):
    """What the decorator makes of a function; call it like the function."""

    def __init__(
        self,
        function: Callable[_Parameters, Awaitable[_Result]],
        *,
        ttl: float,
        key: Callable[..., str] | None,
        cache: Callable[[], Cache],
    ) -> None:
        functools.update_wrapper(self, function)
        self._counts = CacheStatistics()
        self._function = function
        self._ttl_s = ttl
        self._key = key
        self._cache = cache
        self._signature = inspect.signature(function)
        # The service's name first, as every key in the cache has it: services.users.domain -> users:domain.
        place = function.__module__.removeprefix("services.").replace(".", ":", 1)
        self._prefix = f"{place}.{function.__qualname__}:"
        self._flights: Flights[bytes] = Flights(self._prefix)

    @property
    def statistics(self) -> CacheStatistics:
        """What was counted until now."""
        self._counts.joined = self._flights.joined
        return self._counts

    def key_for(self, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> str:
        """Return the key of a call; the same for `f(1)` and `f(number=1)`, different for `1`, `"1"` and `True`."""
        if self._key is not None:
            text = self._key(*args, **kwargs)
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            try:
                text = orjson.dumps(bound.arguments, option=_JSON | orjson.OPT_SORT_KEYS).decode()
            except TypeError as error:
                raise TypeError(f"the arguments of {self._prefix[:-1]} make no cache key: give key=") from error
        if len(self._prefix) + len(text) > KEY_PLAIN_CHARS_MAX:
            text = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
        whole = self._prefix + text
        if len(whole) > KEY_PLAIN_CHARS_MAX + 40 or not whole.isascii():
            place = self._prefix.partition(":")[0][:KEY_PLAIN_CHARS_MAX]
            return f"{place}:{hashlib.blake2b(whole.encode(), digest_size=20).hexdigest()}"
        return whole

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Awaitable[_Result]]:
        return self if instance is None else functools.partial(self, instance)  # type: ignore[arg-type]

    async def __call__(self, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        key = self.key_for(*args, **kwargs)
        return self._decode(await self._flights.run(key, lambda: self._load(key, args, kwargs)))

    async def _load(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        found = await self._find(key)
        if found is not None:
            self._counts.hits += 1
            return found
        self._counts.misses += 1
        encoded = orjson.dumps(await self._function(*args, **kwargs), option=_JSON)
        await self._keep(key, encoded)
        return encoded

    async def _find(self, key: str) -> bytes | None:
        try:
            found = await self._cache().get(key)
            if found is not None:
                orjson.loads(found)
        except (CacheUnavailable, orjson.JSONDecodeError):
            # Away, or another program's bytes under our key: compute, and write it anew.
            self._counts.errors += 1
            return None
        return found

    async def _keep(self, key: str, encoded: bytes) -> None:
        if len(encoded) > VALUE_BYTES_MAX:
            self._counts.errors += 1
            return
        # Spread, so that what was cached at one moment is not computed anew at one moment.
        ttl_s = self._ttl_s * random.uniform(1 - JITTER, 1 + JITTER)
        try:
            await self._cache().set(key, encoded, ttl_s=ttl_s)
        except CacheUnavailable:
            self._counts.errors += 1

    def _decode(self, encoded: bytes) -> _Result:
        # From the bytes on a miss too: every caller gets its own copy, and the same types on a miss as on a hit.
        result: Any = orjson.loads(encoded)
        return result  # type: ignore[no-any-return]


def cache_result(
    *, ttl: float, key: Callable[..., str] | None = None, cache: Callable[[], Cache] | None = None
) -> Callable[[Callable[_Parameters, Awaitable[_Result]]], CachedFunction[_Parameters, _Result]]:
    """Cache an async function's JSON-able result for `ttl` seconds (each time spread by 10 % either way), None included.

    `cache` is asked for the cache at every call, because functions are decorated before there is one:
    `@cache_result(ttl=5, cache=lambda: state.cache)`; without it the results stay in a bounded store of this process. The key is
    the function's name and its arguments as JSON; where they are not JSON-able (a method's `self`), `key` makes the text:
    `key=lambda self, user_id: user_id`. The result comes back as JSON gives it: a tuple as a list, a dataclass as a dict.

    Calls for one key in one process are computed once. An exception is not cached, and reaches all who wait. When the cache is
    away the function is called. `statistics` on the decorated function counts; `Metrics.caches.watch` shows it in `/metrics`.
    """
    check_ttl(ttl)
    source = cache or functools.cache(MemoryCache)

    def decorate(function: Callable[_Parameters, Awaitable[_Result]]) -> CachedFunction[_Parameters, _Result]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError("cache_result is for async functions")
        return CachedFunction(function, ttl=ttl, key=key, cache=source)

    return decorate
