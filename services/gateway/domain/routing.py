"""The route table: which service takes a request, decided by whole path segments, with no framework involved."""

import re
from collections.abc import Iterable, Mapping

from services.gateway.model import Route
from shared.errors import BadRequest, MethodNotAllowed, Problem

ROUTES_MAX = 1000

PATH_SEGMENTS_MAX = 64
"""Deeper paths are looked up by their first segments only; no route is so deep."""

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
