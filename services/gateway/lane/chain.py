"""The chain: which policies a route has, in the blueprint's order; read once, when a configuration is loaded."""

from dataclasses import dataclass
from functools import partial

from services.gateway.domain.limiting import Limiter
from services.gateway.domain.route_limits import RouteLimits
from services.gateway.domain.tickets import Tickets
from services.gateway.lane.access import AccessLog
from services.gateway.lane.plan import Plan, Plans
from services.gateway.lane.policies import Allowed, Counted, Due, Guarded, Limited, Logged, SignIn, Ticketed
from services.gateway.lane.upstreams import Upstreams
from services.gateway.model import GatewayConfig, Route
from shared.metrics import Metrics
from shared.tokens import TokenVerifier


@dataclass(frozen=True, slots=True)
class Chain:
    """What the policies of every configuration work with; called with one, it compiles that."""

    upstreams: Upstreams
    verifier: TokenVerifier
    tickets: Tickets
    access_log: AccessLog
    metrics: Metrics
    limiter: Limiter

    def __call__(self, config: GatewayConfig) -> Plans:
        """Raises ConfigError."""
        return Plans(config, partial(self._plan, config))

    def _plan(self, config: GatewayConfig, route: Route | None) -> Plan:
        """Outermost first. CORS and gzip are outside of it: they are the answer's, whoever gives it."""
        policies: list[object] = [Logged(self.access_log, route), Counted(self.metrics, route)]
        if route is not None:
            if config.addresses.allow:
                policies.append(Allowed())
            sign_in = SignIn(self.verifier, auth=route.auth, has_query_token=route.query_token)
            if route.ticket:
                policies.append(Ticketed(self.tickets, sign_in))
            elif route.auth != "public":
                policies.append(sign_in)
            if route.limits:
                known = {limit.name: limit for limit in config.limits}
                policies.append(Limited(RouteLimits(route, [known[name] for name in route.limits], self.limiter)))
            policies += [Due(route), Guarded(self.upstreams.of(route.service), route.priority)]
        return Plan(route, policies)
