"""The limits of one process: the meters' leases are filled from the shared store, and given back to it, in few calls."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from services.gateway.domain.gcra import Demand, Rate
from services.gateway.domain.metering import KEEP_S, Lease, Meter
from services.gateway.domain.quota import Ask, QuotaStore, QuotaUnavailable
from services.gateway.model import Limit

LOCAL_SHARE = 0.25
"""Of the quota, while the store is away. How many processes there are is not known: up to four then keep the quota together."""

KEYS_MAX = 10_000
"""Keys of one limit that a process remembers, 300 bytes each; the least recently used makes room."""

BATCH_MAX = 128
RETURNS_MAX = 10_000
SWEEP_S = 1.0
PROBE_S = 0.25
CLOSE_S = 0.5


class _Return(NamedTuple):
    """Tokens on their way back; the bucket is not full before `own_tat`."""

    key: str
    rate: Rate
    tokens: int
    own_tat: float

    def ask(self, now: float) -> Ask:
        return Ask(self.key, self.rate, Demand(returned=self.tokens, owed_s=max(0.0, self.own_tat - now)))


class Limiter:
    """All limits of one process on one store. `run` must be running, under a supervisor, for anything to be asked of the store."""

    def __init__(
        self,
        store: QuotaStore,
        *,
        share: float = LOCAL_SHARE,
        clock: Callable[[], float] = time.monotonic,
        keys_max: int = KEYS_MAX,
    ) -> None:
        self.store = store
        self.share = share
        self.clock = clock
        self.keys_max = keys_max
        self.calls = 0
        self._meters: WeakValueDictionary[tuple[str, Rate], Meter] = WeakValueDictionary()
        self._queue: dict[Lease, None] = {}
        self._returns: deque[_Return] = deque(maxlen=RETURNS_MAX)
        self._wake = asyncio.Event()

    def meter(self, limit: Limit, quota: int | None = None) -> Meter:
        """Return the meter of a limit, at the quota of a tier where one is given; the same one for as long as anybody keeps it."""
        rate = Rate(quota or limit.quota, limit.window_s)
        meter = self._meters.get((limit.name, rate))
        if meter is None:
            meter = self._meters[limit.name, rate] = Meter(self, limit.name, rate)
        meter.is_open = limit.store_down == "open"
        return meter

    def enqueue(self, lease: Lease) -> None:
        """Ask the store about a lease soon."""
        if not lease.is_queued:
            lease.is_queued = True
            self._queue[lease] = None
            self._wake.set()

    def return_later(self, lease: Lease, tokens: int) -> None:
        """Give tokens back to the store soon. What finds no room in the queue is lost, which is strict and never lenient."""
        self._returns.append(_Return(_key(lease), lease.meter.rate, tokens, lease.own_tat))
        self._wake.set()

    def drop(self, lease: Lease) -> None:
        """Forget a lease; the store gets back what it held and learns what it spent, as far as its bucket is not full again."""
        lease.is_gone = True
        del lease.meter.leases[lease.subject]
        self._queue.pop(lease, None)
        now = self.clock()
        if lease.own_tat > now or (lease.held and lease.stored_tat > now):
            self.return_later(lease, lease.held)
        lease.held = 0

    def sweep(self) -> None:
        """Give back what has not been used for a minute."""
        since = self.clock() - KEEP_S
        for meter in list(self._meters.values()):
            idle = []
            for lease in meter.leases.values():
                if lease.used_at > since:
                    break
                if lease.waiters is None and not lease.reserved:
                    idle.append(lease)
            for lease in idle:
                self.drop(lease)

    def describe(self) -> dict[str, Any]:
        """Return what an operator wants to see, ready for JSON: of each limit the keys remembered and requests leased and unspent."""
        return {
            "store": "up" if self.store.is_available else "away",
            "store_calls": self.calls,
            "limits": [
                {
                    "name": f"{name} {rate.quota}/{rate.window_s:g}s",
                    "keys": len(meter.leases),
                    "leased_unspent": sum(lease.held for lease in meter.leases.values()),
                }
                for (name, rate), meter in sorted(self._meters.items())
            ],
        }

    async def run(self) -> None:
        """Serve what is asked for, each time all of it in one call; while the store is away, try it four times a second."""
        swept_at = self.clock()
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self.clock() - swept_at >= SWEEP_S:
                swept_at = self.clock()
                self.sweep()
            await self.work_off()
            if not self.store.is_available:
                await asyncio.sleep(PROBE_S)

    async def work_off(self) -> None:
        """Serve what is asked for now."""
        self._wake.clear()
        while self._queue or self._returns:
            if not await self._serve_batch():
                return

    async def _serve_batch(self) -> bool:
        """Make one call; tell whether the store answered."""
        leases = [lease for lease, _ in zip(self._queue, range(BATCH_MAX), strict=False)]
        for lease in leases:
            del self._queue[lease]
        returns = [self._returns.popleft() for _ in range(min(len(self._returns), BATCH_MAX))]
        sent_at = self.clock()
        asks = [Ask(_key(lease), lease.meter.rate, lease.meter.demand(lease, sent_at)) for lease in leases]
        returned = [item.ask(sent_at) for item in returns]
        self.calls += 1
        grants = None
        try:
            # What comes back first: it may be what the same key asks for again.
            grants = (await self.store.lease([*returned, *asks]))[len(returned) :]
        except QuotaUnavailable:
            # Whoever waits for a later batch would wait in vain.
            leases += self._queue
            self._queue.clear()
            return False
        finally:
            for number, lease in enumerate(leases):
                lease.is_queued = False
                if grants is not None:
                    lease.meter.fill(lease, asks[number].demand, grants[number], sent_at)
                else:
                    lease.meter.do_without(lease)
        return True

    async def close(self) -> None:
        """Give back all that is held, as far as the store takes it within half a second, and close the store."""
        for meter in list(self._meters.values()):
            for lease in list(meter.leases.values()):
                self.drop(lease)
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.work_off()
        except TimeoutError:
            self._returns.clear()
        await self.store.close()


def _key(lease: Lease) -> str:
    return lease.meter.key_prefix + lease.subject
