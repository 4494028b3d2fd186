"""One proxied exchange: from a request that may pass to the last byte of the upstream's answer."""

import asyncio
import time
from dataclasses import dataclass

import structlog
from starlette.types import Receive, Send

from services.gateway.lane.balance import Balancer
from services.gateway.lane.call import Call
from services.gateway.lane.client import ClientGone, ClientSide, frame, refuse
from services.gateway.lane.connection import ClosedEarly, ResponseHead, UpstreamConnection, UpstreamFault
from services.gateway.lane.forward import request_head
from services.gateway.lane.pool import ConnectFailed, Pool
from services.gateway.lane.sweeper import TICK_S, Sweeper
from services.gateway.model import Route
from shared.endpoints import Address
from shared.errors import BadGateway, DeadlineExceeded, Problem, RequestTimeout, Unavailable

CONNECTS_MAX = 3
"""Replicas that are asked for a connection before the request is refused."""

REPLAYABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""Idempotent by RFC 9110, section 9.2.2: sending one twice does what sending it once does."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Upstreams:
    """What all exchanges share."""

    pool: Pool
    balancer: Balancer
    sweeper: Sweeper


class Drained(Exception):
    """The gateway stops and this stream would never end by itself."""


class Exchange:
    """Runs once. The sweeper, the client's side and the server may end it early, each through `interrupt`."""

    __slots__ = (
        "_address",
        "_call",
        "_client",
        "_connection",
        "_due_at",
        "_is_event_stream",
        "_is_started",
        "_receive",
        "_route",
        "_send",
        "_task",
        "_upstreams",
        "_verdict",
    )

    def __init__(self, upstreams: Upstreams, call: Call, *, receive: Receive, send: Send) -> None:
        self._upstreams = upstreams
        self._call = call
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self._connection: UpstreamConnection | None = None
        self._address: Address | None = None
        self._verdict: Exception | None = None
        self._is_started = False
        self._is_event_stream = False

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, before `run`."""
        await refuse(problem, self._call, send=self._send)

    async def run(self, route: Route) -> None:
        """Proxy the request; every failure is answered here or, after the answer began, shown by an end that is no end."""
        self._route = route
        self._due_at = self._call.due_at
        self._client = ClientSide(self._receive, self._call.head, limit=route.body_bytes_max, on_end=self.interrupt)
        task = self._task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._upstreams.sweeper.add(self)
        try:
            await self._proxy()
        except asyncio.CancelledError:
            if self._verdict is None or task.uncancel() > cancelling:
                raise
            await self._end(self._verdict)
        except (Problem, UpstreamFault, ClientGone) as error:
            await self._end(error)
        finally:
            # From here on an interruption would hit what only cleans up.
            self._task = None
            self._upstreams.sweeper.discard(self)
            self._let_go(is_spent=not self._client.is_finished)
            await self._client.stop()

    def interrupt(self, verdict: Exception) -> None:
        """End the exchange with a verdict, wherever it waits; the first verdict stands."""
        if self._verdict is None and self._task is not None:
            self._verdict = verdict
            self._task.cancel()

    def on_tick(self, now: float) -> None:
        """See Sweeper."""
        if now >= self._due_at:
            if self._client.is_reading and not self._is_started:
                self.interrupt(RequestTimeout("the body did not arrive in time"))
            else:
                self.interrupt(DeadlineExceeded())
        elif self._is_event_stream and self._upstreams.sweeper.is_closing:
            self.interrupt(Drained())
        elif now - self._call.started_at > TICK_S:
            # Most exchanges are over before their first tick and never pay for the watching.
            self._client.watch()

    async def _proxy(self) -> None:
        body = await self._client.first_part()
        is_whole = self._client.is_finished
        answer = await self._ask(body, is_fresh=False)
        if answer is None and is_whole and self._route_is_replayable():
            # The upstream had closed the kept connection as idle; the request never reached it.
            answer = await self._ask(body, is_fresh=True)
        if answer is None:
            raise ClosedEarly("closed before an answer")
        await self._relay(answer)

    def _route_is_replayable(self) -> bool:
        return self._call.method in REPLAYABLE

    async def _ask(self, body: bytes, *, is_fresh: bool) -> ResponseHead | None:
        """Send the request and return the answer's head, None when a kept connection turned out to be closed."""
        connection = self._connection = await self._connect(is_fresh=is_fresh)
        connection.start(is_head_request=self._call.method == "HEAD")
        is_whole = self._client.is_finished
        if self._call.head.is_chunked:
            body = frame(body, is_last=is_whole)
        # A service that is told a deadline ends its answer there; a stream has none.
        head = request_head(self._call, authority=connection.authority, has_deadline=self._route.kind == "http")
        connection.write(head + body)
        if not is_whole:
            self._client.pump(connection)
        try:
            return await connection.response_head()
        except ClosedEarly:
            if is_fresh or not connection.is_reused:
                raise
            self._let_go(is_spent=True)
            return None

    async def _connect(self, *, is_fresh: bool) -> UpstreamConnection:
        """Return a connection to one of up to three replicas. Raises Unavailable."""
        balancer, pool = self._upstreams.balancer, self._upstreams.pool
        tried: list[Address] = []
        while len(tried) < CONNECTS_MAX:
            address = balancer.choose(self._route.service, tried)
            if address is None:
                break
            # Counted before the connection is there: many requests of one moment must not all choose the same.
            balancer.begin(address)
            try:
                connection = await pool.acquire(
                    address, is_fresh=is_fresh, is_replayable=self._client.is_finished and self._route_is_replayable()
                )
            except ConnectFailed:
                balancer.end(address)
                balancer.refused(address)
                tried.append(address)
                continue
            except BaseException:
                balancer.end(address)
                raise
            self._address = address
            return connection
        log.warning("no_upstream", upstream=self._route.service, tried=len(tried))
        raise Unavailable(f"the service {self._route.service} takes no connection", code="no_upstream")

    async def _relay(self, answer: ResponseHead) -> None:
        connection, send = self._connection, self._send
        assert connection is not None
        call = self._call
        headers = answer.headers + call.added
        # Refused while the upload still runs: what is left of it is not worth a connection.
        if call.draining.is_set() or (not self._client.is_finished and answer.status >= 400):
            headers.append((b"connection", b"close"))
        is_stream = self._route.kind == "stream"
        self._is_started = True
        self._is_event_stream = answer.is_event_stream
        call.status = answer.status
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if is_stream:
            self._client.watch()
        is_head_waiting = True
        while True:
            data, is_last = connection.take()
            call.body_bytes += len(data)
            if is_last and not self._client.is_finished:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = b""
                await self._client.stop_upload()
            if data or is_last or is_head_waiting:
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})
                is_head_waiting = False
            if is_last:
                return
            if is_stream:
                self._due_at = time.monotonic() + self._route.idle_timeout_s
            if not data:
                await connection.wait()

    def _let_go(self, *, is_spent: bool) -> None:
        """Give the connection back to the pool and stop counting the exchange."""
        connection, self._connection = self._connection, None
        address, self._address = self._address, None
        if connection is not None:
            self._upstreams.pool.release(connection, is_spent=is_spent)
        if address is not None:
            self._upstreams.balancer.end(address)

    async def _end(self, reason: Exception) -> None:
        """Answer a failure; where the answer has begun, return without ending it, so that the server closes the connection."""
        self._task = None
        is_read = self._client.is_finished
        self._let_go(is_spent=True)
        await self._client.stop()
        if isinstance(reason, ClientGone | Drained):
            return
        if isinstance(reason, UpstreamFault):
            log.warning("upstream_failed", upstream=self._route.service, reason=str(reason))
            reason = BadGateway()
        if self._is_started:
            log.warning("answer_cut", upstream=self._route.service, reason=str(reason))
            return
        assert isinstance(reason, Problem)
        await refuse(reason, self._call, send=self._send, is_read=is_read)
