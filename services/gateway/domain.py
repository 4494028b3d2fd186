"""The route table: which service takes a request, decided by whole path segments, with no framework involved."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pydantic import ValidationError

from services.gateway.model import BODY_BYTES_MAX, Auth, Method, Route
from shared import context
from shared.deadline import limit
from shared.errors import BadRequest, Forbidden, MethodNotAllowed, Problem
from shared.tokens import TokenVerifier

ROUTES_MAX = 1000
VERIFY_S_MAX = 5.0
"""An unknown token waits at most this long for the issuer's keys."""

PATH_SEGMENTS_MAX = 64
"""Deeper paths are looked up by their first segments only; no route is so deep."""

_READ: tuple[Method, ...] = ("GET", "HEAD")
_AMBIGUOUS = re.compile(rb"%2f|%5c|%00|\\", re.IGNORECASE)
_DOT_SEGMENT = re.compile(rb"/(?:\.|%2e){1,2}(?:[/;]|$)", re.IGNORECASE)


class RouteTableError(ValueError):
    """The table does not describe routes that can be served; the text names the route and the fix."""


class UpgradeRequired(Problem):
    """A plain request to an address that speaks WebSocket only (RFC 9110, section 15.5.22)."""

    status, code, title = 426, "upgrade_required", "This address speaks WebSocket"

    def __init__(self) -> None:
        super().__init__(headers={"Upgrade": "websocket", "Connection": "Upgrade"})


class RouteTable:
    """Routes by path: the longest prefix wins, a path alone wins over `/*` at the same depth; look-up cost is flat in their number."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Raises RouteTableError when two routes claim the same requests."""
        self.routes = tuple(routes)
        if len(self.routes) > ROUTES_MAX:
            raise RouteTableError(f"there are {len(self.routes)} routes; at most {ROUTES_MAX} are served")
        self._alone: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            rows = (self._below if route.covers_below else self._alone).setdefault(route.prefix, {})
            for method in route.methods:
                if method in rows:
                    raise RouteTableError(
                        f"route {route.path}: {method} is claimed twice; keep it in one of the two routes"
                    )
                rows[method] = route

    def find(self, path: str) -> Mapping[str, Route] | None:
        """Return the routes of a decoded path by method, None where no route knows it."""
        rows = self._alone.get(path)
        if rows is not None:
            return rows
        if path.count("/") > PATH_SEGMENTS_MAX:
            path = "/".join(path.split("/", PATH_SEGMENTS_MAX)[:PATH_SEGMENTS_MAX])
        while path:
            rows = self._below.get(path)
            if rows is not None:
                return rows
            path = path[: path.rfind("/")] if "/" in path else ""
        return None

    def resolve(self, method: str, path: str) -> Route | None:
        """Return the route of a plain request, None where no route knows its path.

        Raises MethodNotAllowed, and UpgradeRequired on a WebSocket address.
        """
        rows = self.find(path)
        if rows is None:
            return None
        route = rows.get(method)
        if route is None:
            raise MethodNotAllowed(allow=sorted(rows))
        if route.kind == "websocket":
            raise UpgradeRequired
        return route

    def resolve_websocket(self, path: str) -> Route | None:
        """Return the route of a WebSocket handshake, None where there is none."""
        route = (self.find(path) or {}).get("GET")
        return route if route is not None and route.kind == "websocket" else None


def check_target(raw_path: bytes) -> None:
    """Refuse a path that two readers could read differently. Raises BadRequest.

    Routing looks at the decoded path while the upstream gets the bytes as they came: `%2F`, `%5C`, `%00`, a backslash or dot segments
    would let the two disagree about which route, and so which rule, applies.
    """
    if (b"%" in raw_path or b"\\" in raw_path) and _AMBIGUOUS.search(raw_path):
        raise BadRequest("the path holds an encoded slash, a backslash or a null byte", code="ambiguous_target")
    if (b"/." in raw_path or b"/%2" in raw_path) and _DOT_SEGMENT.search(raw_path):
        raise BadRequest("the path holds . or .. segments", code="ambiguous_target")


