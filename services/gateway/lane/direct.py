"""The protocol lane: a plain request answered in the callbacks of the two sockets, without a task and without ASGI.

Nearly all traffic is a small request, let in by policies that need not wait, sent on a kept connection and answered whole by the first
replica. Only that is done here. Whatever turns out otherwise (a policy has to wait or refuses, no connection is kept, the service
failed, the answer is long, slow or a stream, the gateway drains) is handed over to the ASGI lane as far as it has come: that lane can
do everything, this one only the usual, from the same plans, policies, pool and upstreams. With `RH_GATEWAY_LANE=asgi` there is only
the other, which must answer the same to every request.
"""

import time
from collections.abc import Awaitable
from functools import partial
from typing import ClassVar
from urllib.parse import unquote

import structlog
from starlette.types import Receive, Scope, Send

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.call import Call, RequestLine
from services.gateway.lane.compress import BYTES_MIN, WHOLE_BYTES_MAX
from services.gateway.lane.connection import ResponseHead, UpstreamConnection
from services.gateway.lane.cycle import Cycle, status_line
from services.gateway.lane.entry import Lane, Resumption
from services.gateway.lane.exchange import Adopted, Machinery
from services.gateway.lane.forward import request_head
from services.gateway.lane.front import Front
from services.gateway.lane.head import FIELD, Headers, read_head
from services.gateway.lane.plan import Plan
from services.gateway.lane.server import GatewayProtocol
from services.gateway.lane.sweeper import TICK_S
from shared.endpoints import Address
from shared.errors import Problem

BODY_BYTES_MAX = 16 * 1024
"""Of a request; a larger one takes so long that a task does not matter."""

CROWD_MIN = 8
"""Requests under way from which on writes are held for each other; of fewer there is seldom another soon."""

log = structlog.get_logger()


class DirectProtocol(GatewayProtocol):
    """A client's connection that answers what it can by itself."""

    __slots__ = ()

    lane: ClassVar[Lane]
    machinery: ClassVar[Machinery]

    def begin(self, method: str, version: str, *, keeps_alive: bool) -> None:
        """See GatewayProtocol."""
        is_usual = version == "1.1" and not self.is_upgrade and not self.expects_continue
        if is_usual and (self.newest is None or self.newest.is_complete) and not self.is_write_paused:
            found = self._direct(method, keeps_alive=keeps_alive)
            if found is not None:
                self.newest = self.active = found
                found.begin()
                return
        super().begin(method, version, keeps_alive=keeps_alive)

    def _direct(self, method: str, *, keeps_alive: bool) -> "Direct | None":
        """Return what answers this request here, None where the ASGI lane must look at it from the start."""
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        head, problem = read_head(self.headers, target_bytes=len(self.url), is_old=False)
        if problem is not None or head.is_chunked or (head.length is not None and head.length > BODY_BYTES_MAX):
            return None
        plan = self.lane.plan_of(method, path, raw_path, head)
        if plan is None:
            return None
        line = RequestLine("http", method, path, raw_path, query, self.scheme, self.client[0] if self.client else "")
        assert plan.route is not None
        call = self.lane.call(head, line)
        call.route = plan.name
        call.set_deadline(plan.route.timeout_s)
        return Direct(self, call, plan, keeps_alive=keeps_alive)

    def take_over(self, found: Cycle) -> None:
        """Go on with a request in the ASGI lane."""
        if self.newest is self.active:
            self.newest = found
        self._start(found)


