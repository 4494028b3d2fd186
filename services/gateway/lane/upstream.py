"""One service as the gateway sees it: which replica is asked next, how much it is given, and when it is left alone."""

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from services.gateway.domain.concurrency import ConcurrencyLimit
from services.gateway.domain.retrying import RetryBudget, backoff_s, may_repeat
from services.gateway.lane.attempt import Attempt, Outcome, Replica
from services.gateway.model import BreakerPolicy, Priority, ServicePolicy
from shared.breaker import BreakerConfig, CircuitBreaker, State
from shared.endpoints import Address
from shared.errors import NotFound, Unavailable

CONNECTS_MAX = 3
"""Replicas that are asked for a connection before a request is refused."""

REFUSED_S = 1.0
"""How long a replica that took no connection is asked only when there is no other."""

TIME_S = 10.0

log = structlog.get_logger()

BreakerHook = Callable[[str, Address | None, State, State], None]
"""Called with the service, the replica (None: the service as a whole), the old and the new state; must be quick and not raise."""


class Upstream:
    """Use: `admit` before anything is awaited; `begin` for each attempt, then `answered` and `end` on it; `may_retry` after a bad end.

    The service's breaker is the sum of its replicas': open when every one's is. One bad replica is left out as long as others answer,
    at most `ejected_share_max` of them (at least one of two); all of them bad is the service's failure, and none is asked but by the
    probes. For one event loop; nothing here waits.
    """

    def __init__(
        self,
        name: str,
        policy: ServicePolicy,
        addresses: Iterable[Address] = (),
        *,
        on_breaker_change: Sequence[BreakerHook] = (),
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.policy = policy
        self.clock = clock
        self.limit = ConcurrencyLimit(policy.in_flight_max, is_adaptive=policy.adaptive)
        self.budget = RetryBudget(policy.retry_share)
        self.replicas: tuple[Replica, ...] = ()
        self.held: State | None = None
        """OPEN or CLOSED where its breakers are held so by hand, None where they decide."""
        self.state = State.CLOSED
        self.shed = {"breaker_open": 0, "overloaded": 0}
        """Requests refused before they were sent, by reason."""
        self.retries = 0
        self.retries_denied = 0
        self._hooks = on_breaker_change
        self._dice = dice
        # Whether every replica is as good as any other, which is nearly always so.
        self._is_calm = True
        self._refused_until = 0.0
        self.refresh(addresses)

    def admit(self, priority: Priority = "normal") -> None:
        """Let a request in. Raises Unavailable (`breaker_open`, `overloaded`)."""
        if not self._is_calm:
            self._usable(self.clock())
        if not self.limit.has_room(priority):
            raise self._overloaded()

    def begin(
        self, tried: Collection[Address] = (), *, priority: Priority = "normal", time_s: float = TIME_S
    ) -> Attempt | None:
        """Choose a replica and count an attempt in; None where there is none to ask.

        Of two random ones the less busy is taken, nearly as even as looking at all without sending every gateway to the same idle one.
        Those `tried` come again only when no other is left, and not where they refused. `time_s` is what the route allows.
        Raises Unavailable like `admit`.
        """
        now = self.clock()
        known: Sequence[Replica] = self.replicas
        if tried or not self._is_calm or now < self._refused_until:
            known = self._candidates(tried, now)
        count = len(known)
        if count == 1:
            replica = known[0]
        elif count == 0:
            return None
        else:
            first = int(self._dice() * count)
            second = int(self._dice() * (count - 1))
            replica, other = known[first], known[second + (second >= first)]
            if other.in_flight < replica.in_flight:
                replica = other
        if replica.in_flight - replica.lasting >= self.policy.in_flight_max or not self.limit.try_begin(priority):
            raise self._overloaded()
        if not tried:
            self.budget.deposit()
        replica.in_flight += 1
        breaker = replica.breaker
        # Beyond the share that may be left out, a bad replica is asked without its breaker's leave.
        ticket = breaker.take(now) if self._is_calm or breaker.wait_s(now) <= 0 else -1
        return Attempt(self, replica, ticket, now, time_s, priority)

    def may_retry(
        self, method: str, *, has_idempotency_key: bool, outcome: Outcome, tried: Collection[Address]
    ) -> float | None:
        """Return the seconds after which the request may be tried again, None where it may not; `tried` holds each attempt's replica.

        Another replica may be asked at once where one took no connection: nothing was sent. Else it takes a request that may be
        repeated, and a part of the budget. A replica that is busy has said that it is not to be asked again so soon, so that takes
        another one, too.
        """
        attempt = len(tried)
        if outcome is Outcome.REFUSED:
            return 0.0 if attempt < CONNECTS_MAX else None
        if outcome not in (Outcome.FAILED, Outcome.BUSY) or attempt > self.policy.retries_max:
            return None
        if outcome is Outcome.BUSY and not self._has_other(tried):
            return None
        if not may_repeat(method, has_idempotency_key=has_idempotency_key):
            return None
        if not self.budget.withdraw():
            self.retries_denied += 1
            return None
        self.retries += 1
        return backoff_s(attempt, self._dice)

    def _has_other(self, tried: Collection[Address]) -> bool:
        now = self.clock()
        return any(
            replica.address not in tried and not replica.is_drained and replica.breaker.wait_s(now) <= 0
            for replica in self.replicas
        )

    def outcome_of(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> Outcome:
        """Say what an answer means by its status and headers (names in lower case)."""
        if status < 500:
            return Outcome.OK
        if status in self.policy.failure_statuses:
            return Outcome.FAILED
        is_busy = status == 503 and any(name == b"retry-after" for name, _ in headers)
        return Outcome.BUSY if is_busy else Outcome.OK

    def _overloaded(self) -> Unavailable:
        self.shed["overloaded"] += 1
        return Unavailable(f"the service {self.name} has all the work it can do", code="overloaded")

    def _usable(self, now: float) -> list[Replica]:
        """Return the replicas that may be asked. Raises Unavailable when every one's breaker is open."""
        eligible = [replica for replica in self.replicas if not replica.is_drained]
        shut = self._left_out(eligible, now)
        if shut and len(shut) == len(eligible):
            self.shed["breaker_open"] += 1
            wait_s = min(replica.breaker.wait_s(now) for replica in shut)
            is_held = all(replica.breaker.is_forced for replica in shut)
            why = "is held back by an operator" if is_held else "failed lately and is left alone for a moment"
            raise Unavailable(
                f"the service {self.name} {why}",
                retry_after_s=wait_s,
                code="breaker_open",
            )
        return [replica for replica in eligible if replica not in shut] if shut else eligible

    def _left_out(self, eligible: Sequence[Replica], now: float) -> list[Replica]:
        """Return those whose breakers let no call through, as far as the others can do without them."""
        shut = [replica for replica in eligible if replica.breaker.wait_s(now) > 0]
        if shut and any(replica.breaker.state is State.CLOSED for replica in eligible):
            # The rest has to bear the load of those left out, so there is a limit to that; not to what an operator says.
            shut.sort(key=lambda replica: (not replica.breaker.is_forced, replica.opened_at))
            held = sum(replica.breaker.is_forced for replica in shut)
            del shut[max(held, self._ejected_max(len(eligible))) :]
        return shut

    def _ejected_max(self, count: int) -> int:
        # Of two or three replicas half is one; a share of nothing is none.
        share = self.policy.ejected_share_max
        return max(1, int(count * share)) if share > 0 else 0

    def _candidates(self, tried: Collection[Address], now: float) -> list[Replica]:
        usable = self._usable(now)
        willing = [replica for replica in usable if now >= replica.refused_until]
        fresh = [replica for replica in willing if replica.address not in tried]
        return fresh or [replica for replica in usable if replica.address not in tried] or willing

    def was_refused(self, replica: Replica, now: float) -> None:
        """Note that a replica took no connection."""
        self._refused_until = replica.refused_until = now + REFUSED_S

    # What changes it from outside.

    def refresh(self, addresses: Iterable[Address]) -> None:
        """Take over the replicas' addresses; who stays keeps its state."""
        known = {replica.address: replica for replica in self.replicas}
        self.replicas = tuple(known.get(address) or self._new(address) for address in addresses)
        self._look()

    def _new(self, address: Address) -> Replica:
        replica = Replica(address)
        replica.breaker = CircuitBreaker(
            self.name,
            breaker_config(self.policy.breaker),
            clock=self.clock,
            on_change=partial(self._on_breaker, replica),
        )
        _hold(replica.breaker, self.held)
        return replica

    def reconfigure(self, policy: ServicePolicy) -> None:
        """Go by another policy; what is under way stays counted, what is drained or held by hand stays so."""
        if policy == self.policy:
            return
        self.policy = policy
        self.limit.configure(policy.in_flight_max, is_adaptive=policy.adaptive)
        self.budget = RetryBudget(policy.retry_share)
        for replica in self.replicas:
            replica.breaker.configure(breaker_config(policy.breaker))
        self._look()

    def hold(self, state: State | None, address: Address | None = None) -> None:
        """Hold every breaker open or closed, or let them decide from now on (None), whatever the replicas did before.

        With an address, that replica's alone; None then goes back to what holds for the service. Raises NotFound where it is not known.
        """
        if address is None:
            self.held = state
        for replica in self.replicas if address is None else [self._find(address)]:
            _hold(replica.breaker, state or self.held)
        self._look()

    def drain(self, address: Address) -> None:
        """Send a replica nothing new. Raises NotFound where it is not known."""
        self._find(address).is_drained = True
        self._look()

    def undrain(self, address: Address) -> None:
        """Undo `drain`. Raises NotFound where it is not known."""
        self._find(address).is_drained = False
        self._look()

    def _find(self, address: Address) -> Replica:
        for replica in self.replicas:
            if replica.address == address:
                return replica
        raise NotFound(f"the service {self.name} has no such replica")

    def _on_breaker(self, replica: Replica, _: str, before: State, now: State) -> None:
        if now is State.OPEN:
            replica.opened_at = self.clock()
        if replica in self.replicas:
            self._tell(replica.address, before, now)
            self._look()

    def _look(self) -> None:
        """Work out what follows from the replicas' states."""
        eligible = [replica for replica in self.replicas if not replica.is_drained]
        states = [replica.breaker.state for replica in eligible]
        closed = states.count(State.CLOSED)
        self._is_calm = closed == len(self.replicas)
        self.limit.resize(closed)
        if self.held is State.OPEN:
            state = State.OPEN
        elif closed or not eligible:
            state = State.CLOSED
        else:
            state = State.HALF_OPEN if State.HALF_OPEN in states else State.OPEN
        before, self.state = self.state, state
        if before is not state:
            self._tell(None, before, state)

    def _tell(self, address: Address | None, before: State, now: State) -> None:
        # A line's own `replica` is the gateway's.
        log.warning("breaker_changed", upstream=self.name, address=text_of(address), before=before.value, now=now.value)
        for hook in self._hooks:
            hook(self.name, address, before, now)

    def describe(self) -> dict[str, Any]:
        """Return what an operator wants to see, ready for JSON."""
        now = self.clock()
        left_out = self._left_out([replica for replica in self.replicas if not replica.is_drained], now)
        # Who takes no connection is passed over so often that its breaker has nothing to count.
        left_out += [replica for replica in self.replicas if now < replica.refused_until]
        return {
            "breaker": self.state.value,
            "held": _text(self.held),
            "in_flight": self.limit.in_flight,
            "in_flight_limit": self.limit.limit,
            "retries": self.retries,
            "retries_denied": self.retries_denied,
            "retry_budget": self.budget.left,
            "shed": dict(self.shed),
            "replicas": [
                {
                    "address": text_of(replica.address),
                    "state": "draining" if replica.is_drained else "ejected" if replica in left_out else "up",
                    "breaker": replica.breaker.state.value,
                    "held": _text(held_of(replica.breaker)),
                    "is_drained": replica.is_drained,
                    "refuses": now < replica.refused_until,
                    "in_flight": replica.in_flight,
                    "attempts": {outcome.name.lower(): replica.ended[outcome] for outcome in Outcome},
                    "last_failure": _failure_of(replica),
                }
                for replica in self.replicas
            ],
        }


def _failure_of(replica: Replica) -> dict[str, str] | None:
    if not replica.failure:
        return None
    at = datetime.fromtimestamp(replica.failed_at, UTC).isoformat(timespec="milliseconds")
    return {"at": at, "what": replica.failure}


def held_of(breaker: CircuitBreaker) -> State | None:
    """Return as what a breaker is held by hand."""
    if breaker.is_forced:
        return State.OPEN
    return State.CLOSED if breaker.is_held_closed else None


def _hold(breaker: CircuitBreaker, state: State | None) -> None:
    if state is State.OPEN:
        breaker.force_open()
    elif state is State.CLOSED:
        breaker.force_closed()
    else:
        breaker.reset()


def _text(state: State | None) -> str | None:
    return state.value if state is not None else None


def breaker_config(policy: BreakerPolicy) -> BreakerConfig:
    """Return a policy as the breaker takes it."""
    return BreakerConfig(**policy.model_dump())


def text_of(address: Address | None) -> str:
    """Return `host:port`, as it is written in settings; empty for none."""
    if address is None:
        return ""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
