"""A service and its replicas: who is asked, who is left out, and when the service as a whole is left alone."""

from collections import Counter
from typing import Any

import pytest

from services.gateway.lane.attempt import Outcome
from services.gateway.lane.upstream import CONNECTS_MAX, Upstream
from services.gateway.model import BreakerPolicy
from services.gateway.tests.upstream_rig import (
    QUICK,
    A,
    B,
    C,
    Clock,
    D,
    Maker,
    begin,
    begin_at,
    chosen,
    fail,
    kill,
    refusal,
)
from shared.breaker import State
from shared.endpoints import Address
from shared.errors import NotFound, Unavailable


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
def clock(make: Maker) -> Clock:
    return make.clock


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
    for count in range(1, CONNECTS_MAX):
        assert upstream.may_retry("POST", has_idempotency_key=False, outcome=Outcome.REFUSED, tried=[A] * count) == 0
    tried = [A] * CONNECTS_MAX
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.REFUSED, tried=tried) is None
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
    assert upstream.replicas[0].ended == [20, 0, 0, 0, 0]


def test_operator_opens_it_and_closes_it(make, clock):
    upstream = make(A, B)
    upstream.hold(State.OPEN)
    clock.now += 1000
    assert refusal(upstream).problem_code == "breaker_open"
    upstream.refresh([A, B, C])
    with pytest.raises(Unavailable):
        upstream.begin()
    upstream.hold(None)
    assert set(chosen(upstream)) == {A, B, C}


def test_operator_closes_one_that_opened_by_itself(make):
    upstream = make(A)
    kill(upstream)
    upstream.hold(None)
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
    upstream.hold(None)
    assert told[-1] == ("users", B, State.OPEN, State.CLOSED)
    assert ("users", None, State.OPEN, State.CLOSED) in told
