"""The door of the data path: every request is checked, matched and taken through its route's policies before its body is read."""

import asyncio
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.domain.routing import check_target
from services.gateway.lane.call import Call, RequestLine
from services.gateway.lane.exchange import Exchange, Upstreams
from services.gateway.lane.head import RequestHead, check_authority, read_head
from services.gateway.lane.plan import Plan, Plans
from services.gateway.lane.websocket import WebSocketProxy
from services.gateway.model import Route
from shared import context
from shared.errors import NotFound, Problem

log = structlog.get_logger()


class Answering(Protocol):
    """Whoever answers one call."""

    async def run(self, route: Route) -> None:
        """Pass the call to the route's service. Raises Problem where that is refused before an answer began."""

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem."""


class Lane:
    """Pure ASGI, outermost: proxies what the plans know and gives the rest to `inner`, which has its own log and metrics."""

    def __init__(
        self,
        inner: ASGIApp,
        plans: Plans,
        *,
        upstreams: Upstreams,
        websockets: WebSocketProxy,
        draining: asyncio.Event,
        authorities: frozenset[str] = frozenset(),
    ) -> None:
        self._inner = inner
        self._plans = plans
        self._upstreams = upstreams
        self._websockets = websockets
        self._draining = draining
        self._authorities = authorities

    def reconfigure(self, plans: Plans) -> None:
        """Serve by other plans from the next request on; what is under way ends by its own."""
        self._plans = plans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._on_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._on_websocket(scope, receive, send)
        else:
            await self._inner(scope, receive, send)

    async def _on_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Read before anything is awaited: a server could add a chunked body's trailers to the same list as they come.
        head, problem = _read(scope)
        plans = self._plans
        plan: Plan | None = None
        try:
            if problem is not None:
                raise problem
            check_target(scope["raw_path"])
            plan = plans.table.resolve(scope["method"], scope["path"])
            if plan is None:
                await self._inner(scope, receive, send)
                return
            # Not for the gateway's own probes: who asks them names an address, not a public host.
            check_authority(head.host, self._authorities)
        except Problem as refusal:
            problem, plan = refusal, plans.unmatched
        assert plan is not None
        call = Call(head, RequestLine.of_scope(scope), self._draining)
        await self._serve(call, plan, problem, Exchange(self._upstreams, call, receive=receive, send=send))

    async def _on_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, problem = _read(scope)
        plans = self._plans
        plan: Plan | None = None
        try:
            if problem is not None:
                raise problem
            check_target(scope["raw_path"])
            check_authority(head.host, self._authorities)
            plan = plans.table.resolve_websocket(scope["path"])
            if plan is None:
                raise NotFound
        except Problem as refusal:
            problem, plan = refusal, plans.unmatched
        assert plan is not None
        call = Call(head, RequestLine.of_scope(scope), self._draining)
        await self._serve(call, plan, problem, self._websockets.opening(call, scope, receive, send))

    async def _serve(self, call: Call, plan: Plan, problem: Problem | None, answering: Answering) -> None:
        """Take a call through its plan; a problem has the plan of unmatched calls, which counts and logs it."""
        route = plan.route
        if route is not None:
            call.set_deadline(route.timeout_s)
        token = context.enter(call.context)
        try:
            for before in plan.before:
                waiting = before(call)
                if waiting is not None:
                    await waiting
            if problem is not None:
                raise problem
            assert route is not None
            await answering.run(route)
        except Problem as refusal:
            await answering.refuse(refusal)
        except Exception:
            log.exception("request_failed", method=call.method, path=call.path[:512])
            if call.status == 0:
                await answering.refuse(Problem())
        finally:
            for after in plan.after:
                after(call)
            context.leave(token)


def _read(scope: Scope) -> tuple[RequestHead, Problem | None]:
    return read_head(
        scope["headers"],
        target_bytes=len(scope["raw_path"]) + len(scope["query_string"]),
        is_old=scope.get("http_version") == "1.0",
    )
