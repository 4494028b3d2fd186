"""What would become of a request, and why: the route that takes it and what that route's policies do, or the reason why none does."""

from typing import Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict

from services.gateway.domain.routing import RouteTable, check_target
from services.gateway.model import OWN_PATHS, BreakerPolicy, GatewayConfig, Limit, Route, ServicePolicy
from shared.errors import Forbidden, MisdirectedRequest, NotFound, Problem, Unauthorized

WEBSOCKET = "WEBSOCKET"
"""Stands where a method stands for a WebSocket's handshake, which is a GET with `Upgrade`."""

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""RFC 9110, section 9.2.2."""

_KEYS = {"user": "the user's id", "address": "the client's address", "route": "the route, everyone together"}


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Asker(_View):
    """Who is supposed to ask: `role` None is somebody without a token."""

    role: str | None = None
    tier: str = ""
    host: str = ""

    @property
    def is_signed_in(self) -> bool:
        return self.role is not None


class Refusal(_View):
    """The answer of the gateway itself."""

    status: int
    code: str
    reason: str
    allow: tuple[str, ...] = ()


class LimitView(_View):
    """What one limit means for the request: up to `quota` at once, that many again over every `window_s`, shared per `key`."""

    name: str
    applies: bool
    key: str
    quota: int
    window_s: float
    cost: int
    counts: Literal["requests", "unauthorized"]
    store_down: Literal["open", "closed"]


class Step(_View):
    """One policy of the chain and what it does with the request."""

    name: str
    does: str


class Explanation(_View):
    """`answered_by` is a service's name, or the gateway where it answers or refuses; `chain` is outermost first."""

    method: str
    path: str
    answered_by: str
    refusal: Refusal | None = None
    route: Route | None = None
    chain: tuple[Step, ...] = ()
    limits: tuple[LimitView, ...] = ()
    treatment: ServicePolicy | None = None


def explain(
    config: GatewayConfig,
    table: RouteTable[Route],
    method: str,
    target: str,
    asker: Asker,
    *,
    authorities: frozenset[str] = frozenset(),
) -> Explanation:
    """Say what would become of a request for `target` (a path, encoded as on the wire, with or without a query)."""
    method = WEBSOCKET if method.upper() in (WEBSOCKET, "WS") else method
    raw_path = target.partition("?")[0]
    path = unquote(raw_path)
    route: Route | None = None
    try:
        check_target(raw_path.encode())
        route = _resolve(table, method, path)
        if route is not None:
            _check_asker(route, asker, authorities)
        elif path.split("/", 2)[1:2] and path.split("/", 2)[1] in OWN_PATHS and method != WEBSOCKET:
            return Explanation(method=method, path=path, answered_by="the gateway itself")
        else:
            raise NotFound(f"no route takes {path}{_nearest_hint(config, path)}")
    except Problem as problem:
        refusal = _refusal_of(problem)
        if route is None:
            return Explanation(method=method, path=path, answered_by="the gateway", refusal=refusal)
        return _explained(config, route, method, path, asker, refusal)
    return _explained(config, route, method, path, asker, None)


def explain_route(config: GatewayConfig, route: Route) -> Explanation:
    """Say what becomes of a request that the route is for, by its first method."""
    asker = Asker(role={"public": None, "signed_in": "user", "admin": "admin"}[route.auth])
    method = WEBSOCKET if route.kind == "websocket" else route.methods[0]
    return _explained(config, route, method, route.path, asker, None)


def _resolve(table: RouteTable[Route], method: str, path: str) -> Route | None:
    return table.resolve_websocket(path) if method == WEBSOCKET else table.resolve(method, path)


def _check_asker(route: Route, asker: Asker, authorities: frozenset[str]) -> None:
    if authorities and asker.host and asker.host.lower() not in authorities:
        raise MisdirectedRequest(f"{asker.host} is not among the authorities: {', '.join(sorted(authorities))}")
    if route.auth != "public" and not asker.is_signed_in:
        raise Unauthorized
    if route.auth == "admin" and asker.role != "admin":
        raise Forbidden("this needs the role admin")


def _refusal_of(problem: Problem) -> Refusal:
    allow = tuple(filter(None, problem.headers.get("Allow", "").split(", ")))
    return Refusal(status=problem.status, code=problem.problem_code, reason=problem.detail, allow=allow)


