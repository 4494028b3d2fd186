"""Caching a function's result: `@cache_result(ttl=5, cache=lambda: the_cache)` over an async function."""

import asyncio
import functools
import hashlib
import inspect
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import orjson

from shared.cache.base import VALUE_BYTES_MAX, Cache, CacheUnavailable
from shared.cache.checks import check_ttl
from shared.cache.memory import MemoryCache

IN_FLIGHT_MAX = 1024
"""So many different keys may be computed once for all their callers; past it each caller computes for itself."""
KEY_PLAIN_CHARS_MAX = 200
JITTER = 0.1

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_JSON = orjson.OPT_NON_STR_KEYS


@dataclass(slots=True)
class CacheStatistics:
    """Calls since the start: found, computed, waited for another's computing, and times the cache failed or could not hold it."""

    hits: int = 0
    misses: int = 0
    joined: int = 0
    errors: int = 0


@dataclass(slots=True, eq=False)
class _Flight:
    key: str
    task: "asyncio.Task[bytes]"
    waiting: int = 0


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
        self.statistics = CacheStatistics()
        self._function = function
        self._ttl_s = ttl
        self._key = key
        self._cache = cache
        self._signature = inspect.signature(function)
        # The service's name first, as every key in the cache has it: services.users.domain -> users:domain.
        place = function.__module__.removeprefix("services.").replace(".", ":", 1)
        self._prefix = f"{place}.{function.__qualname__}:"
        self._flights: dict[str, _Flight] = {}

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

        def compute() -> Awaitable[_Result]:
            return self._function(*args, **kwargs)

        flight = self._flights.get(key)
        if flight is not None:
            self.statistics.joined += 1
        elif len(self._flights) >= IN_FLIGHT_MAX:
            return self._decode(await self._load(key, compute))
        else:
            flight = self._start(key, compute)
        return self._decode(await self._await_flight(flight))

    def _start(self, key: str, compute: Callable[[], Awaitable[_Result]]) -> _Flight:
        # A task of its own, so that the caller who came first may be cancelled without failing those who joined.
        task = asyncio.get_running_loop().create_task(self._load(key, compute), name=f"cache {self._prefix}")
        flight = self._flights[key] = _Flight(key, task)

        def landed(done: "asyncio.Task[bytes]") -> None:
            self._forget(flight)
            if not done.cancelled():
                done.exception()  # where every caller has gone, nobody else looks at it

        task.add_done_callback(landed)
        return flight

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _await_flight(self, flight: _Flight) -> bytes:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Out of the map first: who calls now must not join what is being cancelled.
                self._forget(flight)
                flight.task.cancel()

    async def _load(self, key: str, compute: Callable[[], Awaitable[_Result]]) -> bytes:
        found = await self._find(key)
        if found is not None:
            self.statistics.hits += 1
            return found
        self.statistics.misses += 1
        encoded = orjson.dumps(await compute(), option=_JSON)
        await self._keep(key, encoded)
        return encoded

    async def _find(self, key: str) -> bytes | None:
        try:
            found = await self._cache().get(key)
            if found is not None:
                orjson.loads(found)
        except (CacheUnavailable, orjson.JSONDecodeError):
            # Away, or another program's bytes under our key: compute, and write it anew.
            self.statistics.errors += 1
            return None
        return found

    async def _keep(self, key: str, encoded: bytes) -> None:
        if len(encoded) > VALUE_BYTES_MAX:
            self.statistics.errors += 1
            return
        # Spread, so that what was cached at one moment is not computed anew at one moment.
        ttl_s = self._ttl_s * random.uniform(1 - JITTER, 1 + JITTER)
        try:
            await self._cache().set(key, encoded, ttl_s=ttl_s)
        except CacheUnavailable:
            self.statistics.errors += 1

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
    away the function is called. `statistics` on the decorated function counts.
    """
    check_ttl(ttl)
    source = cache or functools.cache(MemoryCache)

    def decorate(function: Callable[_Parameters, Awaitable[_Result]]) -> CachedFunction[_Parameters, _Result]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError("cache_result is for async functions")
        return CachedFunction(function, ttl=ttl, key=key, cache=source)

    return decorate
