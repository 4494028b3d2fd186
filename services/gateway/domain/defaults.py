"""What the gateway does where no file says otherwise: the platform's own routes and limits."""

from services.gateway.model import (
    BODY_BYTES_MAX,
    Addresses,
    Auth,
    Cors,
    GatewayConfig,
    Limit,
    Method,
    Route,
)

_READ: tuple[Method, ...] = ("GET", "HEAD")

USUAL = ("signed-in", "anonymous")
"""The limits of a route that names none: by user where one is signed in, else by address."""

_UNLIMITED = frozenset({"/health"})


def default_config(
    *,
    is_production: bool,
    body_bytes_max: int = BODY_BYTES_MAX,
    addresses: Addresses | None = None,
    cors: Cors | None = None,
) -> GatewayConfig:
    """Return the platform's own configuration."""
    return GatewayConfig(
        routes=tuple(_completed(route, body_bytes_max) for route in (*_routes(is_production=is_production), *_ADDED)),
        limits=default_limits(is_production=is_production),
        addresses=addresses or Addresses(),
        cors=cors or Cors(),
    )


def default_limits(*, is_production: bool) -> tuple[Limit, ...]:
    """Return the limits of the platform's routes."""
    return (
        Limit(name="signed-in", by="user", quota=600, applies_to="signed_in"),
        Limit(name="anonymous", by="address", quota=1200, applies_to="anonymous"),
        Limit(name="registration", by="address", quota=60 if is_production else 600),
        Limit(name="failed-logins", by="address", quota=100, window_s=600, counts="unauthorized"),
    )


def _completed(route: Route, body_bytes_max: int) -> Route:
    limits = route.limits or (() if route.path in _UNLIMITED else USUAL)
    return route.model_copy(update={"body_bytes_max": body_bytes_max, "limits": limits})


def _routes(*, is_production: bool) -> tuple[Route, ...]:
    detailed: Auth = "signed_in" if is_production else "public"
    return (
        Route(path="/users", service="users", methods=("POST",), auth="public", limits=(*USUAL, "registration")),
        Route(path="/users", service="users", methods=("OPTIONS",), auth="public"),
        Route(path="/users", service="users", methods=_READ, auth="admin"),
        Route(path="/users/*", service="users", methods=(*_READ, "PUT", "PATCH", "DELETE"), auth="signed_in"),
        # Many at once, and restoring a deleted one.
        Route(path="/users/*", service="users", methods=("POST",), auth="admin"),
        Route(path="/users/*", service="users", methods=("OPTIONS",), auth="public"),
        Route(path="/audit", service="users", methods=_READ, auth="admin"),
        Route(
            path="/auth/token",
            service="users",
            methods=("POST",),
            auth="public",
            limits=(*USUAL, "failed-logins"),
            priority="critical",
            # What hands out tokens is never compressed: see lane/compress.py.
            compress=False,
        ),
        Route(
            path="/auth/refresh", service="users", methods=("POST",), auth="public", priority="critical", compress=False
        ),
        *(_by_mail(path) for path in ("/auth/email/verify", "/auth/password/forgot", "/auth/password/reset")),
        Route(
            path="/auth/*",
            service="users",
            methods=("GET", "POST", "DELETE"),
            auth="signed_in",
            priority="critical",
            compress=False,
        ),
        Route(path="/.well-known/jwks.json", service="users", methods=_READ, auth="public", priority="critical"),
        # The token of a chat may come by header, query or subprotocol; the service knows all three, so it verifies. A ticket is
        # spent here, since only here all replicas are seen.
        Route(path="/ws/chat", service="realtime", methods=("GET",), auth="public", kind="websocket", ticket=True),
        Route(
            path="/sse/stream",
            service="realtime",
            methods=("GET",),
            auth="signed_in",
            kind="stream",
            query_token=True,
            ticket=True,
        ),
        Route(path="/cpu-intensive", service="compute", methods=("POST",), auth="signed_in", timeout_s=30),
        Route(path="/async-demo", service="compute", methods=("GET",), auth="signed_in"),
        Route(path="/blocking-demo", service="compute", methods=("GET",), auth="signed_in"),
        Route(path="/health", service="health", methods=_READ, auth="public", timeout_s=5, priority="critical"),
        Route(
            path="/health/detailed", service="health", methods=_READ, auth=detailed, timeout_s=5, priority="critical"
        ),
    )


def _by_mail(path: str) -> Route:
    """Return a route of those who are not signed in: by a token that came in a mail, or to have one sent."""
    return Route(
        path=path,
        service="users",
        methods=("POST",),
        auth="public",
        limits=(*USUAL, "registration"),
        priority="critical",
        compress=False,
    )


_ADDED: tuple[Route, ...] = (
    # dev new: routes
)
"""Of the services that a team has added."""
