"""A service and its replicas, whatever happens in whatever order."""

import random
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.upstream import Upstream, held_of
from services.gateway.model import ServicePolicy
from services.gateway.tests.upstream_rig import QUICK, SEED, A, B, C, Clock, D
from shared.breaker import State
from shared.endpoints import Address
from shared.errors import NotFound, Unavailable


class UpstreamMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, counts are exact and nobody is asked who must not be."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.policy = ServicePolicy(in_flight_max=6, breaker=QUICK)
        self.upstream = Upstream("m", self.policy, [A, B, C], clock=self.clock, dice=random.Random(SEED).random)
        self.open: list[tuple[Attempt, bool]] = []
        self.retries = self.requests = 0

    @rule(priority=st.sampled_from(["normal", "critical"]), tried=st.sets(st.sampled_from([A, B, C, D]), max_size=4))
    def ask(self, priority: Any, tried: set[Address]) -> None:
        upstream = self.upstream
        eligible = {replica.address: replica for replica in upstream.replicas if not replica.is_drained}
        closed = {a for a, replica in eligible.items() if replica.breaker.state is State.CLOSED}
        try:
            upstream.admit(priority)
            attempt = upstream.begin(tried, priority=priority)
        except Unavailable as problem:
            if problem.problem_code == "breaker_open":
                assert not closed
                assert eligible
            else:
                busiest = max((r.in_flight - r.lasting for r in upstream.replicas), default=0)
                assert upstream.limit.in_flight >= int(upstream.limit.limit * 0.9) - 1 or busiest >= 6
            return
        if attempt is None:
            assert not eligible or tried
            return
        self.requests += not tried
        assert attempt.address in eligible
        untried = closed - tried
        if attempt.address in tried:
            assert not untried
        if closed and attempt.address not in closed and eligible[attempt.address].breaker.state is State.OPEN:
            # Asked though its breaker is open: only beyond the share that may be left out.
            assert len(eligible) - len(closed) > max(1, len(eligible) // 2)
        self.open.append((attempt, False))

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 50))
    def answer_lasting(self, place: int) -> None:
        place %= len(self.open)
        self.open[place][0].answered(lasts=True)
        self.open[place] = (self.open[place][0], True)

    @precondition(lambda self: self.open)
    @rule(place=st.integers(0, 50), outcome=st.sampled_from(list(Outcome)), twice=st.booleans())
    def end(self, place: int, outcome: Outcome, twice: bool) -> None:
        attempt, _ = self.open.pop(place % len(self.open))
        for _ in range(1 + twice):
            attempt.end(outcome)
        wait_s = self.upstream.may_retry("GET", has_idempotency_key=False, outcome=outcome, tried=[attempt.address])
        self.retries += outcome in (Outcome.FAILED, Outcome.BUSY) and wait_s is not None

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.3, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(addresses=st.lists(st.sampled_from([A, B, C, D]), unique=True))
    def endpoints(self, addresses: list[Address]) -> None:
        self.upstream.refresh(addresses)

    @rule(address=st.sampled_from([A, B]), is_drained=st.booleans())
    def drain(self, address: Address, is_drained: bool) -> None:
        try:
            (self.upstream.drain if is_drained else self.upstream.undrain)(address)
        except NotFound:
            assert address not in {replica.address for replica in self.upstream.replicas}

    @rule(state=st.sampled_from([State.OPEN, State.CLOSED, None]))
    def hold(self, state: State | None) -> None:
        self.upstream.hold(state)

    @rule(address=st.sampled_from([A, B]), state=st.sampled_from([State.OPEN, State.CLOSED, None]))
    def hold_one(self, address: Address, state: State | None) -> None:
        if self.upstream.held is State.OPEN:
            # Refused by lane/operating.py.
            return
        try:
            self.upstream.hold(state, address)
        except NotFound:
            assert address not in {replica.address for replica in self.upstream.replicas}

    @rule(retries_max=st.integers(1, 2))
    def reload(self, retries_max: int) -> None:
        if self.upstream.policy.retries_max != retries_max:
            self.retries = self.requests = 0
        self.upstream.reconfigure(self.policy.model_copy(update={"retries_max": retries_max}))

    @invariant()
    def counts_are_exact(self) -> None:
        upstream = self.upstream
        assert upstream.limit.in_flight == sum(not lasts for _, lasts in self.open)
        for replica in upstream.replicas:
            mine = [lasts for attempt, lasts in self.open if attempt._replica is replica]
            assert (replica.in_flight, replica.lasting) == (len(mine), sum(mine))
            assert len(mine) - sum(mine) <= 6

    @invariant()
    def state_is_the_sum_of_the_replicas(self) -> None:
        upstream = self.upstream
        states = {replica.breaker.state for replica in upstream.replicas if not replica.is_drained}
        for replica in upstream.replicas:
            held = held_of(replica.breaker)
            assert held in (None, replica.breaker.state)
            assert upstream.held is not State.OPEN or held is State.OPEN
        if upstream.held is State.OPEN:
            assert upstream.state is State.OPEN
        else:
            assert (upstream.state is State.CLOSED) is (State.CLOSED in states or not states)

    @invariant()
    def retries_are_bounded(self) -> None:
        assert self.retries <= 0.1 * self.requests + 3


TestUpstreamMachine = UpstreamMachine.TestCase
TestUpstreamMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
