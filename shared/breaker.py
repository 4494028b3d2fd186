"""A circuit breaker: stops calling what keeps failing or crawls, and finds out with few calls when it works again.

```
CLOSED --(failure or slow-call rate over the window)--> OPEN --(its time is over, next call)--> HALF_OPEN
   ^                                                     ^                                        |
   +-----------------(all probes succeed)----------------|----------------------------------------+
                                                         +---------(a probe fails or is slow)-----+
```
`force_open` holds it OPEN until `reset`, `force_closed` CLOSED.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf
from types import TracebackType

FORCED_RETRY_S = 30.0
"""What callers of a breaker that is held open are told to wait: nobody knows when it will be let go."""

_FAILED, _SLOW = 1, 2


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


_CLOSED = State.CLOSED  # found in one step on the hot path


class CircuitBreakerOpenError(Exception):
    """The call was not made; a try before `retry_after_s` seconds is of no use."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(f"the circuit breaker {name} is open")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """The window holds the last `window` outcomes, none older than `window_s`; it is judged from `volume_min` outcomes on.

    It opens when the share `failure_rate` of them failed, or the share `slow_rate` took longer than `slow_s` (None: no call is slow).
    Open time is `open_s`, lengthened by a random part of up to `jitter` of it, so that replicas do not probe together. Half open,
    at most `probes` calls are under way at once, and so many successes close it. A probe that has not ended after `probe_s` leaves
    its place to another: one call that hangs must not keep everyone out.
    """

    window: int = 20
    window_s: float = 30.0
    volume_min: int = 5
    failure_rate: float = 0.5
    slow_s: float | None = None
    slow_rate: float = 0.8
    open_s: float = 1.0
    jitter: float = 0.2
    probes: int = 1
    probe_s: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.volume_min <= self.window or not 0 < self.failure_rate <= 1 or not 0 < self.slow_rate <= 1:
            raise ValueError("a breaker needs 1 <= volume_min <= window, 0 < failure_rate <= 1 and 0 < slow_rate <= 1")
        if self.open_s <= 0 or self.window_s <= 0 or self.jitter < 0 or self.probes < 1:
            raise ValueError("a breaker needs open_s and window_s above 0, jitter of 0 or more and at least one probe")
        if self.probe_s <= 0 or (self.slow_s is not None and self.slow_s <= 0):
            raise ValueError("a breaker needs probe_s and slow_s above 0")


class Permit:
    """Leave for one call; tell how it ended, once: what is told later, or about a state that has passed, is ignored."""

    __slots__ = ("_began_at", "_breaker", "_ticket")

    def __init__(self, breaker: "CircuitBreaker", ticket: int, began_at: float) -> None:
        self._breaker = breaker
        self._ticket = ticket
        self._began_at = began_at

    def succeed(self) -> None:
        self._settle(True)

    def fail(self) -> None:
        self._settle(False)

    def release(self) -> None:
        """The call was given up by the caller: it says nothing about the other side, except that it was slow where it was."""
        self._settle(None)

    def _settle(self, outcome: bool | None) -> None:
        ticket, self._ticket = self._ticket, -1
        if ticket >= 0:
            now = self._breaker.clock()
            self._breaker.settle(ticket, outcome, now - self._began_at, now)


Hook = Callable[[str, State, State], None]
"""Called with the breaker's name, the old and the new state; must be quick and not raise."""


