"""Balancing: who is chosen, whatever the odds."""

from collections import Counter

import pytest

from services.gateway.lane.balance import Balancer
from shared.endpoints import Endpoints

A, B, C = ("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 3)


@pytest.fixture
async def balancer() -> Balancer:
    endpoints = Endpoints("users=127.0.0.1:1,users=127.0.0.1:2,users=127.0.0.1:3,one=127.0.0.1:1")
    await endpoints.refresh()
    return Balancer(endpoints)


async def test_unknown_service_has_no_replica(balancer):
    assert balancer.choose("nobody") is None


async def test_only_replica_is_chosen_however_busy(balancer):
    balancer.begin(A)
    assert balancer.choose("one") == A


async def test_busiest_of_three_is_never_chosen(balancer):
    balancer.begin(A)
    found = Counter(balancer.choose("users") for _ in range(200))
    assert set(found) == {B, C}


async def test_tried_replicas_are_left_out(balancer):
    assert balancer.choose("users", [A, B]) == C
    assert balancer.choose("users", [A, B, C]) is None


async def test_replica_that_refused_is_asked_last(balancer):
    balancer.refused(A)
    assert A not in {balancer.choose("users") for _ in range(100)}
    assert balancer.choose("users", [B, C]) == A
    assert balancer.choose("one") == A


async def test_refusal_is_forgotten_after_a_moment(balancer, monkeypatch):
    balancer.refused(A)
    monkeypatch.setattr("services.gateway.lane.balance.REFUSED_S", -1.0)
    assert A in {balancer.choose("users") for _ in range(200)}


async def test_counting_ends_where_it_began(balancer):
    balancer.begin(A)
    balancer.begin(A)
    balancer.end(A)
    assert balancer.in_flight(A) == 1
    balancer.end(A)
    assert balancer.in_flight(A) == 0
