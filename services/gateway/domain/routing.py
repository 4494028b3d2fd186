"""The route table: which service takes a request, decided by whole path segments, with no framework involved."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from services.gateway.model import Kind, Route
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


class HasKind(Protocol):
    """What the table needs to know of an entry."""

    @property
    def kind(self) -> Kind: ...


E = TypeVar("E", bound=HasKind)
F = TypeVar("F", bound=HasKind)

_Rows = dict[str, dict[str, E]]


class RouteTable(Generic[E]):
    """Entries by path: the longest prefix wins, a path alone wins over `/*` at the same depth; look-up cost is flat in their number."""

    def __init__(self, alone: _Rows[E], below: _Rows[E]) -> None:
        """`alone` and `below` are entries by path (without `/*`) and method; `table_of` makes them of routes."""
        self._alone = alone
        self._below = below

    def map(self, change: Callable[[E], F]) -> "RouteTable[F]":
        """Return the same table of other entries, each made once of the entry whose place it takes."""
        made: dict[int, F] = {}

        def entry(old: E) -> F:
            if id(old) not in made:
                made[id(old)] = change(old)
            return made[id(old)]

        def rows(old: _Rows[E]) -> _Rows[F]:
            return {path: {method: entry(found) for method, found in row.items()} for path, row in old.items()}

        return RouteTable(rows(self._alone), rows(self._below))

    def find(self, path: str) -> Mapping[str, E] | None:
        """Return the entries of a decoded path by method, None where no route knows it."""
        rows = self._alone.get(path)
        if rows is not None:
            return rows
        if path.count("/") > PATH_SEGMENTS_MAX:
            path = "/".join(path.split("/", PATH_SEGMENTS_MAX)[:PATH_SEGMENTS_MAX])
        below = self._below
        while path:
            rows = below.get(path)
            if rows is not None:
                return rows
            path = path.rpartition("/")[0]
        return None

    def resolve(self, method: str, path: str) -> E | None:
        """Return the entry of a plain request, None where no route knows its path.

        Raises MethodNotAllowed, and UpgradeRequired on a WebSocket address.
        """
        rows = self.find(path)
        if rows is None:
            return None
        found = rows.get(method)
        if found is None:
            raise MethodNotAllowed(allow=sorted(rows))
        if found.kind == "websocket":
            raise UpgradeRequired
        return found

    def resolve_websocket(self, path: str) -> E | None:
        """Return the entry of a WebSocket handshake, None where there is none."""
        found = (self.find(path) or {}).get("GET")
        return found if found is not None and found.kind == "websocket" else None


def table_of(routes: Iterable[Route]) -> RouteTable[Route]:
    """Return the table of routes. Raises RouteTableError when two claim the same requests, or there are too many."""
    alone: _Rows[Route] = {}
    below: _Rows[Route] = {}
    for count, route in enumerate(routes, start=1):
        if count > ROUTES_MAX:
            raise RouteTableError(f"there are more routes than {ROUTES_MAX}, the most that are served")
        rows = (below if route.covers_below else alone).setdefault(route.prefix, {})
        for method in route.methods:
            if method in rows:
                raise RouteTableError(
                    f"route {route.path}: {method} is claimed twice; keep it in one of the two routes"
                )
            rows[method] = route
    return RouteTable(alone, below)


def check_target(raw_path: bytes) -> None:
    """Refuse a path that two readers could read differently. Raises BadRequest.

    Routing looks at the decoded path while the upstream gets the bytes as they came: `%2F`, `%5C`, `%00`, a backslash or dot segments
    would let the two disagree about which route, and so which rule, applies.
    """
    if (b"%" in raw_path or b"\\" in raw_path) and _AMBIGUOUS.search(raw_path):
        raise BadRequest("the path holds an encoded slash, a backslash or a null byte", code="ambiguous_target")
    if (b"/." in raw_path or b"/%2" in raw_path) and _DOT_SEGMENT.search(raw_path):
        raise BadRequest("the path holds . or .. segments", code="ambiguous_target")
