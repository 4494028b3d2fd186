"""Upstreams on a clock and dice of their own, and short ways to bring them into a state."""

import random
from collections import Counter
from typing import Any

import pytest

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.upstream import Upstream
from services.gateway.model import BreakerPolicy, ServicePolicy
from shared.endpoints import Address
from shared.errors import Unavailable

A, B, C, D = (("127.0.0.1", port) for port in (1, 2, 3, 4))
QUICK = BreakerPolicy(window=10, volume_min=4, open_s=1, probes=2)
SEED = 5


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes upstreams on one clock."""

    def __init__(self) -> None:
        self.clock = Clock()

    def __call__(self, *addresses: Address, hooks: Any = (), **policy: Any) -> Upstream:
        policy.setdefault("breaker", QUICK)
        dice = random.Random(SEED).random
        return Upstream(
            "users", ServicePolicy(**policy), addresses, on_breaker_change=hooks, clock=self.clock, dice=dice
        )


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
