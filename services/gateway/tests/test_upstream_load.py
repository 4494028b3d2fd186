"""A service and its replicas: how much it is given, what is tried again, and what changes from outside leave as it is."""

import json

import pytest

from services.gateway.domain.retrying import ALLOWANCE
from services.gateway.lane.attempt import Outcome
from services.gateway.model import BreakerPolicy, ServicePolicy
from services.gateway.tests.upstream_rig import (
    QUICK,
    A,
    B,
    C,
    Clock,
    Maker,
    begin,
    begin_at,
    chosen,
    fail,
    kill,
    refusal,
)
from shared.breaker import State
from shared.errors import Unavailable


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
def clock(make: Maker) -> Clock:
    return make.clock


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
    upstream.hold(None)
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
    wait_s = upstream.may_retry(method, has_idempotency_key=has_key, outcome=outcome, tried=[A])
    assert (wait_s is not None) is may
    assert upstream.retries == may


def test_retries_end_after_the_policys_number(make):
    upstream = make(A, retries_max=2)
    waits = [
        upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.FAILED, tried=[A] * count)
        for count in (1, 2, 3)
    ]
    assert [wait is None for wait in waits] == [False, False, True]


def test_failing_service_sees_at_most_a_fifth_more_than_its_requests(make):
    upstream = make(A, retries_max=5, breaker=BreakerPolicy(window=1000, volume_min=1000))
    requests = sent = 0
    for _ in range(500):
        requests += 1
        tried = []
        while True:
            begin(upstream, *tried).end(Outcome.FAILED)
            sent += 1
            tried.append(A)
            if upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.FAILED, tried=tried) is None:
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
        "OK",
        "FAILED",
    ]
    later = [(b"content-length", b"0"), (b"retry-after", b"1")]
    assert upstream.outcome_of(503, later) is Outcome.BUSY
    assert upstream.outcome_of(500, later) is Outcome.OK
    assert make(A, failure_statuses=(503,)).outcome_of(503, later) is Outcome.FAILED


def test_busy_replica_passes_a_repeatable_request_on_and_is_not_asked_again(make):
    upstream = make(A, B)
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A]) is not None
    assert upstream.may_retry("POST", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A]) is None
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A, B]) is None
    assert upstream.retries == 1
    fail(upstream, B)
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A]) is None
    upstream.hold(None)
    upstream.drain(B)
    assert upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A]) is None


def test_busy_service_pays_for_what_is_passed_on_from_its_budget(make):
    upstream = make(A, B, retry_share=0)
    allowed = [
        upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.BUSY, tried=[A]) is not None
        for _ in range(ALLOWANCE + 1)
    ]
    assert allowed == [True] * ALLOWANCE + [False]
    assert upstream.retries_denied == 1


def test_service_that_is_only_busy_is_never_left_alone(make):
    upstream = make(A, B)
    for _ in range(100):
        begin(upstream).end(Outcome.BUSY)
    assert upstream.state is State.CLOSED
    assert set(chosen(upstream)) == {A, B}


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
    upstream.hold(State.OPEN)
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
