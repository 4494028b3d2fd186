"""One proxied exchange: from a request that may pass to the last byte of the upstream's answer."""

import asyncio
import time
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from starlette.types import Receive, Send

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.call import Call
from services.gateway.lane.client import ClientGone, ClientSide, frame, refuse
from services.gateway.lane.compress import compressing
from services.gateway.lane.connection import ClosedEarly, ResponseHead, UpstreamConnection, UpstreamFault
from services.gateway.lane.forward import request_head
from services.gateway.lane.head import Headers
from services.gateway.lane.pool import ConnectFailed, Pool
from services.gateway.lane.sweeper import TICK_S, Sweeper
from services.gateway.lane.upstream import Upstream
from services.gateway.lane.upstreams import Upstreams
from services.gateway.model import Route
from shared.endpoints import Address
from shared.errors import BadGateway, DeadlineExceeded, Problem, RequestTimeout, Unavailable

FAIR_SHARE = 0.5
"""Of a route's time: a client that waited less, because it asked for less, has not seen the service fail."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Machinery:
    """What all exchanges share."""

    pool: Pool
    upstreams: Upstreams
    sweeper: Sweeper


class Adopted(NamedTuple):
    """An attempt begun elsewhere; without a connection, nothing has been sent."""

    attempt: Attempt
    connection: UpstreamConnection | None


class Drained(Exception):
    """The gateway stops and this stream would never end by itself."""


class Exchange:
    """Runs once. The sweeper, the client's side and the server may end it early, each through `interrupt`."""

    __slots__ = (
        "_attempt",
        "_call",
        "_client",
        "_connection",
        "_due_at",
        "_is_event_stream",
        "_is_started",
        "_machinery",
        "_outcome",
        "_receive",
        "_route",
        "_send",
        "_sent_at",
        "_task",
        "_try_due_at",
        "_upstream",
        "_verdict",
    )

    def __init__(
        self, machinery: Machinery, call: Call, *, receive: Receive, send: Send, adopted: Adopted | None = None
    ) -> None:
        self._machinery = machinery
        self._call = call
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self._connection: UpstreamConnection | None = adopted.connection if adopted else None
        self._attempt: Attempt | None = adopted.attempt if adopted else None
        self._verdict: Exception | None = None
        self._outcome = Outcome.GIVEN_UP
        self._try_due_at = 0.0
        self._sent_at = adopted.attempt.began_at if adopted else 0.0
        self._is_started = False
        self._is_event_stream = False

    @property
    def call(self) -> Call:
        return self._call

    @property
    def service(self) -> str:
        """The one that is asked, from `run` on."""
        return self._route.service

    @property
    def address(self) -> Address | None:
        """The replica that is asked, None where none is yet."""
        return self._attempt.address if self._attempt else None

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem, instead of `run` or where that raised one."""
        self._let_go(Outcome.GIVEN_UP, is_spent=True)
        await refuse(problem, self._call, send=self._send)

    async def run(self, route: Route | None) -> None:
        """Proxy the request; every failure is answered here or, after the answer began, shown by an end that is no end."""
        assert route is not None
        self._route = route
        self._upstream: Upstream = self._machinery.upstreams.of(route.service)
        self._due_at = self._call.due_at
        self._client = ClientSide(self._receive, self._call.head, limit=route.body_bytes_max, on_end=self.interrupt)
        task = self._task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        self._machinery.sweeper.add(self)
        try:
            body = await self._client.first_part()
            await self._relay(await self._answer(body))
        except asyncio.CancelledError:
            if self._verdict is None or task.uncancel() > cancelling:
                raise
            await self._end(self._verdict)
        except (Problem, UpstreamFault, ClientGone) as error:
            await self._end(error)
        finally:
            # From here on an interruption would hit what only cleans up.
            self._task = None
            self._machinery.sweeper.discard(self)
            self._let_go(self._outcome, is_spent=not self._client.is_finished)
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
        elif self._is_event_stream and self._machinery.sweeper.is_closing:
            self.interrupt(Drained())
        elif self._try_due_at and now >= self._try_due_at and self._connection is not None:
            self._try_due_at = 0.0
            self._connection.give_up(UpstreamFault("no answer within the time of one try"))
        elif now - self._call.started_at > TICK_S:
            # Most exchanges are over before their first tick and never pay for the watching.
            self._client.watch()

    async def _answer(self, body: bytes) -> ResponseHead:
        """Ask replicas until one answers or trying again is of no use. Raises Unavailable and UpstreamFault."""
        tried: list[Address] = []
        is_fresh = False
        while True:
            attempt = self._attempt = self._attempt or self._upstream.begin(
                tried, priority=self._route.priority, time_s=self._route.timeout_s
            )
            if attempt is None:
                raise self._no_upstream(len(tried))
            answer: ResponseHead | None = None
            fault: Exception | None = None
            try:
                if self._connection is None:
                    await self._ask(attempt.address, body, is_fresh=is_fresh)
                answer = await self._answer_head()
            except (UpstreamFault, ConnectFailed) as error:
                fault = error
                if isinstance(error, ClosedEarly) and not is_fresh and self._is_stale():
                    # The upstream had closed the kept connection as idle; the request never reached it.
                    self._let_go(Outcome.GIVEN_UP, is_spent=True)
                    is_fresh = True
                    continue
            outcome = self._outcome_of(answer, fault)
            if outcome in (Outcome.FAILED, Outcome.REFUSED):
                attempt.failed(_failure(answer, fault))
            wait_s = self._retry_in(outcome, [*tried, attempt.address])
            if wait_s is None:
                if answer is not None:
                    attempt.answered(lasts=self._route.kind == "stream" or answer.is_event_stream)
                    self._outcome = outcome
                    return answer
                self._let_go(outcome, is_spent=True)
                assert fault is not None
                raise self._no_upstream(len(tried) + 1) if outcome is Outcome.REFUSED else fault
            tried.append(attempt.address)
            self._let_go(outcome, is_spent=True)
            if wait_s:
                await asyncio.sleep(wait_s)

    def _outcome_of(self, answer: ResponseHead | None, fault: Exception | None) -> Outcome:
        if answer is not None:
            # The service was told the client's deadline and says so.
            is_given_up = answer.status == 504 and self._is_hurried
            return Outcome.GIVEN_UP if is_given_up else self._upstream.outcome_of(answer.status, answer.headers)
        return Outcome.REFUSED if isinstance(fault, ConnectFailed) else Outcome.FAILED

    @property
    def _is_hurried(self) -> bool:
        """Whether the client allows so little time that its end says nothing of the service; else anybody could open its breaker."""
        call, route_s = self._call, self._route.timeout_s
        return call.due_at < call.started_at + route_s and time.monotonic() < call.started_at + FAIR_SHARE * route_s

    def _is_stale(self) -> bool:
        """Tell whether the last try met a kept connection that had ended, and may be sent again at no risk."""
        connection = self._connection
        return connection is not None and connection.is_reused and self._may_repeat()

    def _may_repeat(self) -> bool:
        # A body that is not at hand whole has partly gone to the replica that failed.
        return self._client.is_finished and self._call.may_repeat

    def _retry_in(self, outcome: Outcome, tried: list[Address]) -> float | None:
        """Return the seconds after which to try again, None where that is of no use or not allowed."""
        if outcome is Outcome.OK or (outcome is not Outcome.REFUSED and not self._client.is_finished):
            return None
        wait_s = self._upstream.may_retry(
            self._call.method,
            has_idempotency_key=bool(self._call.head.idempotency_key),
            outcome=outcome,
            tried=tried,
        )
        # A pause that ends at the deadline leaves no time for the try.
        return wait_s if wait_s is not None and time.monotonic() + wait_s < self._due_at else None

    def _no_upstream(self, tries: int) -> Unavailable:
        log.warning("no_upstream", upstream=self._route.service, tried=tries)
        return Unavailable(f"the service {self._route.service} takes no connection", code="no_upstream")

    async def _ask(self, address: Address, body: bytes, *, is_fresh: bool) -> None:
        """Send the request to one replica. Raises ConnectFailed, and Unavailable where all connections stay busy."""
        connection = self._connection = await self._machinery.pool.acquire(
            address,
            is_fresh=is_fresh,
            is_replayable=self._may_repeat(),
            connect_timeout_s=self._upstream.policy.connect_timeout_s,
        )
        self._sent_at = time.monotonic()
        connection.start(is_head_request=self._call.method == "HEAD")
        is_whole = self._client.is_finished
        if self._call.head.is_chunked:
            body = frame(body, is_last=is_whole)
        # A service that is told a deadline ends its answer there; a stream has none.
        head = request_head(self._call, authority=connection.authority, has_deadline=self._route.kind == "http")
        connection.write(head + body)
        if not is_whole:
            self._client.pump(connection)

    async def _answer_head(self) -> ResponseHead:
        """Wait for the answer's head, no longer than a try may take. Raises UpstreamFault."""
        assert self._connection is not None
        if self._route.try_timeout_s is not None:
            self._try_due_at = self._sent_at + self._route.try_timeout_s
        try:
            return await self._connection.response_head()
        finally:
            self._try_due_at = 0.0

    async def _relay(self, answer: ResponseHead) -> None:
        connection, call = self._connection, self._call
        assert connection is not None
        send, headers = self._begin_answer(answer)
        is_stream = self._route.kind == "stream"
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
                await self._client.stop()
            if data or is_last or is_head_waiting:
                await send({"type": "http.response.body", "body": data, "more_body": not is_last})
                is_head_waiting = False
            if is_last:
                return
            if is_stream:
                self._due_at = time.monotonic() + self._route.idle_timeout_s
            if not data:
                await connection.wait()

    def _begin_answer(self, answer: ResponseHead) -> tuple[Send, Headers]:
        """Return how to send the answer's body, and its headers."""
        call = self._call
        self._is_started = True
        self._is_event_stream = answer.is_event_stream
        call.status = answer.status
        headers = answer.headers + call.added
        # Refused while the upload still runs: what is left of it is not worth a connection.
        if call.draining.is_set() or (not self._client.is_finished and answer.status >= 400):
            headers.append((b"connection", b"close"))
        compressor = call.plans.compression.for_answer(
            call.head.accept_encoding,
            call.method,
            answer.status,
            headers,
            route=self._route,
            path=call.path,
            asked=call.head.passed,
        )
        return self._send if compressor is None else compressing(self._send, lambda *_: compressor), headers

    def _let_go(self, outcome: Outcome, *, is_spent: bool) -> None:
        """Give the connection back to the pool and say how the attempt ended, unless that is said already."""
        connection, self._connection = self._connection, None
        attempt, self._attempt = self._attempt, None
        if connection is not None:
            self._machinery.pool.release(connection, is_spent=is_spent)
        if attempt is not None:
            attempt.end(outcome)

    async def _end(self, reason: Exception) -> None:
        """Answer a failure; where the answer has begun, return without ending it, so that the server closes the connection."""
        self._task = None
        is_read = self._client.is_finished
        # The client's going away says nothing of the service; silence until the deadline does.
        is_fault = isinstance(reason, UpstreamFault) or (isinstance(reason, DeadlineExceeded) and not self._is_hurried)
        if is_fault and self._attempt is not None:
            late = f"no {'end of the answer' if self._is_started else 'answer'} before the deadline"
            self._attempt.failed(late if isinstance(reason, DeadlineExceeded) else str(reason))
        self._let_go(Outcome.FAILED if is_fault else Outcome.GIVEN_UP, is_spent=True)
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


def _failure(answer: ResponseHead | None, fault: Exception | None) -> str:
    if answer is not None:
        return f"answered {answer.status}"
    return f"took no connection: {fault}" if isinstance(fault, ConnectFailed) else str(fault)
