"""The door of the data path: every request is checked, matched and taken through its route's policies before its body is read."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from services.gateway.domain.routing import check_target
from services.gateway.lane.call import Call
from services.gateway.lane.client import refuse
from services.gateway.lane.exchange import Exchange, Upstreams
from services.gateway.lane.head import check_authority, read_head
from services.gateway.lane.plan import Plan, Plans
from services.gateway.lane.websocket import WebSocketProxy, refuse_handshake
from services.gateway.model import Route
from shared import context
from shared.errors import NotFound, Problem

log = structlog.get_logger()


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
        head, problem = read_head(scope)
        plans = self._plans
        plan: Plan | None = None
        try:
            if problem is not None:
                raise problem
            check_target(scope["raw_path"])
            plan = plans.table.resolve(scope["method"], scope["path"])
            if plan is not None:
                # Not for the gateway's own probes: who asks them names an address, not a public host.
                check_authority(head.host, self._authorities)
        except Problem as refusal:
            problem = refusal
        if plan is None and problem is None:
            await self._inner(scope, receive, send)
            return
        call = Call(scope, head, self._draining)

        async def proxy(route: Route) -> None:
            await Exchange(self._upstreams, route, call, receive=receive, send=send).run()

        async def refuse_it(refusal: Problem) -> None:
            await refuse(refusal, call, send=send)

        await self._serve(
            call, plan if plan is not None and problem is None else plans.unmatched, problem, proxy, refuse_it
        )

    async def _on_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        head, problem = read_head(scope)
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
            problem = refusal
        call = Call(scope, head, self._draining)

        async def proxy(route: Route) -> None:
            await self._websockets.run(route, call, scope=scope, receive=receive, send=send)

        async def refuse_it(refusal: Problem) -> None:
            await refuse_handshake(refusal, call, receive, send)

        await self._serve(
            call, plan if plan is not None and problem is None else plans.unmatched, problem, proxy, refuse_it
        )

    async def _serve(
        self,
        call: Call,
        plan: Plan,
        problem: Problem | None,
        proxy: Callable[[Route], Awaitable[None]],
        refuse_it: Callable[[Problem], Awaitable[None]],
    ) -> None:
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
            await proxy(route)
        except Problem as refusal:
            await refuse_it(refusal)
        except Exception:
            log.exception("request_failed", method=call.method, path=call.path[:512])
            if call.status == 0:
                await refuse_it(Problem())
        finally:
            for after in plan.after:
                after(call)
            context.leave(token)
