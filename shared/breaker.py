"""A circuit breaker: stops calling what keeps failing, and finds out with few calls when it works again.

```
CLOSED --(failure rate over the window)--> OPEN --(its time is over, next call)--> HALF_OPEN
   ^                                         ^                                        |
   +-------------(all probes succeed)--------|----------------------------------------+
                                             +--------------(a probe fails)-----------+
```
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreakerOpenError(Exception):
    """The call was not made; a try before `retry_after_s` seconds is of no use."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(f"the circuit breaker {name} is open")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """The window holds the last `window` outcomes, none older than `window_s`; it is judged from `volume_min` outcomes on.

    Open time is `open_s`, lengthened by a random part of up to `jitter` of it, so that replicas do not probe together. Half open,
    at most `probes` calls are under way at once, and so many successes close it.
    """

    window: int = 20
    window_s: float = 30.0
    volume_min: int = 5
    failure_rate: float = 0.5
    open_s: float = 1.0
    jitter: float = 0.2
    probes: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.volume_min <= self.window or not 0 < self.failure_rate <= 1:
            raise ValueError("a breaker needs 1 <= volume_min <= window and 0 < failure_rate <= 1")
        if self.open_s <= 0 or self.window_s <= 0 or self.jitter < 0 or self.probes < 1:
            raise ValueError("a breaker needs open_s and window_s above 0, jitter of 0 or more and at least one probe")


class Permit:
    """Leave for one call; tell how it ended, once: what is told later, or about a state that has passed, is ignored."""

    __slots__ = ("_breaker", "_generation", "_open")

    def __init__(self, breaker: "CircuitBreaker", generation: int) -> None:
        self._breaker = breaker
        self._generation = generation
        self._open = True

    def succeed(self) -> None:
        self._settle(True)

    def fail(self) -> None:
        self._settle(False)

    def release(self) -> None:
        """The call was given up by the caller: it says nothing about the other side."""
        self._settle(None)

    def _settle(self, outcome: bool | None) -> None:
        if self._open:
            self._open = False
            self._breaker._settle(self._generation, outcome)


Hook = Callable[[str, State, State], None]
"""Called with the breaker's name, the old and the new state; must be quick and not raise."""


class CircuitBreaker:
    """Use `async with breaker:` around one call, with the call's own deadline inside: a cancelled block counts as neither, so a
    deadline outside would hide a silent server. `async with breaker as permit:` lets the block say `permit.fail()` of an answer
    that came. Where a call does not fit a block: `acquire()` and the permit.

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
        self.config = config or BreakerConfig()
        self.state = State.CLOSED
        self._failures = failures
        self._clock = clock
        self._on_change = on_change
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failed = 0
        self._open_until = 0.0
        self._probing = 0
        self._probes_succeeded = 0
        # Raised by every change of state: an outcome counts only in the state in which its call began.
        self._generation = 0
        self._entered: dict[asyncio.Task[object] | None, list[Permit]] = {}

    def acquire(self) -> Permit:
        """Return leave for one call. Raises CircuitBreakerOpenError; settle every permit, or a probe's place is never free again."""
        if self.state is State.OPEN:
            left_s = self._open_until - self._clock()
            if left_s > 0:
                raise CircuitBreakerOpenError(self.name, left_s)
            self._change(State.HALF_OPEN)
        if self.state is State.HALF_OPEN:
            if self._probing + self._probes_succeeded >= self.config.probes:
                raise CircuitBreakerOpenError(self.name, self.config.open_s)
            self._probing += 1
        return Permit(self, self._generation)

    def _settle(self, generation: int, outcome: bool | None) -> None:
        if generation != self._generation:
            return
        if self.state is State.HALF_OPEN:
            self._probing -= 1
            self._judge_probe(outcome)
        elif outcome is not None:
            self._judge_call(outcome)

    def _judge_probe(self, outcome: bool | None) -> None:
        if outcome is None:
            return
        if not outcome:
            self._change(State.OPEN)
            return
        self._probes_succeeded += 1
        if self._probes_succeeded >= self.config.probes:
            self._change(State.CLOSED)

    def _judge_call(self, outcome: bool) -> None:
        now = self._clock()
        self._outcomes.append((now, outcome))
        self._failed += not outcome
        while len(self._outcomes) > self.config.window or self._outcomes[0][0] <= now - self.config.window_s:
            _, oldest = self._outcomes.popleft()
            self._failed -= not oldest
        count = len(self._outcomes)
        if not outcome and count >= self.config.volume_min and self._failed / count >= self.config.failure_rate:
            self._change(State.OPEN)

    def _change(self, state: State) -> None:
        before, self.state = self.state, state
        self._generation += 1
        self._outcomes.clear()
        self._failed = self._probing = self._probes_succeeded = 0
        if state is State.OPEN:
            self._open_until = self._clock() + self.config.open_s * (1 + random.random() * self.config.jitter)
        if self._on_change is not None:
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
