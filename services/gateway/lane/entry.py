"""The door of the data path: every request is checked, matched and, where the route says so, signed in before its body is read."""

from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.domain.admission import admit
from services.gateway.domain.routing import RouteTable, check_target
from services.gateway.lane.client import refuse
from services.gateway.lane.exchange import Exchange, Upstreams, deadline_of
from services.gateway.lane.head import RequestHead, check_authority, read_head
from services.gateway.lane.websocket import WebSocketProxy, refuse_handshake
from services.gateway.model import Route
from shared import context
from shared.errors import BodyTooLarge, NotFound, Problem, Unauthorized
from shared.identity import bearer_of
from shared.tokens import TokenVerifier


class Lane:
    """Pure ASGI: proxies what the route table knows and gives the rest to `inner`."""

    def __init__(
        self,
        inner: ASGIApp,
        table: RouteTable,
        *,
        upstreams: Upstreams,
        verifier: TokenVerifier,
        websockets: WebSocketProxy,
        authorities: frozenset[str] = frozenset(),
    ) -> None:
        self._inner = inner
        self._table = table
        self._upstreams = upstreams
        self._verifier = verifier
        self._websockets = websockets
        self._authorities = authorities

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._on_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._on_websocket(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _on_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Read before anything is awaited: the server adds a chunked body's trailers to the same list as they come.
        head, problem = read_head(scope)
        try:
            route = self._admit(scope, head, problem)
            if route is not None:
                deadline = deadline_of(route)
                if route.auth != "public":
                    await admit(self._verifier, _token_of(scope, head, route), route.auth)
                if head.length is not None and head.length > route.body_bytes_max:
                    raise BodyTooLarge(f"a body may have at most {route.body_bytes_max} bytes")
        except Problem as refusal:
            await refuse(refusal, scope=scope, receive=receive, send=send, head=head)
            return
        if route is None:
            await self._inner(scope, receive, send)
        else:
            await Exchange(self._upstreams, route, scope=scope, receive=receive, send=send).run(head, deadline)

    def _admit(self, scope: Scope, head: RequestHead, problem: Problem | None) -> Route | None:
        """Return the route of a well-formed request, None where the gateway itself answers. Raises Problem."""
        if problem is not None:
            raise problem
        check_target(scope["raw_path"])
        route = self._table.resolve(scope["method"], scope["path"])
        if route is not None:
            # Not for the gateway's own probes: who asks them names an address, not a public host.
            check_authority(head.host, self._authorities)
        _name_route(route)
        return route

    async def _on_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, problem = read_head(scope)
        try:
            if problem is not None:
                raise problem
            check_authority(head.host, self._authorities)
            check_target(scope["raw_path"])
            route = self._table.resolve_websocket(scope["path"])
            if route is None:
                raise NotFound
            _name_route(route)
            if route.auth != "public":
                await admit(self._verifier, _token_of(scope, head, route), route.auth)
        except Problem as refusal:
            await refuse_handshake(refusal, scope, receive, send)
            return
        await self._websockets.run(route, head, scope=scope, receive=receive, send=send)


def _name_route(route: Route | None) -> None:
    found = context.current()
    if found is not None and route is not None:
        found.route = route.path


def _token_of(scope: Scope, head: RequestHead, route: Route) -> str:
    if not head.authorization and route.query_token:
        query: bytes = scope["query_string"]
        for name, value in parse_qsl(query.decode("latin-1")):
            if name == "token" and value:
                return value
        raise Unauthorized
    return bearer_of(head.authorization.decode("latin-1"))
