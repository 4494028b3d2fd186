"""The circuit breaker, against a model that remembers everything, and fact by fact."""

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.breaker import FORCED_RETRY_S, BreakerConfig, CircuitBreaker, CircuitBreakerOpenError, Permit, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class BreakerMachine(RuleBasedStateMachine):
    """The model: the life of the present state as a list of events, judged anew each time, without any counter."""

    config = BreakerConfig(
        window=6,
        window_s=10,
        volume_min=3,
        failure_rate=0.5,
        slow_s=4,
        slow_rate=0.75,
        open_s=5,
        jitter=0.0,
        probes=2,
        probe_s=3,
    )

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.changes: list[tuple[State, State]] = []
        self.breaker = CircuitBreaker(
            "model", self.config, clock=self.clock, on_change=lambda _, old, new: self.changes.append((old, new))
        )
        self.calls: list[tuple[Permit, int, float]] = []
        self.model_changes: list[tuple[State, State]] = []
        self.lives = 0
        self.model_state = State.CLOSED
        self.begin(State.CLOSED)

    def begin(self, state: State, *, forced: bool = False, held_closed: bool = False) -> None:
        if self.model_state is not state:
            self.model_changes.append((self.model_state, state))
        self.model_state = state
        self.forced = forced
        self.held_closed = held_closed
        self.since = self.clock.now
        self.lives += 1
        self.events: list[tuple[float, bool, bool]] = []
        """When, failed, slow."""

    def probes_that_count(self) -> int:
        under_way = sum(life == self.lives and self.clock.now < at + 3 for _, life, at in self.calls)
        return under_way + len(self.events)

    @rule()
    def call(self) -> None:
        if self.model_state is State.OPEN and not self.forced and self.clock.now >= self.since + 5:
            self.begin(State.HALF_OPEN)
        allowed = self.model_state is State.CLOSED or (
            self.model_state is State.HALF_OPEN and self.probes_that_count() < 2
        )
        assert (self.breaker.wait_s(self.clock.now) == 0) is allowed
        if allowed:
            self.calls.append((self.breaker.acquire(), self.lives, self.clock.now))
            return
        with pytest.raises(CircuitBreakerOpenError) as caught:
            self.breaker.acquire()
        assert 0 < caught.value.retry_after_s <= (FORCED_RETRY_S if self.forced else 5)

    @precondition(lambda self: self.calls)
    @rule(place=st.integers(0, 50), outcome=st.sampled_from(["good", "bad", "bad", "gone"]), twice=st.booleans())
    def end(self, place: int, outcome: str, twice: bool) -> None:
        permit, life, began_at = self.calls.pop(place % len(self.calls))
        for _ in range(1 + twice):
            {"good": permit.succeed, "bad": permit.fail, "gone": permit.release}[outcome]()
        failed, slow = outcome == "bad", self.clock.now - began_at > 4
        if life != self.lives or (outcome == "gone" and not slow):
            return
        self.events.append((self.clock.now, failed, slow))
        if self.model_state is State.HALF_OPEN:
            if failed or slow:
                self.begin(State.OPEN)
            elif len(self.events) == 2:
                self.begin(State.CLOSED)
            return
        recent = [event for event in self.events[-6:] if event[0] > self.clock.now - 10]
        of_failed, of_slow = (sum(event[kind] for event in recent) / len(recent) for kind in (1, 2))
        if len(recent) >= 3 and not self.held_closed and ((failed and of_failed >= 0.5) or (slow and of_slow >= 0.75)):
            self.begin(State.OPEN)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0, 9.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def force(self) -> None:
        self.breaker.force_open()
        self.begin(State.OPEN, forced=True)

    @rule()
    def hold_closed(self) -> None:
        self.breaker.force_closed()
        self.begin(State.CLOSED, held_closed=True)

    @rule()
    def reset(self) -> None:
        self.breaker.reset()
        self.begin(State.CLOSED)

    @invariant()
    def same_state(self) -> None:
        assert self.breaker.state is self.model_state
        assert (self.breaker.is_forced, self.breaker.is_held_closed) == (self.forced, self.held_closed)
        assert self.changes == self.model_changes

    @invariant()
    def bounded(self) -> None:
        assert len(self.breaker._outcomes) <= 6
        assert len(self.breaker._places) <= 2


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker_on(clock: Clock, **options: float) -> CircuitBreaker:
    config = BreakerConfig(**{"volume_min": 2, "jitter": 0.0, **options})  # type: ignore[arg-type]
    return CircuitBreaker("test", config, failures=(OSError,), clock=clock)


