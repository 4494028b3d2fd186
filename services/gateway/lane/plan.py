"""Plans: every route with its policies, compiled once when a configuration is loaded."""

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from services.gateway.domain.addresses import AddressBook
from services.gateway.domain.config import check
from services.gateway.domain.routing import RouteTable
from services.gateway.lane.call import Call
from services.gateway.lane.compress import Compression
from services.gateway.lane.cors import CorsPolicy
from services.gateway.model import GatewayConfig, Kind, Route
from shared.metrics import UNMATCHED

Before = Callable[[Call], Awaitable[None] | None]
"""Looks at a call on its way in. Refuses by raising a Problem; hands back what has to be awaited, which is rare."""

After = Callable[[Call], None]
"""Told once when a call is over, whatever became of it, also where a policy refused it before this one saw it. Must not raise."""


class Plan:
    """What happens to the calls of one route; `route` is None for those that no route takes.

    `policies` are objects with `before`, `after` or both, outermost first. A `before` that refuses ends the way in; every `after` runs
    in any case, innermost first.
    """

    __slots__ = ("after", "before", "kind", "name", "route")

    def __init__(self, route: Route | None, policies: Iterable[Any]) -> None:
        self.route = route
        self.kind: Kind = route.kind if route is not None else "http"
        self.name = route.path if route is not None else UNMATCHED
        """What logs and metrics call it."""
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        for policy in policies:
            if hasattr(policy, "before"):
                self.before += (policy.before,)
            if hasattr(policy, "after"):
                self.after = (policy.after, *self.after)


class Plans:
    """A compiled configuration."""

    def __init__(self, config: GatewayConfig, compile_plan: Callable[[Route | None], Plan]) -> None:
        """Raises ConfigError."""
        self.config = config
        self.unmatched = compile_plan(None)
        self.table: RouteTable[Plan] = check(config).map(compile_plan)
        self.cors = CorsPolicy(config.cors, self.methods_of)
        self.compression = Compression(self.methods_of)
        self.addresses = AddressBook(config.addresses)

    def methods_of(self, path: str) -> Collection[str]:
        """Return the methods of a decoded path's routes, none where no route knows it."""
        return (self.table.find(path) or {}).keys()