class CircuitBreaker:
    """Use `async with breaker:` around one call, with the call's own deadline inside: a cancelled block counts as neither, so a
    deadline outside would hide a silent server. `async with breaker as permit:` lets the block say `permit.fail()` of an answer
    that came. Where a call does not fit a block: `acquire()` and the permit; where an object per call is too much: `take()` and
    `settle()`, exactly once.

    `failures` are the exceptions that count against the other side; any other Exception shows that it answered. For one event
    loop; never waits, so no lock is needed.
    """

    def __init__(
        self,
        name: str,
        config: BreakerConfig | None = None,
        *,
        failures: tuple[type[Exception], ...] = (Exception,),
        clock: Callable[[], float] = time.monotonic,
        on_change: Hook | None = None,
    ) -> None:
        self.name = name
        self.state = State.CLOSED
        self.is_forced = False
        """Whether it is held open by hand."""
        self.is_held_closed = False
        self.clock = clock
        self._failures = failures
        self._on_change = on_change
        self._entered: dict[asyncio.Task[object] | None, list[Permit]] = {}
        # A number for every life of a state and for every probe: an outcome counts only in the life in which its call began.
        self._serial = 0
        self._life = 0
        self._open_until = 0.0
        self._outcomes: deque[tuple[float, int]] = deque()
        self._failed = 0
        self._slow = 0
        self._places: dict[int, float] = {}
        self._probes_succeeded = 0
        self._configure(config or BreakerConfig())

    def _configure(self, config: BreakerConfig) -> None:
        self.config = config
        self._window = config.window
        self._slow_s = inf if config.slow_s is None else config.slow_s

    def acquire(self) -> Permit:
        """Return leave for one call. Raises CircuitBreakerOpenError; settle every permit."""
        now = self.clock()
        return Permit(self, self._life if self.state is _CLOSED else self.take(now), now)

    def take(self, now: float) -> int:
        """Return a ticket for one call that begins `now` (seconds of `clock`), to be settled once. Raises CircuitBreakerOpenError."""
        if self.state is _CLOSED:
            return self._life
        wait_s = self.wait_s(now)
        if wait_s > 0:
            raise CircuitBreakerOpenError(self.name, wait_s)
        if self.state is State.OPEN:
            self._change(State.HALF_OPEN)
        config = self.config
        if len(self._places) + self._probes_succeeded >= config.probes:
            # `wait_s` saw that the oldest is overdue; whenever it ends it still counts.
            del self._places[next(iter(self._places))]
        self._serial += 1
        self._places[self._serial] = now
        return self._serial

    def wait_s(self, now: float) -> float:
        """Return in how many seconds a call may be made, 0.0 where it may be made now."""
        if self.state is _CLOSED:
            return 0.0
        if self.state is State.OPEN:
            return FORCED_RETRY_S if self.is_forced else max(0.0, self._open_until - now)
        config = self.config
        if len(self._places) + self._probes_succeeded < config.probes:
            return 0.0
        oldest = next(iter(self._places.values()))
        return max(0.0, oldest + config.probe_s - now)

    def settle(self, ticket: int, outcome: bool | None, took_s: float, now: float) -> None:
        """Say how a call ended: well, badly, or given up by its caller (None). Tickets of a state that has passed are ignored."""
        if ticket < self._life:
            return
        if self.state is _CLOSED:
            if outcome:
                kind = _SLOW if took_s > self._slow_s else 0
            elif outcome is None:
                if took_s <= self._slow_s:
                    return
                kind = _SLOW
            else:
                kind = _FAILED | _SLOW if took_s > self._slow_s else _FAILED
            outcomes = self._outcomes
            if len(outcomes) >= self._window:
                if outcomes[0][1]:
                    self._drop_oldest()
                else:
                    outcomes.popleft()
            outcomes.append((now, kind))
            if kind:
                # Only a bad outcome can open it, so only then is the window's age looked at.
                self._judge(kind, now)
        elif self.state is State.HALF_OPEN:
            self._places.pop(ticket, None)
            self._judge_probe(outcome, is_slow=took_s > self._slow_s)

    def _drop_oldest(self) -> None:
        _, kind = self._outcomes.popleft()
        if kind:
            self._failed -= kind & _FAILED
            self._slow -= kind >> 1

    def _judge(self, kind: int, now: float) -> None:
        self._failed += kind & _FAILED
        self._slow += kind >> 1
        config, outcomes = self.config, self._outcomes
        since = now - config.window_s
        while outcomes[0][0] <= since:
            self._drop_oldest()
        count = len(outcomes)
        if (
            count >= config.volume_min
            and not self.is_held_closed
            and (
                (kind & _FAILED and self._failed >= config.failure_rate * count)
                or (kind & _SLOW and self._slow >= config.slow_rate * count)
            )
        ):
            self._change(State.OPEN)

    def _judge_probe(self, outcome: bool | None, *, is_slow: bool) -> None:
        if outcome is False or is_slow:
            self._change(State.OPEN)
        elif outcome:
            self._probes_succeeded += 1
            if self._probes_succeeded >= self.config.probes:
                self._change(State.CLOSED)

    def force_open(self) -> None:
        """Let nothing through until `reset`, whatever is known about the other side."""
        self.is_forced, self.is_held_closed = True, False
        self._change(State.OPEN)

    def force_closed(self) -> None:
        """Let everything through until `reset`, however much of it fails."""
        self.is_forced, self.is_held_closed = False, True
        self._change(State.CLOSED)

    def reset(self) -> None:
        """Close it and forget what was counted."""
        self.is_forced = self.is_held_closed = False
        self._change(State.CLOSED)

    def configure(self, config: BreakerConfig) -> None:
        """Go by another configuration from now on, as after `reset`; what is held by hand stays so."""
        self._configure(config)
        self._change(State.OPEN if self.is_forced else State.CLOSED)

    def _change(self, state: State) -> None:
        before, self.state = self.state, state
        self._serial += 1
        self._life = self._serial
        self._outcomes.clear()
        self._places.clear()
        self._failed = self._slow = self._probes_succeeded = 0
        if state is State.OPEN:
            self._open_until = self.clock() + self.config.open_s * (1 + random.random() * self.config.jitter)
        if self._on_change is not None and before is not state:
            self._on_change(self.name, before, state)

    async def __aenter__(self) -> Permit:
        permit = self.acquire()
        # One breaker is entered by many tasks at once, and again by a block inside a block.
        self._entered.setdefault(asyncio.current_task(), []).append(permit)
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        permits = self._entered[task]
        permit = permits.pop()
        if not permits:
            del self._entered[task]
        if error is None:
            permit.succeed()
        elif isinstance(error, self._failures):
            permit.fail()
        elif isinstance(error, Exception):
            permit.succeed()
        else:
            permit.release()