async def fail(breaker: CircuitBreaker, error: BaseException) -> None:
    with pytest.raises(type(error)):
        async with breaker:
            raise error


async def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    while breaker.state is not State.OPEN:
        await fail(breaker, OSError())
    return breaker


async def test_failures_open_it_and_the_error_says_how_long(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock, open_s=4))
    clock.now += 1
    with pytest.raises(CircuitBreakerOpenError, match="test") as caught:
        async with breaker:
            pytest.fail("an open breaker must not let the block run")
    assert caught.value.retry_after_s == pytest.approx(3)


async def test_an_exception_that_is_not_a_failure_counts_as_success(clock: Clock) -> None:
    breaker = breaker_on(clock)
    for _ in range(20):
        await fail(breaker, ValueError())
    assert breaker.state is State.CLOSED
    clock.now += 1
    breaker = await opened(breaker_on(clock))
    clock.now += 5
    await fail(breaker, ValueError())
    assert breaker.state is State.CLOSED


async def test_an_answer_may_be_called_a_failure(clock: Clock) -> None:
    breaker = breaker_on(clock)
    for _ in range(2):
        async with breaker as permit:
            permit.fail()
    assert breaker.state is State.OPEN


async def test_a_cancelled_block_counts_as_neither(clock: Clock) -> None:
    breaker = breaker_on(clock)
    for _ in range(20):
        await fail(breaker, asyncio.CancelledError())
    assert breaker.state is State.CLOSED
    await opened(breaker)
    clock.now += 5
    await fail(breaker, asyncio.CancelledError())
    assert breaker.state is State.HALF_OPEN
    async with breaker:
        pass
    assert breaker.state is State.CLOSED


async def test_half_open_lets_only_the_probes_through(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock, probes=2))
    clock.now += 5
    go = asyncio.Event()

    async def probe() -> None:
        async with breaker:
            await go.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(probe())
        await asyncio.sleep(0)
        with pytest.raises(CircuitBreakerOpenError):
            await probe()
        assert breaker.state is State.HALF_OPEN
        go.set()
    assert breaker.state is State.CLOSED


async def test_a_call_from_before_the_opening_does_not_close_it(clock: Clock) -> None:
    breaker = breaker_on(clock)
    async with breaker:
        await opened_by_others(breaker)
        clock.now += 5
        probe = breaker.acquire()
    assert breaker.state is State.HALF_OPEN
    probe.fail()
    assert breaker.state is State.OPEN


async def opened_by_others(breaker: CircuitBreaker) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(opened(breaker))


async def test_blocks_of_many_tasks_and_inside_each_other_are_kept_apart(clock: Clock) -> None:
    breaker = breaker_on(clock, volume_min=12, failure_rate=1.0)

    async def work(good: bool) -> None:
        async with breaker as outer:
            await asyncio.sleep(0)
            async with breaker as inner:
                assert inner is not outer
                await asyncio.sleep(0)
                inner.fail()
            if not good:
                outer.fail()

    async with asyncio.TaskGroup() as group:
        for n in range(6):
            group.create_task(work(good=n == 5))
    assert breaker.state is State.CLOSED
    assert len(breaker._outcomes) == 12
    assert breaker._failed == 11
    assert breaker._entered == {}


async def test_old_failures_do_not_count(clock: Clock) -> None:
    breaker = breaker_on(clock, window_s=10)
    for _ in range(5):
        await fail(breaker, OSError())
        clock.now += 10
    assert breaker.state is State.CLOSED