def _nearest_hint(config: GatewayConfig, path: str) -> str:
    """Name a route that misses the path only by its end, the usual slip: `/users` for `/users/*` and the other way round."""
    for route in config.routes:
        if not route.covers_below and path.startswith(f"{route.prefix}/"):
            return f"; {route.path} takes that path alone, {route.path}/* would take what is below it too"
    return ""


def _explained(
    config: GatewayConfig, route: Route, method: str, path: str, asker: Asker, refusal: Refusal | None
) -> Explanation:
    treatment = config.services.get(route.service, ServicePolicy())
    limits = tuple(
        _limit_view(limit, route, asker) for name in route.limits for limit in config.limits if limit.name == name
    )
    return Explanation(
        method=method,
        path=path,
        answered_by=route.service if refusal is None else "the gateway",
        refusal=refusal,
        route=route,
        chain=_chain(config, route, method, limits, treatment),
        limits=limits,
        treatment=treatment,
    )


def _limit_view(limit: Limit, route: Route, asker: Asker) -> LimitView:
    applies = limit.applies_to == "all" or (limit.applies_to == "signed_in") == asker.is_signed_in
    if limit.by == "user" and not asker.is_signed_in:
        applies = False
    return LimitView(
        name=limit.name,
        applies=applies,
        key=_KEYS[limit.by],
        quota=limit.tiers.get(asker.tier or asker.role or "", limit.quota),
        window_s=limit.window_s,
        cost=route.cost,
        counts=limit.counts,
        store_down=limit.store_down,
    )


def _chain(
    config: GatewayConfig, route: Route, method: str, limits: tuple[LimitView, ...], treatment: ServicePolicy
) -> tuple[Step, ...]:
    is_compressed = route.compress and route.kind == "http"
    met = [limit.name for limit in limits if limit.applies]
    addresses = config.addresses
    return (
        Step(name="cors", does=f"pages of {', '.join(config.cors.origins) or 'no foreign origin'} may ask"),
        Step(name="gzip", does="compresses what is worth it" if is_compressed else "passes the answer as it is"),
        Step(name="log, metrics", does=f"one line and one count under {route.path}"),
        Step(
            name="addresses",
            does=f"only {', '.join(addresses.allow)} are served" if addresses.allow else "all are served",
        ),
        Step(name="auth", does=_auth_text(route)),
        Step(name="rate limit", does=", ".join(met) if met else "no limit applies"),
        Step(name="deadline", does=_deadline_text(route, treatment)),
        Step(name="body", does=f"at most {route.body_bytes_max} bytes"),
        Step(name="load", does=f"at most {treatment.in_flight_max} at once at one replica; {route.priority} priority"),
        Step(name="retries", does=_retry_text(route, method, treatment)),
        Step(name="breaker", does=_breaker_text(treatment.breaker)),
    )


def _auth_text(route: Route) -> str:
    ticket = "a ticket in ?ticket= is spent" if route.ticket else ""
    if route.auth == "public":
        return f"no token is asked for{', ' if ticket else ''}{ticket}"
    who = "an admin's token" if route.auth == "admin" else "any valid token"
    return f"{who}, as a Bearer token{' or ?token=' if route.query_token else ''}{'; ' if ticket else ''}{ticket}"


def _deadline_text(route: Route, treatment: ServicePolicy) -> str:
    texts = {
        "http": f"{route.timeout_s:g} s in all",
        "stream": f"{route.timeout_s:g} s until the answer begins, then {route.idle_timeout_s:g} s between parts",
        "websocket": f"{route.timeout_s:g} s for the handshake",
    }
    one_try = f", {route.try_timeout_s:g} s for one replica to begin" if route.try_timeout_s else ""
    return f"{texts[route.kind]}{one_try}, {treatment.connect_timeout_s:g} s to connect"


def _retry_text(route: Route, method: str, treatment: ServicePolicy) -> str:
    if treatment.retries_max == 0 or route.kind == "websocket":
        return "none"
    condition = "" if method in IDEMPOTENT else ", with an Idempotency-Key only"
    return (
        f"up to {treatment.retries_max}, while at most {treatment.retry_share:.0%} of requests are repeats{condition}"
    )


def _breaker_text(breaker: BreakerPolicy) -> str:
    slow = f" or {breaker.slow_rate:.0%} take over {breaker.slow_s:g} s" if breaker.slow_s else ""
    return (
        f"opens when of {breaker.volume_min} or more of the last {breaker.window} calls in {breaker.window_s:g} s "
        f"{breaker.failure_rate:.0%} fail{slow}; asks again after {breaker.open_s:g} s with {breaker.probes} calls"
    )
