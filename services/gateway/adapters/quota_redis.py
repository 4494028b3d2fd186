"""The buckets on Redis or Valkey, shared by all processes: one script settles a demand by the server's own clock."""

import asyncio
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from services.gateway.domain.gcra import SLACK
from services.gateway.domain.quota import Ask, Grant, QuotaUnavailable
from shared.breaker import BreakerConfig, CircuitBreaker, CircuitBreakerOpenError, State
from shared.cache.redis import open_pool
from shared.deadline import patient_timeout

KEY_PREFIX = "gateway:limit:"
CALL_WAIT_S = 0.08
"""One call in all, with connecting. The driver has no limits of its own: they would take a busy loop for a silent server."""

CONNECTIONS_MAX = 2
"""The limiter makes one call after the other; the second is for the closing one."""

BREAKER = BreakerConfig(window=4, window_s=10.0, volume_min=2, failure_rate=0.5, open_s=0.5)
"""Opens soon: without the store each process decides by itself, which costs less than a wait."""

# `settle` of domain/gcra.py, line by line, on whole microseconds of the server's clock. They are counted from the start of 2026:
# beside the microseconds since 1970 a double has no room for the fractions that make 600 intervals exactly one window.
# TIME in a script that writes is allowed since Redis 5, which replicates what a script did and not the script.
SCRIPT = f"""
local time = redis.call('TIME')
local now = (time[1] - 1767225600) * 1000000 + time[2]
local interval, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted, least, ahead = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local returned, owed = tonumber(ARGV[6]), tonumber(ARGV[7])
local stored = redis.call('GET', KEYS[1])
local was = stored and tonumber(stored) or now
local full_at = math.max(now, was - returned * interval, now + math.min(owed, window))
local free = math.floor((now + window - full_at) / interval + {SLACK})
local granted = 0
if free >= least then granted = math.max(0, math.min(wanted, free + ahead)) end
full_at = full_at + granted * interval
if full_at > now then
    if full_at ~= was then
        redis.call('SET', KEYS[1], string.format('%.17g', full_at), 'PX', math.ceil((full_at - now) / 1000))
    end
elseif stored then
    redis.call('DEL', KEYS[1])
end
return {{granted, string.format('%.17g', full_at - now)}}
"""
_SHA = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
_log = structlog.get_logger()


class RedisQuotaStore:
    """Connects when first used; no retries. While its circuit breaker is not closed it is not available."""

    def __init__(self, url: str, *, breaker: CircuitBreaker | None = None) -> None:
        self._breaker = breaker or CircuitBreaker(
            "quotas", BREAKER, failures=(RedisError, OSError, ValueError), on_change=_log_change
        )
        self._redis = Redis.from_pool(open_pool(url, connections_max=CONNECTIONS_MAX, wait_s=None))
        self._is_closed = False

    @property
    def is_available(self) -> bool:
        return self._breaker.state is State.CLOSED

    async def lease(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        if self._is_closed:
            raise QuotaUnavailable("the store is closed")
        try:
            async with self._breaker, patient_timeout(CALL_WAIT_S):
                return await self._settle(asks)
        except CircuitBreakerOpenError as error:
            raise QuotaUnavailable("the store failed lately and is left alone for a moment") from error
        except (RedisError, OSError, ValueError) as error:
            # TimeoutError is an OSError. The driver's texts name the host, so none is passed on.
            raise QuotaUnavailable(f"the store did not answer: {type(error).__name__}") from error

    async def _settle(self, asks: Sequence[Ask]) -> list[Grant]:
        answers = await self._run(asks, is_known=True)
        # A server that was started again has forgotten the script; what it did not know, it did not do.
        missed = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missed:
            again = await self._run([asks[number] for number in missed], is_known=False)
            for number, answer in zip(missed, again, strict=True):
                answers[number] = answer
        return [_grant(answer) for answer in answers]

    async def _run(self, asks: Sequence[Ask], *, is_known: bool) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for ask in asks:
            if is_known:
                pipeline.evalsha(_SHA, 1, KEY_PREFIX + ask.key, *_arguments(ask))
            else:
                pipeline.eval(SCRIPT, 1, KEY_PREFIX + ask.key, *_arguments(ask))
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    async def close(self) -> None:
        self._is_closed = True
        try:
            async with asyncio.timeout(1.0):
                await self._redis.aclose()
                await self._redis.connection_pool.disconnect()
        except (RedisError, OSError) as error:
            _log.debug("quotas_close_failed", reason=type(error).__name__)


def _arguments(ask: Ask) -> list[str]:
    rate, demand = ask.rate, ask.demand
    times = (rate.interval_s * 1e6, rate.window_s * 1e6)
    tokens = (demand.wanted, demand.least, demand.ahead, demand.returned)
    # Python's shortest form of a number is read back as the same number.
    return [repr(value) for value in (*times, *tokens, demand.owed_s * 1e6)]


def _grant(answer: Any) -> Grant:
    """Read the script's answer. Raises RedisError where the server refused, ValueError where it says something else."""
    if isinstance(answer, Exception):
        raise answer
    try:
        granted, full_in_us = answer
        return Grant(int(granted), float(full_in_us) / 1e6)
    except TypeError:
        raise ValueError("the script's answer has another form") from None


def _log_change(name: str, old: State, new: State) -> None:
    _log.warning("breaker_changed", breaker=name, before=old.value, now=new.value)