async def test_slow_calls_open_it_even_when_they_succeed_or_are_given_up(clock: Clock) -> None:
    breaker = breaker_on(clock, volume_min=4, slow_s=2, slow_rate=1.0)
    for end in (Permit.succeed, Permit.release, Permit.succeed, Permit.release):
        assert breaker.state is State.CLOSED
        permit = breaker.acquire()
        clock.now += 2.5
        end(permit)
    assert breaker.state is State.OPEN


async def test_quick_calls_keep_the_slow_rate_down(clock: Clock) -> None:
    breaker = breaker_on(clock, volume_min=2, slow_s=2, slow_rate=0.5, window_s=1000)
    for _ in range(30):
        breaker.acquire().succeed()
        breaker.acquire().succeed()
        permit = breaker.acquire()
        clock.now += 3
        permit.succeed()
    assert breaker.state is State.CLOSED


async def test_a_slow_probe_opens_it_again(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock, slow_s=2))
    clock.now += 5
    probe = breaker.acquire()
    clock.now += 3
    probe.succeed()
    assert breaker.state is State.OPEN


async def test_a_probe_that_never_ends_gives_its_place_to_another(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock, probe_s=2))
    clock.now += 5
    lost = breaker.acquire()
    clock.now += 1.5
    with pytest.raises(CircuitBreakerOpenError) as caught:
        breaker.acquire()
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    breaker.acquire().succeed()
    assert breaker.state is State.CLOSED
    lost.fail()
    assert breaker.state is State.CLOSED
    assert breaker._failed == 0


async def test_a_late_probe_still_counts(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock, probe_s=2))
    clock.now += 5
    late = breaker.acquire()
    clock.now += 10
    late.succeed()
    assert breaker.state is State.CLOSED


async def test_held_open_by_hand_it_stays_open_until_it_is_reset(clock: Clock) -> None:
    breaker = breaker_on(clock)
    breaker.force_open()
    clock.now += 10_000
    with pytest.raises(CircuitBreakerOpenError) as caught:
        breaker.acquire()
    assert caught.value.retry_after_s == FORCED_RETRY_S
    breaker.reset()
    breaker.acquire().fail()
    assert breaker.state is State.CLOSED


async def test_another_configuration_leaves_it_open_where_it_is_held_open(clock: Clock) -> None:
    breaker = breaker_on(clock)
    breaker.force_open()
    breaker.configure(BreakerConfig(volume_min=3))
    assert breaker.state is State.OPEN
    assert breaker.wait_s(clock.now + 10_000) > 0


async def test_another_configuration_begins_closed_and_forgets_what_was(clock: Clock) -> None:
    breaker = await opened(breaker_on(clock))
    breaker.configure(BreakerConfig(volume_min=3, jitter=0.0))
    for state in (State.CLOSED, State.CLOSED, State.OPEN):
        breaker.acquire().fail()
        assert breaker.state is state


async def test_open_time_is_spread() -> None:
    waits = set()
    for _ in range(50):
        breaker = CircuitBreaker("j", BreakerConfig(volume_min=1, open_s=10, jitter=0.5), clock=Clock())
        breaker.acquire().fail()
        with pytest.raises(CircuitBreakerOpenError) as caught:
            breaker.acquire()
        waits.add(caught.value.retry_after_s)
    assert len(waits) > 10
    assert min(waits) >= 10
    assert max(waits) <= 15


@pytest.mark.parametrize(
    "options",
    [
        {"volume_min": 0},
        {"volume_min": 21},
        {"failure_rate": 0.0},
        {"failure_rate": 1.1},
        {"slow_rate": 0.0},
        {"slow_s": 0.0},
        {"open_s": 0},
        {"probes": 0},
        {"probe_s": 0},
    ],
)
def test_a_senseless_configuration_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="breaker needs"):
        BreakerConfig(**options)  # type: ignore[arg-type]
