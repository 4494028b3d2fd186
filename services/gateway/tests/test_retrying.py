"""Retries: which, how soon, how many."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain.retrying import (
    BACKOFF_S_MAX,
    RetryBudget,
    backoff_s,
    may_repeat,
)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_idempotent_methods_may_be_repeated(method):
    assert may_repeat(method, has_idempotency_key=False)


@pytest.mark.parametrize("method", ["POST", "PATCH", "get", "LOCK"])
def test_other_methods_only_with_an_idempotency_key(method):
    assert not may_repeat(method, has_idempotency_key=False)
    assert may_repeat(method, has_idempotency_key=True)


@given(attempt=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_is_never_above_its_limit(attempt, chance):
    assert 0 <= backoff_s(attempt, lambda: chance) <= BACKOFF_S_MAX


def test_backoff_limit_doubles_and_any_part_of_it_may_come():
    assert [round(backoff_s(attempt, lambda: 0.5), 4) for attempt in (1, 2, 3, 4, 5, 6)] == [
        0.025,
        0.05,
        0.1,
        0.2,
        0.25,
        0.25,
    ]
    dice = random.Random(1)
    waits = [backoff_s(3, dice.random) for _ in range(1000)]
    assert min(waits) < 0.01
    assert max(waits) > 0.19


@given(
    share=st.sampled_from([0.0, 0.001, 0.1, 0.2, 1 / 3, 0.5, 1.0]),
    allowance=st.integers(0, 5),
    reserve_max=st.integers(0, 100),
    run=st.lists(st.booleans(), max_size=400),
)
def test_retries_stay_below_the_share_of_requests_and_the_allowance(share, allowance, reserve_max, run):
    budget = RetryBudget(share, allowance=allowance, reserve_max=reserve_max)
    requests = retries = 0
    for is_request in run:
        if is_request:
            budget.deposit()
            requests += 1
        else:
            retries += budget.withdraw()
        assert retries <= Fraction(share) * requests + allowance
        assert 0 <= budget.left <= max(allowance, reserve_max)


def test_dead_upstream_sees_little_more_than_its_requests():
    budget = RetryBudget(0.1)
    requests, sent = 1000, 0
    for _ in range(requests):
        budget.deposit()
        sent += 1
        for _ in range(2):
            sent += budget.withdraw()
    assert 1.09 * requests <= sent <= 1.2 * requests


def test_ten_requests_pay_for_one_retry_exactly():
    budget = RetryBudget(0.1, allowance=0)
    for _ in range(9):
        budget.deposit()
    assert not budget.withdraw()
    budget.deposit()
    assert budget.withdraw()


def test_quiet_service_may_retry_its_first_request():
    budget = RetryBudget(0.1)
    budget.deposit()
    assert budget.withdraw()


def test_what_a_good_time_saves_up_is_bounded():
    budget = RetryBudget(0.1, reserve_max=20)
    for _ in range(100_000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) == 20