async def admit(verifier: TokenVerifier, token: str, auth: Auth) -> None:
    """Let pass who `auth` asks for and note in the logs who it is.

    Raises Unauthorized, Forbidden, and Unavailable or DeadlineExceeded when no key to check the token with could be fetched.
    """
    identity = verifier.remembered(token)
    if identity is None:
        async with limit(context.deadline(), VERIFY_S_MAX, "checking the access token"):
            identity = await verifier.verify(token)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    if auth == "admin" and not identity.is_admin:
        raise Forbidden("this needs the role admin")


@lru_cache(maxsize=1)
def parse_routes(text: str) -> RouteTable:
    """Read a table in TOML: `[[routes]]` with the fields of Route. Raises RouteTableError.

    The last one read is kept: settings check it, then the gateway serves it.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RouteTableError(f"the route table is not TOML: {error}") from error
    unknown = sorted(set(data) - {"routes"})
    rows = data.get("routes", [])
    if unknown or not isinstance(rows, list) or not rows:
        found = f", not {', '.join(unknown)}" if unknown else ""
        raise RouteTableError(f"the route table must hold one or more [[routes]] tables{found}")
    return RouteTable(_route(number, row) for number, row in enumerate(rows, start=1))


def _route(number: int, row: object) -> Route:
    try:
        return Route.model_validate(row)
    except ValidationError as error:
        path = row.get("path") if isinstance(row, dict) else None
        name = f"route {path}" if isinstance(path, str) else f"route number {number}"
        faults = []
        for item in error.errors(include_input=False, include_url=False):
            field = ".".join(str(part) for part in item["loc"])
            faults.append(f"{field}: {item['msg']}" if field else str(item["msg"]))
        raise RouteTableError(f"{name[:120]}: {'; '.join(faults)}") from None


_ADDED: tuple[Route, ...] = (
    # dev new: routes
)
"""Of the services that a team has added."""


def default_routes(*, is_production: bool, body_bytes_max: int = BODY_BYTES_MAX) -> RouteTable:
    """Return the platform's own table, every route with the same limit on bodies."""
    detailed: Auth = "signed_in" if is_production else "public"
    routes = (
        Route(path="/users", service="users", methods=("POST", "OPTIONS"), auth="public"),
        Route(path="/users", service="users", methods=_READ, auth="admin"),
        Route(path="/users/*", service="users", methods=(*_READ, "PUT", "PATCH", "DELETE"), auth="signed_in"),
        Route(path="/users/*", service="users", methods=("OPTIONS",), auth="public"),
        Route(path="/auth/token", service="users", methods=("POST",), auth="public"),
        Route(path="/auth/refresh", service="users", methods=("POST",), auth="public"),
        Route(path="/auth/*", service="users", methods=("GET", "POST", "DELETE"), auth="signed_in"),
        Route(path="/.well-known/jwks.json", service="users", methods=_READ, auth="public"),
        # The token of a chat may come by header, query or subprotocol; the service knows all three, so it verifies.
        Route(path="/ws/chat", service="realtime", methods=("GET",), auth="public", kind="websocket"),
        Route(
            path="/sse/stream",
            service="realtime",
            methods=("GET",),
            auth="signed_in",
            kind="stream",
            query_token=True,
        ),
        Route(path="/cpu-intensive", service="compute", methods=("POST",), auth="signed_in", timeout_s=30),
        Route(path="/async-demo", service="compute", methods=("GET",), auth="signed_in"),
        Route(path="/blocking-demo", service="compute", methods=("GET",), auth="signed_in"),
        Route(path="/health", service="health", methods=_READ, auth="public", timeout_s=5),
        Route(path="/health/detailed", service="health", methods=_READ, auth=detailed, timeout_s=5),
        *_ADDED,
    )
    return RouteTable(route.model_copy(update={"body_bytes_max": body_bytes_max}) for route in routes)
