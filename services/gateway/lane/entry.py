"""The door of the data path: every request is checked, matched and taken through its route's policies before its body is read."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.domain.admission import check_allowed
from services.gateway.domain.routing import check_target
from services.gateway.lane.call import Call, RequestLine
from services.gateway.lane.client import refuse
from services.gateway.lane.compress import Compressor, compressing
from services.gateway.lane.cors import asked_of
from services.gateway.lane.exchange import Adopted, Exchange, Machinery
from services.gateway.lane.head import Headers, RequestHead, check_authority, read_head
from services.gateway.lane.plan import Plan, Plans
from services.gateway.lane.websocket import WebSocketProxy
from services.gateway.model import Route
from shared import context
from shared.deadline import Deadline
from shared.errors import NotFound, Problem

log = structlog.get_logger()


OPEN_PATHS = frozenset({"/live", "/ready", "/metrics"})
"""Of those that ask them (probes, scrapers) nobody lists the addresses; metrics have a guard of their own."""


class Answering(Protocol):
    """Whoever answers one call."""

    async def run(self, route: Route | None) -> None:
        """Answer it, a call with a route by its service. Raises Problem where that is refused before an answer began."""

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem."""


class Lane:
    """Pure ASGI, outermost: proxies what the plans know and gives the rest to `inner`, which has its own log and metrics."""

    def __init__(
        self,
        inner: ASGIApp,
        plans: Plans,
        *,
        machinery: Machinery,
        websockets: WebSocketProxy,
        draining: asyncio.Event,
        authorities: frozenset[str] = frozenset(),
    ) -> None:
        self._inner = inner
        self._plans = plans
        self.machinery = machinery
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
        preflight: tuple[int, Headers] | None = None
        try:
            if problem is not None:
                raise problem
            check_target(scope["raw_path"])
            if head.origin and scope["method"] == "OPTIONS":
                preflight = plans.cors.preflight(head.origin, *asked_of(scope["headers"]), scope["path"])
            if preflight is None:
                plan = plans.table.resolve(scope["method"], scope["path"])
            if plan is not None:
                # Not for the gateway's own probes: who asks them names an address, not a public host.
                check_authority(head.host, self._authorities)
            elif scope["path"] not in OPEN_PATHS and preflight is None:
                check_allowed(plans.addresses.find(_peer_of(scope), head.forwarded_for))
        except Problem as refusal:
            problem, plan = refusal, None
        if plan is None and problem is None and preflight is None:
            await self._inner(scope, receive, _as_any_other(plans, head, scope, send))
            return
        call = self.call(head, RequestLine.of_scope(scope))
        answering: Answering = (
            Exchange(self.machinery, call, receive=receive, send=send)
            if preflight is None
            else Preflight(call, *preflight, send)
        )
        await self._serve(call, plan or plans.unmatched, problem, answering)

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
            problem, plan = refusal, None
        call = self.call(head, RequestLine.of_scope(scope))
        await self._serve(call, plan or plans.unmatched, problem, self._websockets.opening(call, scope, receive, send))

    def call(self, head: RequestHead, line: RequestLine) -> Call:
        """Return what the policies see of a request."""
        return Call(head, line, self._plans, self._draining)

    def plan_of(self, method: str, path: str, raw_path: bytes, head: RequestHead) -> Plan | None:
        """Return the plan of a request for which nothing but that has to be decided, None where `__call__` must look at it."""
        if method == "OPTIONS":
            return None
        try:
            check_target(raw_path)
            if self._authorities:
                check_authority(head.host, self._authorities)
            plan = self._plans.table.resolve(method, path)
        except Problem:
            return None
        return plan if plan is not None and plan.kind == "http" else None

    async def resume(self, found: "Resumption", receive: Receive, send: Send) -> None:
        """Answer a call that has come part of the way elsewhere."""
        exchange = Exchange(self.machinery, found.call, receive=receive, send=send, adopted=found.adopted)
        await self._serve(found.call, found.plan, found.problem, exchange, done=found.done, waiting=found.waiting)

    async def _serve(
        self,
        call: Call,
        plan: Plan,
        problem: Problem | None,
        answering: Answering,
        *,
        done: int = 0,
        waiting: Awaitable[None] | None = None,
    ) -> None:
        """Take a call through its plan; a problem has the plan of unmatched calls, which counts and logs it.

        `done` of its policies have seen it, and the last of them has to be waited for.
        """
        route = plan.route
        call.route = plan.name
        if route is not None and not call.due_at:
            call.set_deadline(route.timeout_s)
        if call.due_at:
            call.deadline = Deadline(call.due_at)
        token = context.enter(call)
        try:
            if waiting is not None:
                await waiting
            for before in plan.before[done:]:
                waiting = before(call)
                if waiting is not None:
                    await waiting
            if problem is not None:
                raise problem
            await answering.run(route)
        except Problem as refusal:
            await answering.refuse(refusal)
        except Exception:
            log.exception("request_failed", method=call.method, path=call.path[:512])
            if call.status == 0:
                await answering.refuse(Problem())
        finally:
            call.ended_at = time.monotonic()
            for after in plan.after:
                after(call)
            context.leave(token)


class Resumption(NamedTuple):
    """A call on its way: `done` of its plan's policies have seen it and `waiting` is what the last of them awaits; or there is a
    problem already; or an attempt at an upstream is under way."""

    call: Call
    plan: Plan
    done: int
    waiting: Awaitable[None] | None
    problem: Problem | None
    adopted: Adopted | None


@dataclass(frozen=True, slots=True)
class Preflight:
    """The answer to a browser that asks whether its page may send a request."""

    call: Call
    status: int
    headers: Headers
    send: Send

    async def run(self, _: Route | None) -> None:
        """See Answering. The CORS headers are its own, so those of every other answer are left out."""
        self.call.status = self.status
        headers = [*self.headers, *self.call.own_headers]
        await self.send({"type": "http.response.start", "status": self.status, "headers": headers})
        await self.send({"type": "http.response.body"})

    async def refuse(self, problem: Problem) -> None:
        """See Answering."""
        await refuse(problem, self.call, send=self.send)


def _as_any_other(plans: Plans, head: RequestHead, scope: Scope, send: Send) -> Send:
    """Return a `send` that gives the gateway's own answers what every answer has: the headers of CORS, and gzip."""
    added = plans.cors.answer_headers(head.origin)

    async def send_added(message: Message) -> None:
        if added and message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    def for_answer(status: int, headers: Headers) -> Compressor | None:
        return plans.compression.for_answer(
            head.accept_encoding,
            scope["method"],
            status,
            headers,
            route=None,
            path=scope["path"],
            asked=head.passed,
        )

    return compressing(send_added, for_answer)


def _peer_of(scope: Scope) -> str:
    return scope["client"][0] if scope["client"] else ""


def _read(scope: Scope) -> tuple[RequestHead, Problem | None]:
    return read_head(
        scope["headers"],
        target_bytes=len(scope["raw_path"]) + len(scope["query_string"]),
        is_old=scope.get("http_version") == "1.0",
    )
