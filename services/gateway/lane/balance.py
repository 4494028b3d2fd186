"""Balancing: the less busy of two random replicas, those that just refused a connection last."""

import random
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from shared.endpoints import Address, Endpoints

REFUSED_S = 1.0
"""How long a replica that took no connection is asked only when there is no other."""


class Balancer:
    """Knows what is under way at every replica, HTTP and WebSocket alike."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._in_flight: dict[Address, int] = {}
        self._refused_at: dict[Address, float] = {}

    def choose(self, service: str, tried: Collection[Address] = ()) -> Address | None:
        """Return the replica to ask next, None when all were tried or none is known."""
        known = self._endpoints.of(service)
        if tried or self._refused_at:
            known = self._usable(known, tried)
        if len(known) < 2:
            return known[0] if known else None
        # Two random ones are nearly as even as looking at all, without sending every gateway to the same idle replica.
        one, other = random.sample(known, 2)
        return one if self._in_flight.get(one, 0) <= self._in_flight.get(other, 0) else other

    def _usable(self, known: tuple[Address, ...], tried: Collection[Address]) -> tuple[Address, ...]:
        since = time.monotonic() - REFUSED_S
        left = tuple(address for address in known if address not in tried)
        willing = tuple(address for address in left if self._refused_at.get(address, since) <= since)
        return willing or left

    def refused(self, address: Address) -> None:
        """Note that a replica took no connection."""
        now = time.monotonic()
        self._refused_at = {a: at for a, at in self._refused_at.items() if now - at < REFUSED_S}
        self._refused_at[address] = now

    def begin(self, address: Address) -> None:
        """Count an exchange in; `end` counts it out."""
        self._in_flight[address] = self._in_flight.get(address, 0) + 1

    def end(self, address: Address) -> None:
        left = self._in_flight[address] - 1
        if left:
            self._in_flight[address] = left
        else:
            del self._in_flight[address]

    @contextmanager
    def counted(self, address: Address) -> Iterator[None]:
        """Count an exchange for the length of a block."""
        self.begin(address)
        try:
            yield
        finally:
            self.end(address)

    def in_flight(self, address: Address) -> int:
        return self._in_flight.get(address, 0)
