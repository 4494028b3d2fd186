"""A service and its replicas: who is asked, who is left out, what is refused, and that every count ends where it began."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.upstream import CONNECTS_MAX, Upstream
from services.gateway.model import BreakerPolicy, ServicePolicy
from shared.breaker import State
from shared.endpoints import Address
from shared.errors import NotFound, Unavailable

A, B, C, D = (("127.0.0.1", port) for port in (1, 2, 3, 4))
QUICK = BreakerPolicy(window=10, volume_min=4, open_s=1, probes=2)
SEED = 5


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Callable[..., Upstream]:
    def build(*addresses: Address, hooks: Any = (), **policy: Any) -> Upstream:
        policy.setdefault("breaker", QUICK)
        dice = random.Random(SEED).random
        return Upstream("users", ServicePolicy(**policy), addresses, on_breaker_change=hooks, clock=clock, dice=dice)

    return build


def begin(upstream: Upstream, *tried: Address, **options: Any) -> Attempt:
    found = upstream.begin(tried, **options)
    assert found is not None
    return found


def begin_at(upstream: Upstream, address: Address) -> Attempt:
    """An attempt at one replica; the others are kept busy until it is its turn."""
    others = []
    while (found := begin(upstream)).address != address:
        others.append(found)
    for other in others:
        other.end(Outcome.GIVEN_UP)
    return found


def fail(upstream: Upstream, address: Address, times: int = 4) -> None:
    for _ in range(times):
        begin_at(upstream, address).end(Outcome.FAILED)


def kill(upstream: Upstream) -> None:
    """Let every attempt fail until the service is left alone."""
    for _ in range(100):
        try:
            begin(upstream).end(Outcome.FAILED)
        except Unavailable:
            return
    pytest.fail("a hundred failures did not open the breaker")


def chosen(upstream: Upstream, count: int = 200) -> Counter[Address]:
    found: Counter[Address] = Counter()
    for _ in range(count):
        attempt = begin(upstream)
        found[attempt.address] += 1
        attempt.end(Outcome.OK)
    return found


def refusal(upstream: Upstream, **options: Any) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        upstream.admit(**options)
    return caught.value


# Who is asked.


def test_service_without_replicas_has_nobody_to_ask(make):
    upstream = make()
    upstream.admit()
    assert upstream.begin() is None


def test_only_replica_is_chosen_however_busy(make):
    upstream = make(A)
    assert [begin(upstream).address for _ in range(10)] == [A] * 10


def test_busiest_of_three_is_never_chosen(make):
    upstream = make(A, B, C)
    begin_at(upstream, A)
    assert set(chosen(upstream)) == {B, C}


def test_idle_replicas_are_asked_alike(make):
    found = chosen(make(A, B, C, D), 1000)
    assert min(found.values()) >= 200


def test_new_replica_gets_traffic_at_once_but_not_all_of_it(make):
    upstream = make(A, B)
    for _ in range(20):
        begin(upstream)
    upstream.refresh([A, B, C])
    found = Counter(begin(upstream).address for _ in range(30))
    assert found[C] >= 10
    assert found[A] + found[B] >= 5


def test_tried_replicas_are_left_out_as_long_as_there_are_others(make):
    upstream = make(A, B, C)
    assert {begin(upstream, A, B).address for _ in range(20)} == {C}


def test_replica_that_failed_is_asked_again_where_it_is_the_only_one(make):
    upstream = make(A)
    begin(upstream).end(Outcome.FAILED)
    assert begin(upstream, A).address == A


def test_nobody_is_asked_again_who_took_no_connection(make):
    upstream = make(A, B)
    begin_at(upstream, A).end(Outcome.REFUSED)
    begin(upstream, A).end(Outcome.REFUSED)
    assert upstream.begin([A, B]) is None


def test_replica_that_refused_is_asked_last_for_a_second(make, clock):
    upstream = make(A, B, C)
    begin_at(upstream, A).end(Outcome.REFUSED)
    assert A not in chosen(upstream)
    last = begin(upstream, B, C)
    assert last.address == A
    last.end(Outcome.OK)
    clock.now += 1.1
    assert A in chosen(upstream)


def test_request_that_no_replica_takes_is_tried_at_once_at_others_whatever_its_method(make):
    upstream = make(A, B, retries_max=0, retry_share=0)
    for attempt in range(1, CONNECTS_MAX):
        assert upstream.may_retry("POST", has_idempotency_key=False, outcome=Outcome.REFUSED, attempt=attempt) == 0
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.REFUSED, attempt=CONNECTS_MAX) is None
    assert upstream.retries == 0


# Who is left out.


def test_failing_replica_is_left_out_and_the_service_goes_on(make):
    upstream = make(A, B)
    fail(upstream, A)
    assert upstream.state is State.CLOSED
    upstream.admit()
    assert set(chosen(upstream)) == {B}


def test_failing_replica_gets_a_few_probes_and_then_its_share(make, clock):
    upstream = make(A, B)
    fail(upstream, A)
    clock.now += 1.3
    under_way = [begin(upstream) for _ in range(40)]
    assert sum(attempt.address == A for attempt in under_way) == QUICK.probes
    for attempt in under_way:
        attempt.end(Outcome.OK)
    assert chosen(upstream)[A] >= 50


@pytest.mark.parametrize(("share", "left_out"), [(0.0, 0), (0.3, 1), (0.5, 2), (0.99, 3)])
def test_never_more_than_the_share_is_left_out_and_never_the_last(make, share, left_out):
    upstream = make(A, B, C, D, ejected_share_max=share)
    for address in (A, B, C):
        fail_wherever_it_takes(upstream, address)
    found = chosen(upstream)
    assert len(found) == 4 - left_out
    assert D in found


def fail_wherever_it_takes(upstream: Upstream, address: Address) -> None:
    replica = next(replica for replica in upstream.replicas if replica.address == address)
    for _ in range(4):
        replica.breaker.acquire().fail()
    assert replica.breaker.state is State.OPEN


def test_replica_of_its_own_breaker_is_the_service_where_it_is_the_only_one(make):
    upstream = make(A)
    fail(upstream, A)
    assert upstream.state is State.OPEN
    assert refusal(upstream).problem_code == "breaker_open"


def test_drained_replica_gets_nothing_new_and_what_is_there_ends(make):
    upstream = make(A, B)
    last = begin_at(upstream, A)
    upstream.drain(A)
    assert set(chosen(upstream)) == {B}
    last.end(Outcome.OK)
    upstream.undrain(A)
    assert set(chosen(upstream)) == {A, B}


def test_all_drained_is_nobody_to_ask(make):
    upstream = make(A)
    upstream.drain(A)
    upstream.admit()
    assert upstream.begin() is None


def test_draining_an_unknown_replica_is_not_found(make):
    with pytest.raises(NotFound):
        make(A).drain(B)


# The service's breaker.


def test_all_replicas_failing_opens_the_service_and_says_when_to_come_again(make):
    upstream = make(A, B)
    kill(upstream)
    assert upstream.state is State.OPEN
    problem = refusal(upstream)
    assert (problem.status, problem.problem_code) == (503, "breaker_open")
    assert 1 <= int(problem.headers["Retry-After"]) <= 2
    with pytest.raises(Unavailable):
        upstream.begin()
    assert upstream.shed["breaker_open"] >= 2


@pytest.mark.parametrize("addresses", [(A,), (A, B), (A, B, C, D)])
def test_it_opens_within_two_seconds_of_the_death_of_all_and_closes_within_five_of_their_return(make, clock, addresses):
    upstream = make(*addresses, breaker=BreakerPolicy())
    is_dead, changes = False, []

    def request() -> None:
        tried: list[Address] = []
        try:
            upstream.admit()
            while (attempt := upstream.begin(tried)) is not None:
                attempt.end(Outcome.REFUSED if is_dead else Outcome.OK)
                if not is_dead:
                    return
                tried.append(attempt.address)
        except Unavailable:
            return

    for tick in range(1500):
        clock.now += 0.01
        is_dead = 300 <= tick < 800
        request()
        if not changes or changes[-1][1] is not upstream.state:
            changes.append((tick, upstream.state))
    opened = next(tick for tick, state in changes if state is State.OPEN)
    closed = next(tick for tick, state in changes if state is State.CLOSED and tick > opened)
    assert 300 <= opened <= 500
    assert 800 <= closed <= 1300
    assert upstream.state is State.CLOSED
    assert set(chosen(upstream)) == set(addresses)


def test_half_open_lets_only_probes_through(make, clock):
    upstream = make(A)
    kill(upstream)
    clock.now += 1.3
    probes = [begin(upstream) for _ in range(QUICK.probes)]
    assert upstream.state is State.HALF_OPEN
    assert refusal(upstream).problem_code == "breaker_open"
    for probe in probes:
        probe.end(Outcome.OK)
    assert upstream.state is State.CLOSED
    upstream.admit()


def test_probe_that_hangs_does_not_keep_the_service_shut(make, clock):
    upstream = make(A)
    kill(upstream)
    clock.now += 1.3
    for _ in range(QUICK.probes):
        begin(upstream)
    clock.now += 2.1
    for _ in range(QUICK.probes):
        begin(upstream).end(Outcome.OK)
    assert upstream.state is State.CLOSED


def test_client_that_gives_up_says_nothing(make):
    upstream = make(A)
    for _ in range(100):
        begin(upstream).end(Outcome.GIVEN_UP)
    assert upstream.state is State.CLOSED


def test_slow_answers_open_it_where_the_policy_says_so(make, clock):
    upstream = make(A, breaker=BreakerPolicy(volume_min=4, slow_s=1))
    for attempt in [begin(upstream) for _ in range(4)]:
        clock.now += 1.1
        attempt.end(Outcome.OK)
    assert upstream.state is State.OPEN


def test_slow_client_is_no_slow_answer(make, clock):
    upstream = make(A, breaker=BreakerPolicy(volume_min=4, slow_s=1))
    for attempt in [begin(upstream) for _ in range(8)]:
        attempt.answered()
        clock.now += 60
        attempt.end(Outcome.OK)
    assert upstream.state is State.CLOSED


def test_answer_that_breaks_off_is_a_failure(make):
    upstream = make(A)
    for _ in range(4):
        attempt = begin(upstream)
        attempt.answered()
        attempt.end(Outcome.FAILED)
    assert upstream.state is State.OPEN


def test_stream_that_breaks_off_after_hours_is_none(make):
    upstream = make(A)
    for _ in range(20):
        attempt = begin(upstream)
        attempt.answered(lasts=True)
        attempt.end(Outcome.FAILED)
    assert upstream.state is State.CLOSED
    assert upstream.replicas[0].ended == [20, 0, 0, 0]


def test_operator_opens_it_and_closes_it(make, clock):
    upstream = make(A, B)
    upstream.open_breaker()
    clock.now += 1000
    assert refusal(upstream).problem_code == "breaker_open"
    upstream.refresh([A, B, C])
    with pytest.raises(Unavailable):
        upstream.begin()
    upstream.close_breaker()
    assert set(chosen(upstream)) == {A, B, C}


def test_operator_closes_one_that_opened_by_itself(make):
    upstream = make(A)
    kill(upstream)
    upstream.close_breaker()
    upstream.admit()
    assert begin(upstream).address == A


def test_changes_are_told_of_replicas_and_of_the_service(make, clock):
    told: list[tuple[Any, ...]] = []
    upstream = make(A, B, hooks=[lambda *change: told.append(change)])
    fail(upstream, A)
    assert told == [("users", A, State.CLOSED, State.OPEN)]
    told.clear()
    fail(upstream, B)
    assert told == [("users", B, State.CLOSED, State.OPEN), ("users", None, State.CLOSED, State.OPEN)]
    told.clear()
    upstream.close_breaker()
    assert told[-1] == ("users", B, State.OPEN, State.CLOSED)
    assert ("users", None, State.OPEN, State.CLOSED) in told


# Load.


def test_no_more_is_under_way_than_the_limit_and_the_rest_is_told_to_come_again(make):
    upstream = make(A, in_flight_max=10)
    attempts = [begin(upstream) for _ in range(9)]
    problem = refusal(upstream)
    assert (problem.status, problem.problem_code, problem.headers["Retry-After"]) == (503, "overloaded", "1")
    upstream.admit("critical")
    attempts.append(begin(upstream, priority="critical"))
    assert refusal(upstream, priority="critical").problem_code == "overloaded"
    with pytest.raises(Unavailable):
        upstream.begin(priority="critical")
    assert upstream.shed["overloaded"] == 3
    for attempt in attempts:
        attempt.end(Outcome.OK)
    upstream.admit()


def test_limit_is_per_replica(make):
    upstream = make(A, B, in_flight_max=10)
    for _ in range(18):
        begin(upstream)
    with pytest.raises(Unavailable):
        upstream.begin()
    assert [replica.in_flight for replica in upstream.replicas] == [9, 9]


def test_replica_left_out_takes_its_part_of_the_limit_along(make):
    upstream = make(A, B, in_flight_max=10)
    fail(upstream, A)
    assert upstream.limit.limit == 10
    upstream.drain(A)
    upstream.undrain(A)
    upstream.close_breaker()
    assert upstream.limit.limit == 20


def test_open_streams_take_no_part_of_the_limit_but_count_for_balance(make):
    upstream = make(A, B, in_flight_max=10)
    streams = []
    for _ in range(100):
        streams.append(begin(upstream))
        streams[-1].answered(lasts=True)
    upstream.admit()
    assert upstream.limit.in_flight == 0
    assert {replica.in_flight for replica in upstream.replicas} == {50}
    for stream in streams:
        stream.end(Outcome.OK)
    assert [(replica.in_flight, replica.lasting) for replica in upstream.replicas] == [(0, 0), (0, 0)]


def test_late_answers_lower_the_limit_unless_it_is_fixed(make, clock):
    for is_adaptive, limit in ((True, 64), (False, 256)):
        upstream = make(A, adaptive=is_adaptive, breaker=BreakerPolicy(volume_min=1000, window=1000))
        for _ in range(10):
            attempt = begin(upstream, time_s=1)
            clock.now += 0.1
            attempt.end(Outcome.OK)
        attempts = [begin(upstream, time_s=1) for _ in range(50)]
        clock.now += 0.9
        for attempt in attempts:
            clock.now += 0.02
            attempt.end(Outcome.FAILED)
        assert upstream.limit.limit <= limit
        assert (upstream.limit.limit < 256) is is_adaptive


# Retries.


@pytest.mark.parametrize(
    ("method", "has_key", "outcome", "may"),
    [
        ("GET", False, Outcome.FAILED, True),
        ("DELETE", False, Outcome.FAILED, True),
        ("POST", False, Outcome.FAILED, False),
        ("POST", True, Outcome.FAILED, True),
        ("GET", False, Outcome.OK, False),
        ("GET", False, Outcome.GIVEN_UP, False),
    ],
)
def test_only_what_failed_and_may_be_repeated_is_retried(make, method, has_key, outcome, may):
    upstream = make(A)
    wait_s = upstream.may_retry(method, has_idempotency_key=has_key, outcome=outcome, attempt=1)
    assert (wait_s is not None) is may
    assert upstream.retries == may


def test_retries_end_after_the_policys_number(make):
    upstream = make(A, retries_max=2)
    waits = [upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.FAILED, attempt=n) for n in (1, 2, 3)]
    assert [wait is None for wait in waits] == [False, False, True]


def test_failing_service_sees_at_most_a_fifth_more_than_its_requests(make):
    upstream = make(A, retries_max=5, breaker=BreakerPolicy(window=1000, volume_min=1000))
    requests = sent = 0
    for _ in range(500):
        requests += 1
        attempt = 0
        while True:
            attempt += 1
            begin(upstream, *([A] if attempt > 1 else [])).end(Outcome.FAILED)
            sent += 1
            if upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.FAILED, attempt=attempt) is None:
                break
    assert 1.05 * requests <= sent <= 1.2 * requests
    assert upstream.retries == sent - requests
    assert upstream.retries_denied > 0


def test_statuses_mean_what_the_policy_says(make):
    upstream = make(A)
    assert [upstream.outcome_of(status).name for status in (200, 404, 500, 502, 503, 504)] == [
        "OK",
        "OK",
        "OK",
        "FAILED",
        "FAILED",
        "FAILED",
    ]
    assert make(A, failure_statuses=(502,)).outcome_of(503) is Outcome.OK


# Changes from outside.


def test_replicas_that_stay_keep_what_is_known_of_them(make):
    upstream = make(A, B)
    fail(upstream, A)
    upstream.drain(B)
    stays = begin_at(make(A), A)
    upstream.refresh([B, A, C])
    assert [replica.address for replica in upstream.replicas] == [B, A, C]
    assert upstream.replicas[0].is_drained
    assert upstream.replicas[1].breaker.state is State.OPEN
    assert set(chosen(upstream)) == {C}
    stays.end(Outcome.OK)


def test_attempt_outlives_its_replica(make):
    upstream = make(A, B)
    attempt = begin_at(upstream, A)
    upstream.refresh([B])
    attempt.end(Outcome.OK)
    assert upstream.limit.in_flight == 0
    assert set(chosen(upstream)) == {B}


def test_same_policy_keeps_everything_and_another_starts_anew(make, clock):
    upstream = make(A)
    kill(upstream)
    attempt_of_before = upstream.budget
    upstream.reconfigure(ServicePolicy(breaker=QUICK))
    assert upstream.state is State.OPEN
    assert upstream.budget is attempt_of_before
    upstream.reconfigure(ServicePolicy(breaker=QUICK, in_flight_max=7))
    assert upstream.state is State.CLOSED
    assert upstream.limit.limit == 7


def test_another_policy_keeps_what_operators_did_and_what_is_under_way(make):
    upstream = make(A, B)
    attempt = begin_at(upstream, A)
    upstream.drain(B)
    upstream.open_breaker()
    upstream.reconfigure(ServicePolicy(retries_max=1))
    assert upstream.state is State.OPEN
    assert upstream.replicas[1].is_drained
    assert upstream.limit.in_flight == 1
    attempt.end(Outcome.OK)
    assert upstream.limit.in_flight == 0


def test_what_operators_see_is_json(make):
    upstream = make(A, ("::1", 9))
    fail(upstream, A)
    begin(upstream)
    found = json.loads(json.dumps(upstream.describe()))
    assert found["breaker"] == "closed"
    assert found["in_flight"] == 1
    first, second = found["replicas"]
    assert (first["address"], first["breaker"], first["attempts"]["failed"]) == ("127.0.0.1:1", "open", 4)
    assert (second["address"], second["in_flight"]) == ("[::1]:9", 1)


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
        wait_s = self.upstream.may_retry("GET", has_idempotency_key=False, outcome=outcome, attempt=1)
        self.retries += outcome is Outcome.FAILED and wait_s is not None

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

    @rule(is_open=st.booleans())
    def force(self, is_open: bool) -> None:
        (self.upstream.open_breaker if is_open else self.upstream.close_breaker)()

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
        if upstream.is_forced:
            assert upstream.state is State.OPEN
        else:
            assert (upstream.state is State.CLOSED) is (State.CLOSED in states or not states)

    @invariant()
    def retries_are_bounded(self) -> None:
        assert self.retries <= 0.1 * self.requests + 3


TestUpstreamMachine = UpstreamMachine.TestCase
TestUpstreamMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
