"""Processes that share one store of quotas, on a clock that only the test moves."""

import asyncio
from collections.abc import Sequence

from services.gateway.adapters.quota_memory import MemoryQuotaStore
from services.gateway.domain.limiting import Limiter
from services.gateway.domain.metering import Meter, Verdict
from services.gateway.domain.quota import Ask, Grant, QuotaUnavailable
from services.gateway.model import Limit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Switched:
    """A store that a test takes away: it fails at once, hangs, or loses what it knew."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.behind = MemoryQuotaStore(clock=clock)
        self.is_up = True
        self.is_available = True
        self.calls = 0

    async def lease(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        self.calls += 1
        self.is_available = self.is_up
        if not self.is_up:
            raise QuotaUnavailable("switched off")
        return await self.behind.lease(asks)

    def forget(self) -> None:
        self.behind = MemoryQuotaStore(clock=self.clock)

    async def close(self) -> None:
        """Its buckets are shared by all processes of a test: they outlive each."""


def limit(quota: int, window_s: float = 60.0, **fields: object) -> Limit:
    return Limit.model_validate({"name": "test", "by": "user", "quota": quota, "window_s": window_s, **fields})


class Process:
    """One gateway process with one limit."""

    def __init__(self, store: Switched, limited: Limit, **settings: float) -> None:
        self.limiter = Limiter(store, clock=store.clock, **settings)  # type: ignore[arg-type]
        self.meter: Meter = self.limiter.meter(limited)

    async def ask(self, subject: str = "u", cost: int = 1) -> Verdict:
        """Decide on one request, with a call where it needs one."""
        return self.meter.take(subject, cost) or await self._wait(subject, cost, is_reserved=False)

    async def reserve(self, subject: str = "u", cost: int = 1) -> Verdict:
        return self.meter.reserve(subject, cost) or await self._wait(subject, cost, is_reserved=True)

    async def _wait(self, subject: str, cost: int, *, is_reserved: bool) -> Verdict:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(self.meter.wait(subject, cost, is_reserved=is_reserved))
            await asyncio.sleep(0)
            await self.limiter.work_off()
        return waiting.result()

    async def burst(self, count: int, subject: str = "u") -> list[Verdict]:
        return [await self.ask(subject) for _ in range(count)]

    @property
    def held(self) -> int:
        return sum(lease.held for lease in self.meter.leases.values())


def passed(verdicts: Sequence[Verdict]) -> int:
    return sum(not verdict.wait_s for verdict in verdicts)