class Direct:
    """One request and its answer; a Responder (see cycle.py), a Listener of its upstream's connection, and Swept."""

    __slots__ = (
        "_attempt",
        "_body",
        "_call",
        "_connection",
        "_due_at",
        "_is_over",
        "_is_whole",
        "_plan",
        "_protocol",
        "is_complete",
        "keeps_alive",
    )

    def __init__(self, protocol: DirectProtocol, call: Call, plan: Plan, *, keeps_alive: bool) -> None:
        self._protocol = protocol
        self._call = call
        self._plan = plan
        self._body = b""
        self._is_whole = False
        self._is_over = False
        self._due_at = 0.0
        self._attempt: Attempt | None = None
        self._connection: UpstreamConnection | None = None
        self.is_complete = False
        self.keeps_alive = keeps_alive

    @property
    def call(self) -> Call:
        return self._call

    @property
    def service(self) -> str:
        return self._plan.route.service if self._plan.route is not None else ""

    @property
    def address(self) -> Address | None:
        """The replica that is asked, None where none is yet."""
        return self._attempt.address if self._attempt else None

    def begin(self) -> None:
        """Take the request through its policies."""
        call, policies = self._call, self._plan.before
        try:
            for before in policies:
                waiting = before(call)
                if waiting is not None:
                    self._hand_over(policies.index(before) + 1, waiting=waiting)
                    return
        except Problem as problem:
            self._hand_over(problem=problem)
            return
        self._protocol.machinery.sweeper.add(self)

    # The client's side.

    def on_body(self, data: bytes) -> None:
        self._body = self._body + data if self._body else data

    def on_end(self) -> None:
        """Send the request, now that all of it is here."""
        self._is_whole = True
        call, machinery = self._call, self._protocol.machinery
        route = self._plan.route
        assert route is not None
        upstream = machinery.upstreams.of(route.service)
        try:
            attempt = upstream.begin(priority=route.priority, time_s=route.timeout_s)
        except Problem as problem:
            self._hand_over(problem=problem)
            return
        if attempt is None:
            self._hand_over()
            return
        connection = machinery.pool.take(attempt.address, is_replayable=call.may_repeat)
        if connection is None:
            self._hand_over(adopted=Adopted(attempt, None))
            return
        self._attempt, self._connection = attempt, connection
        self._due_at = call.due_at
        if route.try_timeout_s is not None:
            self._due_at = min(call.due_at, attempt.began_at + route.try_timeout_s)
        connection.start(is_head_request=call.method == "HEAD")
        connection.listener = self
        data = request_head(call, authority=connection.authority, has_deadline=True) + self._body
        connection.write(data, self._protocol.outbox if machinery.sweeper.count >= CROWD_MIN else None)

    def on_fault(self, problem: Problem) -> None:
        self._hand_over(problem=problem)

    def on_lost(self) -> None:
        """The client is gone, and with it whoever wanted the answer."""
        if self._is_over:
            return
        self._end(Outcome.GIVEN_UP, is_spent=True)
        self._conclude()

    def on_tick(self, now: float) -> None:
        """See Sweeper. What goes wrong in time is the other lane's to answer, and what comes slowly its to relay."""
        connection = self._connection
        is_waiting = connection is not None and connection.head is None
        # A tick before the time is over, so that it is there when it is.
        if now + TICK_S >= self._due_at if is_waiting else now - self._call.started_at > TICK_S:
            self._hand_over()

    # The upstream's side.

    def on_news(self) -> None:
        """See Listener."""
        connection = self._connection
        if connection is None:
            return
        try:
            answer = connection.head
            if answer is not None and connection.is_complete:
                self._finish(connection, answer)
            elif connection.is_failed or (answer is not None and (answer.is_event_stream or connection.is_paused)):
                self._hand_over()
        except Exception:
            # Nobody above would answer the client.
            log.exception("request_failed", method=self._call.method, path=self._call.path[:512])
            self._hand_over(problem=Problem())

    def _finish(self, connection: UpstreamConnection, answer: ResponseHead) -> None:
        call, protocol, attempt, status = self._call, self._protocol, self._attempt, answer.status
        assert attempt is not None
        machinery = protocol.machinery
        outcome = Outcome.OK
        if status >= 500 and self._plan.route is not None:
            outcome = machinery.upstreams.of(self._plan.route.service).outcome_of(status, answer.headers)
        if outcome is not Outcome.OK or protocol.is_write_paused or connection.buffered_bytes > WHOLE_BYTES_MAX:
            self._hand_over()
            return
        data = connection.take_rest()
        headers = answer.headers + call.added
        if not answer.has_length or len(data) >= BYTES_MIN or call.method == "HEAD":
            data = self._fitted(answer, headers, data)
        if call.draining.is_set():
            self.keeps_alive = False
        if not self.keeps_alive:
            headers.append((b"connection", b"close"))
        lines = [*map(FIELD, protocol.default_headers), *map(FIELD, headers), b"", data]
        whole = status_line(status) + b"\r\n".join(lines)
        if machinery.sweeper.count >= CROWD_MIN:
            protocol.outbox.write(protocol.transport, whole)
        else:
            protocol.write(whole)
        call.status, call.body_bytes = status, len(data)
        self._connection = self._attempt = connection.listener = None
        machinery.pool.release(connection)
        attempt.end(outcome)
        self._conclude()
        self.is_complete = True
        protocol.on_complete()

    def _fitted(self, answer: ResponseHead, headers: Headers, data: bytes) -> bytes:
        """Return an answer's body as it goes out, compressed or not, with `headers` changed to what is true of it."""
        call, status = self._call, answer.status
        compressor = call.plans.compression.for_answer(
            call.head.accept_encoding,
            call.method,
            status,
            headers,
            route=self._plan.route,
            path=call.path,
            asked=call.head.passed,
        )
        if compressor is not None:
            return compressor.whole(data)
        if not answer.has_length and call.method != "HEAD" and status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(data)))
        return data

    # The end.

    def _end(self, outcome: Outcome, *, is_spent: bool) -> None:
        connection, self._connection = self._connection, None
        attempt, self._attempt = self._attempt, None
        if connection is not None:
            connection.listener = None
            self._protocol.machinery.pool.release(connection, is_spent=is_spent)
        if attempt is not None:
            attempt.end(outcome)

    def _conclude(self) -> None:
        self._is_over = True
        self._protocol.machinery.sweeper.discard(self)
        call = self._call
        call.ended_at = time.monotonic()
        for after in self._plan.after:
            after(call)

    def _hand_over(
        self,
        done: int | None = None,
        *,
        waiting: Awaitable[None] | None = None,
        problem: Problem | None = None,
        adopted: Adopted | None = None,
    ) -> None:
        """Let the ASGI lane go on from here: `done` policies have seen the call (None: all), `waiting` is what the last one awaits."""
        if self._is_over:
            return
        self._is_over = True
        protocol, call = self._protocol, self._call
        protocol.machinery.sweeper.discard(self)
        if self._connection is not None and self._attempt is not None:
            self._connection.listener = None
            adopted = Adopted(self._attempt, self._connection)
            self._attempt = self._connection = None
        resumption = Resumption(
            call, self._plan, len(self._plan.before) if done is None else done, waiting, problem, adopted
        )
        scope: Scope = {"type": "http", "method": call.method, "http_version": "1.1"}
        cycle = Cycle(
            protocol,
            partial(_resume, protocol.lane, resumption),
            scope,
            keeps_alive=self.keeps_alive,
            expects_continue=False,
        )
        if self._body:
            cycle.on_body(self._body)
        if self._is_whole:
            cycle.on_end()
        protocol.take_over(cycle)


async def _resume(lane: Lane, resumption: Resumption, _: Scope, receive: Receive, send: Send) -> None:
    await lane.resume(resumption, receive, send)


def direct_protocol_of(lane: Lane, front: Front) -> type[GatewayProtocol]:
    """Return the protocol class of one gateway, for `uvicorn.Config(http=...)`, with the protocol lane before its ASGI lane."""
    return type(
        "DirectProtocol",
        (DirectProtocol,),
        {"__slots__": (), "lane": lane, "machinery": lane.machinery, "front": front},
    )
