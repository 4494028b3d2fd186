"""All services behind the gateway, kept in step with the endpoints and the configuration."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from services.gateway.lane.upstream import BreakerHook, Upstream
from services.gateway.model import ServicePolicy
from shared.endpoints import Endpoints


class Upstreams:
    """One Upstream for each service that is asked for; names come from the route table, so their number is bounded by it."""

    def __init__(
        self,
        endpoints: Endpoints,
        policies: Mapping[str, ServicePolicy] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.on_breaker_change: list[BreakerHook] = []
        self._endpoints = endpoints
        self._policies = dict(policies or {})
        self._clock = clock
        self._dice = dice
        self._upstreams: dict[str, Upstream] = {}
        endpoints.on_change.append(self._refresh)

    def of(self, service: str) -> Upstream:
        """Return a routed service's upstream, the same one each time."""
        found = self._upstreams.get(service)
        if found is None:
            found = self._upstreams[service] = Upstream(
                service,
                self._policy(service),
                self._endpoints.of(service),
                on_breaker_change=self.on_breaker_change,
                clock=self._clock,
                dice=self._dice,
            )
        return found

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._upstreams.values())

    def _policy(self, service: str) -> ServicePolicy:
        return self._policies.get(service) or ServicePolicy()

    def _refresh(self) -> None:
        for name, upstream in self._upstreams.items():
            upstream.refresh(self._endpoints.of(name))

    def reconfigure(self, policies: Mapping[str, ServicePolicy]) -> None:
        """Go by other policies; services whose policy is the same keep everything they know."""
        self._policies = dict(policies)
        for name, upstream in self._upstreams.items():
            upstream.reconfigure(self._policy(name))

    def describe(self) -> dict[str, Any]:
        """Return the services by name, ready for JSON."""
        return {name: upstream.describe() for name, upstream in sorted(self._upstreams.items())}
