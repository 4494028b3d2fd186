"""What one process knows of the keys of a limit, and how it decides on a request: mostly with no call.

What it knows of a key is a `Lease`: the tokens it holds, and the bucket's TAT (see gcra.py) as far as spent tokens moved it. A request
needs both: a held token, so that no two processes spend the same one, and a TAT within the window, so that one process alone is
exact, whatever it holds. For P processes that hold at most `lease_max` tokens of a key, any stretch of time sees at most
`quota + quota * time / window + P * lease_max` admitted requests: what was not held at its start came from the one bucket.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from math import ceil
from typing import NamedTuple, Protocol

from services.gateway.domain.gcra import SLACK, Demand, Rate
from services.gateway.domain.quota import Grant, QuotaStore
from shared.deadline import patient_timeout

LEASE_SHARE = 16
"""A process holds at most this part (1/16) of a quota. At 600 that is 38 tokens, fetched again when 9 are left: 0.035 calls a request.
Quotas up to 16 are leased token by token, and so are exact over all processes."""

AHEAD_S = 1.0
"""A bucket at its end lends what it will have in this time, or each token of a client at its limit would be a call of its own."""

GROWTH = 4
KEEP_S = 60.0
"""A lease that lasted less is followed by a larger one; a key not used for so long is given back."""

RECHECK_S = 1.0
"""What other processes took may come back any time: a refusal on their account is believed for so long, then the store is asked."""

WAIT_S = 0.1
"""A request waits at most so long for the store (more only where the loop is late), then its process decides alone."""


class Owner(Protocol):
    """What a meter needs of its limiter."""

    store: QuotaStore
    share: float
    clock: Callable[[], float]
    keys_max: int

    def enqueue(self, lease: "Lease") -> None: ...

    def return_later(self, lease: "Lease", tokens: int) -> None: ...

    def drop(self, lease: "Lease") -> None: ...


class Verdict(NamedTuple):
    """`free` tokens are left. `wait_s` is 0.0 for a request that may pass, else the seconds after which it might.

    `is_leased` is false for one that was let in without the store, on no token of it.
    """

    free: float
    wait_s: float
    lease: "Lease"
    is_leased: bool = True

    def undo(self, tokens: int, elapsed_s: float = 0.0) -> None:
        """Take back a request that was let in `elapsed_s` ago and is refused after all."""
        self.lease.undo(tokens, elapsed_s, is_leased=self.is_leased)

    def settle(self, tokens: int, *, is_counted: bool) -> None:
        """Say whether the tokens of a reservation count; once, always."""
        self.lease.settle(tokens, is_counted=is_counted, is_leased=self.is_leased)


class _Waiter(NamedTuple):
    cost: int
    is_reserved: bool
    verdict: asyncio.Future[Verdict]


class Lease:
    """What this process knows of one key; times are on the limiter's clock.

    `held` tokens are taken from the store and not spent. The bucket is full at `tat` as far as spent tokens count, at `stored_tat` as
    the store said last; `others_s` of `tat` are what other processes took, as known from there. `reserved` tokens are given out, and
    nobody knows yet whether they will count. `share_tat` is the TAT of the local share.
    """

    __slots__ = (
        "filled_at", "held", "is_gone", "is_queued", "low", "meter", "others_s", "reserved", "share_tat", "size", "stored_tat",
        "subject", "tat", "used_at", "waiters",
    )  # fmt: skip

    def __init__(self, meter: "Meter", subject: str, now: float) -> None:
        self.meter = meter
        self.subject = subject
        self.tat = self.stored_tat = self.share_tat = self.others_s = 0.0
        self.used_at = now
        self.filled_at = now - KEEP_S
        self.held = self.reserved = 0
        self.size = 1
        # A refill begins when no more than this is held: small leases are too often the last of a rare visitor.
        self.low = -1
        self.is_queued = self.is_gone = False
        self.waiters: deque[_Waiter] | None = None

    def tat_from(self, now: float) -> float:
        """Return the TAT, which is never in the past: what comes back to a full bucket is lost."""
        if self.tat < now:
            self.tat = now
            self.others_s = 0.0
        return self.tat

    @property
    def own_tat(self) -> float:
        """The bucket is not full before that, by what this process spent itself."""
        return self.tat - self.others_s

    def undo(self, tokens: int, elapsed_s: float, *, is_leased: bool) -> None:
        """See Verdict. What has come back by itself in the elapsed time does not come back twice."""
        self.tat -= max(0.0, tokens * self.meter.rate.interval_s - elapsed_s)
        self._release(tokens, elapsed_s, is_leased=is_leased)

    def settle(self, tokens: int, *, is_counted: bool, is_leased: bool) -> None:
        """See Verdict. Reserved tokens of a lease that has gone meanwhile were left with the store as spent."""
        self.reserved -= tokens
        if not is_counted:
            self._release(tokens, 0.0, is_leased=is_leased)
        elif not self.is_gone:
            self.tat = self.tat_from(self.meter.owner.clock()) + tokens * self.meter.rate.interval_s

    def _release(self, tokens: int, elapsed_s: float, *, is_leased: bool) -> None:
        if not is_leased:
            self.share_tat -= max(0.0, tokens * self.meter.rate.interval_s / self.meter.owner.share - elapsed_s)
            return
        kept = 0 if self.is_gone else max(0, min(tokens, self.meter.lease_max - self.held))
        self.held += kept
        if tokens > kept:
            self.meter.owner.return_later(self, tokens - kept)


class Meter:
    """One limit at one rate: its keys and what each may still spend. Made by `Limiter.meter`."""

    def __init__(self, owner: Owner, name: str, rate: Rate) -> None:
        self.owner = owner
        self.name = name
        self.rate = rate
        self.is_open = True
        self.lease_max = ceil(rate.quota / LEASE_SHARE)
        self.ahead = min(self.lease_max, int(AHEAD_S / rate.interval_s))
        self.leases: OrderedDict[str, Lease] = OrderedDict()
        # A changed rate begins anew: a debt of days, owed to an old window, must not lock anybody out of a short one.
        self.key_prefix = f"{name}:{rate.quota}/{rate.window_s:g}:"
        self._clock = owner.clock
        self._interval_s = rate.interval_s
        self._room_s = rate.window_s + SLACK * rate.interval_s

    def take(self, subject: str, cost: int = 1) -> Verdict | None:
        """Let one request in or refuse it with no call; None where the store has to be asked: await `wait` then."""
        lease = self.leases.get(subject)
        now = self._clock()
        if lease is None:
            lease = self._open(subject, now)
        tat = lease.tat
        if tat < now:
            tat = now
            lease.others_s = 0.0
        tat += cost * self._interval_s
        ahead_s = tat - now
        held = lease.held
        if ahead_s <= self._room_s and held >= cost and not lease.reserved:
            lease.held = held = held - cost
            lease.tat = tat
            lease.used_at = now
            self.leases.move_to_end(subject)
            free = (self.rate.window_s - ahead_s) / self._interval_s
            if held <= lease.low and free >= 1 and not lease.is_queued:
                self.owner.enqueue(lease)
            return Verdict(free, 0.0, lease)
        return self._decide(lease, cost, now, is_reserved=False)

    def reserve(self, subject: str, cost: int = 1) -> Verdict | None:
        """Like `take`, but whether the tokens count is said later by `verdict.settle`, which must follow if it may pass."""
        now = self._clock()
        lease = self.leases.get(subject) or self._open(subject, now)
        return self._decide(lease, cost, now, is_reserved=True)

    async def wait(self, subject: str, cost: int = 1, *, is_reserved: bool = False) -> Verdict:
        """Ask the store and decide; where it does not answer in time, decide without it. Never raises for a store's failure."""
        now = self._clock()
        lease = self.leases.get(subject) or self._open(subject, now)
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if lease.waiters is None:
            lease.waiters = deque()
        lease.waiters.append(_Waiter(cost, is_reserved, verdict))
        self.owner.enqueue(lease)
        try:
            async with patient_timeout(WAIT_S):
                return await verdict
        except TimeoutError:
            # Cancelled by the timeout, unless the verdict came in the same moment.
            return verdict.result() if _is_said(verdict) else self.spend_share(lease, cost, is_reserved=is_reserved)
        except asyncio.CancelledError:
            if _is_said(verdict) and not verdict.result().wait_s:
                _forget(verdict.result(), cost, is_reserved=is_reserved)
            raise

    def _open(self, subject: str, now: float) -> Lease:
        if len(self.leases) >= self.owner.keys_max:
            self._make_room()
        lease = self.leases[subject] = Lease(self, subject, now)
        return lease

    def _make_room(self) -> None:
        # Those with requests under way have to stay; there are never more of them than connections.
        for lease in self.leases.values():
            if lease.waiters is None and not lease.reserved:
                self.owner.drop(lease)
                return

    def _decide(self, lease: Lease, cost: int, now: float, *, is_reserved: bool) -> Verdict | None:
        """Decide on a request wherever it cannot be done in a few lines."""
        lease.used_at = now
        self.leases.move_to_end(lease.subject)
        interval_s = self._interval_s
        tat = lease.tat_from(now) + (lease.reserved + cost) * interval_s
        over_s = tat - now - self._room_s
        if lease.held >= cost and over_s <= 0:
            lease.held -= cost
            self._book(lease, cost, now, is_reserved=is_reserved)
            free = (self.rate.window_s + now - tat) / interval_s
            if lease.held <= lease.low and free >= 1:
                self.owner.enqueue(lease)
            return Verdict(free, 0.0, lease)
        if not self.owner.store.is_available:
            self.owner.enqueue(lease)
            return self.spend_share(lease, cost, is_reserved=is_reserved)
        if over_s > 0 and (over_s > lease.others_s or now - lease.filled_at < RECHECK_S):
            return Verdict(cost - over_s / interval_s, over_s, lease)
        return None

    def _book(self, lease: Lease, cost: int, now: float, *, is_reserved: bool) -> None:
        if is_reserved:
            lease.reserved += cost
        else:
            lease.tat = lease.tat_from(now) + cost * self._interval_s

    def spend_share(self, lease: Lease, cost: int, *, is_reserved: bool) -> Verdict:
        """Decide without the store: within the local share, then as the limit's `store_down` says."""
        now = self._clock()
        interval_s = self._interval_s / self.owner.share
        tat = max(lease.share_tat, now) + cost * interval_s
        over_s = tat - now - self.rate.window_s - SLACK * interval_s
        if over_s > 0 and not self.is_open:
            return Verdict(cost - over_s / interval_s, over_s, lease)
        if over_s <= 0:
            lease.share_tat = tat
        self._book(lease, cost, now, is_reserved=is_reserved)
        # Let in beyond the quota: the client owes no more than a whole one when the store is back.
        lease.tat = min(lease.tat, now + self.rate.window_s)
        return Verdict(max(0.0, -over_s / interval_s), 0.0, lease, is_leased=False)

    def demand(self, lease: Lease, now: float) -> Demand:
        """Return what a lease needs from the store."""
        waiting = lease.waiters or ()
        needed = sum(waiter.cost for waiter in waiting)
        least = max(1, waiting[0].cost - lease.held) if waiting else 1
        if now - lease.filled_at < KEEP_S:
            lease.size = min(self.lease_max, lease.size * GROWTH)
            lease.low = lease.size // 4 if lease.size >= GROWTH else -1
        return Demand(
            wanted=max(least, needed - lease.held, lease.size - lease.held),
            least=least,
            ahead=self.ahead,
            owed_s=max(0.0, lease.own_tat - now),
        )

    def fill(self, lease: Lease, demand: Demand, grant: Grant, sent_at: float) -> None:
        """Take in what the store granted and decide on those who waited for it."""
        now = self._clock()
        if lease.is_gone:
            self.owner.return_later(lease, grant.granted)
            return
        interval_s = self._interval_s
        lease.filled_at = now
        lease.held += grant.granted
        # Counted from before the call: what this process spent itself it knows exactly, and a late estimate would add to that.
        lease.stored_tat = sent_at + grant.full_in_s
        own = max(lease.own_tat, now)
        lease.tat = max(own, lease.stored_tat - (lease.held + lease.reserved) * interval_s)
        lease.others_s = lease.tat - own
        waiters, lease.waiters = lease.waiters, None
        while waiters:
            waiter = waiters[0]
            if not waiter.verdict.done():
                verdict = self._decide(lease, waiter.cost, now, is_reserved=waiter.is_reserved)
                if verdict is None and (grant.granted or waiter.cost - lease.held < demand.least):
                    # Not enough, or not asked for this one; the rest of the queue stays behind it.
                    lease.waiters = waiters
                    self.owner.enqueue(lease)
                    return
                waiter.verdict.set_result(verdict or Verdict(0.0, interval_s, lease))
            waiters.popleft()
        surplus = lease.held - self.lease_max
        if surplus > 0:
            # Taken for somebody who has gone meanwhile.
            lease.held -= surplus
            self.owner.return_later(lease, surplus)

    def do_without(self, lease: Lease) -> None:
        """Decide on those who wait, since the store does not answer."""
        waiters, lease.waiters = lease.waiters, None
        for waiter in waiters or ():
            if not waiter.verdict.done():
                waiter.verdict.set_result(self.spend_share(lease, waiter.cost, is_reserved=waiter.is_reserved))


def _is_said(verdict: asyncio.Future[Verdict]) -> bool:
    return verdict.done() and not verdict.cancelled()


def _forget(verdict: Verdict, cost: int, *, is_reserved: bool) -> None:
    """Take back what was given to a request that has gone meanwhile."""
    if is_reserved:
        verdict.settle(cost, is_counted=False)
    else:
        verdict.undo(cost)
