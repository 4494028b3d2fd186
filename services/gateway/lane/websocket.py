"""The WebSocket proxy: one upstream connection per client, messages and closes carried both ways at the slower side's pace."""

import asyncio
from dataclasses import dataclass

import structlog
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as HandshakeHeaders
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import EXTERNAL_CLOSE_CODES
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from services.gateway.lane.attempt import Attempt, Outcome
from services.gateway.lane.call import Call
from services.gateway.lane.forward import forwarding_headers
from services.gateway.lane.head import Headers, read_answer
from services.gateway.lane.upstream import Upstream
from services.gateway.lane.upstreams import Upstreams
from services.gateway.model import Route
from shared.endpoints import Address
from shared.errors import PROBLEM_MEDIA_TYPE, BadGateway, DeadlineExceeded, Forbidden, Problem, Unavailable
from shared.problems import body_of

DOWN_MESSAGE_BYTES_MAX = 1024 * 1024
"""From a service to a client, where a page of history may be large; the server bounds the other direction at 64 KiB."""

QUEUED_FRAMES_MAX = 16
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 2.0
REFUSAL_S_MAX = 1.0
REASON_BYTES_MAX = 123

GOING_AWAY, BAD_GATEWAY, TOO_BIG = 1001, 1014, 1009
NO_CODE, ABNORMAL = 1005, 1006
"""What a receiver is told when no close frame came (RFC 6455, section 7.4.1); neither may be sent."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A handshake's refusal as plain HTTP."""

    status: int
    headers: Headers
    body: bytes


@dataclass(slots=True)
class _Bridge:
    """One open pair of connections."""

    upstream: ClientConnection
    receive: Receive
    send: Send
    is_client_gone: bool = False

    async def run(self) -> None:
        """Carry messages until either side closes. Each side's close ends the other's loop."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upwards(), name="gateway-ws-up")
                group.create_task(self._downwards(), name="gateway-ws-down")
        finally:
            self.upstream.transport.abort()

    async def _upwards(self) -> None:
        try:
            while True:
                message = await self.receive()
                if message["type"] == "websocket.disconnect":
                    self.is_client_gone = True
                    code, reason = _sendable(message.get("code", NO_CODE), message.get("reason") or "", GOING_AWAY)
                    await self.upstream.close(code, reason)
                    return
                if message["type"] == "websocket.receive":
                    text = message.get("text")
                    await self.upstream.send(message["bytes"] if text is None else text)
        except ConnectionClosed:
            # The other direction tells the client why.
            return

    async def _downwards(self) -> None:
        try:
            while True:
                message = await self.upstream.recv()
                if isinstance(message, str):
                    await self.send({"type": "websocket.send", "text": message})
                else:
                    await self.send({"type": "websocket.send", "bytes": message})
        except ConnectionClosed as closed:
            if not self.is_client_gone:
                await self._close_client(closed)
        except OSError:
            # The server's way to say that the client is gone; its disconnect event ends the other direction.
            return

    async def _close_client(self, closed: ConnectionClosed) -> None:
        if closed.rcvd is not None:
            code, reason = _sendable(closed.rcvd.code, closed.rcvd.reason, 1000)
        elif closed.sent is not None and closed.sent.code == TOO_BIG:
            code, reason = TOO_BIG, "the service's message is too big"
        else:
            code, reason = BAD_GATEWAY, "the service went away"
        try:
            await self.send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError:
            return


def _sendable(code: int, reason: str, instead: int) -> tuple[int, str]:
    """Return a close code and reason that may go on the wire."""
    if code in (NO_CODE, ABNORMAL):
        return instead, ""
    if code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000:
        return code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
    return instead, ""


class WebSocketProxy:
    """Opens and carries the WebSockets of the lane."""

    def __init__(self, upstreams: Upstreams) -> None:
        self.upstreams = upstreams
        self.open: dict[Opening, tuple[str, Address]] = {}
        """Those that are carried, with their service and its replica."""

    def opening(self, call: Call, scope: Scope, receive: Receive, send: Send) -> "Opening":
        """Return what serves one handshake."""
        return Opening(self, call, scope, receive, send)


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """One handshake and, where the service takes it, the connection."""

    proxy: WebSocketProxy
    call: Call
    scope: Scope
    receive: Receive
    send: Send

    async def refuse(self, problem: Problem) -> None:
        """Answer the handshake with a problem."""
        await refuse_handshake(problem, self.call, self.receive, self.send)

    async def run(self, route: Route | None) -> None:
        """Open the connection and carry it to its end. Raises Problem where the handshake is refused."""
        assert route is not None
        _check_origin(self.call)
        try:
            async with asyncio.timeout(route.timeout_s):
                upstream, attempt = await _open(self.proxy.upstreams.of(route.service), route, self.call, self.scope)
        except TimeoutError:
            raise DeadlineExceeded("the service did not answer in time") from None
        except InvalidStatus as refused:
            await _pass_refusal(refused, self.call, self.receive, self.send)
            return
        except (InvalidHandshake, EOFError) as error:
            log.warning("upstream_failed", upstream=route.service, reason=type(error).__name__)
            raise BadGateway from error
        self.proxy.open[self] = route.service, attempt.address
        try:
            await _serve(upstream, self.call, self.receive, self.send)
        finally:
            del self.proxy.open[self]
            attempt.end(Outcome.OK)


async def _open(upstream: Upstream, route: Route, call: Call, scope: Scope) -> tuple[ClientConnection, Attempt]:
    """Return an open upstream connection and the attempt to end with it. Raises what a handshake can, and Unavailable."""
    tried: list[Address] = []
    while True:
        attempt = upstream.begin(tried, priority=route.priority, time_s=route.timeout_s)
        if attempt is None:
            break
        try:
            connection = await _handshake(
                attempt.address, call, scope, connect_timeout_s=upstream.policy.connect_timeout_s
            )
        except OSError as error:
            attempt.failed(f"took no connection: {type(error).__name__}")
            attempt.end(Outcome.REFUSED)
        except InvalidStatus as refused:
            outcome = upstream.outcome_of(refused.response.status_code)
            if outcome is Outcome.FAILED:
                attempt.failed(f"answered {refused.response.status_code}")
            attempt.end(outcome)
            raise
        except BaseException as error:
            # Malformed, or silent until the deadline cancelled the wait.
            is_late = isinstance(error, asyncio.CancelledError)
            attempt.failed("no handshake before the deadline" if is_late else f"no handshake: {type(error).__name__}")
            attempt.end(Outcome.FAILED)
            raise
        else:
            attempt.answered(lasts=True)
            return connection, attempt
        tried.append(attempt.address)
        if upstream.may_retry("GET", has_idempotency_key=False, outcome=Outcome.REFUSED, tried=tried) is None:
            break
    raise Unavailable(f"the service {route.service} takes no connection", code="no_upstream")


async def _serve(upstream: ClientConnection, call: Call, receive: Receive, send: Send) -> None:
    call.status = 101
    try:
        await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": call.added})
    except BaseException:
        upstream.transport.abort()
        raise
    await _Bridge(upstream, receive, send).run()


def _check_origin(call: Call) -> None:
    """Browsers send cookies and let any page open a WebSocket anywhere; `Origin` says which page it was."""
    if not call.head.origin:
        return
    origin = call.head.origin.decode("latin-1").lower()
    own = call.head.host.decode("latin-1").lower()
    if origin in call.plans.config.cors.origins or origin in (f"http://{own}", f"https://{own}"):
        return
    raise Forbidden("this origin may not open a WebSocket here", code="origin_not_allowed")


async def _handshake(address: Address, call: Call, scope: Scope, *, connect_timeout_s: float) -> ClientConnection:
    """Connect and shake hands with one replica, with no redirect followed. Raises OSError where nothing took the connection."""
    path, _, query = call.target.decode("ascii").partition("?")
    subprotocols = [Subprotocol(name) for name in scope["subprotocols"] if name]
    protocol = ClientProtocol(
        WebSocketURI(secure=False, host=address[0], port=address[1], path=path, query=query),
        subprotocols=subprotocols or None,
        max_size=DOWN_MESSAGE_BYTES_MAX,
    )
    connection = ClientConnection(
        protocol,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_TIMEOUT_S,
        close_timeout=CLOSE_TIMEOUT_S,
        max_queue=QUEUED_FRAMES_MAX,
    )
    try:
        async with asyncio.timeout(connect_timeout_s):
            await asyncio.get_running_loop().create_connection(lambda: connection, *address)
    except TimeoutError as error:
        raise ConnectionError("no connection in time") from error
    passed = HandshakeHeaders()
    for name, value in (*call.head.passed, *forwarding_headers(call)):
        # Those of the handshake are each hop's own.
        if not name.startswith(b"sec-websocket-"):
            passed[name.decode("latin-1")] = value.decode("latin-1")
    try:
        await connection.handshake(passed, user_agent_header=None)
    except BaseException:
        connection.transport.abort()
        raise
    connection.start_keepalive()
    return connection


async def _pass_refusal(refused: InvalidStatus, call: Call, receive: Receive, send: Send) -> None:
    """Give a service's refusal of the handshake to the client as it is."""
    response = refused.response
    if not 400 <= response.status_code <= 599:
        await refuse_handshake(BadGateway(), call, receive, send)
        return
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
    headers = read_answer(raw, has_length=False).passed
    refusal = _Refusal(response.status_code, headers, bytes(response.body or b""))
    await _send_refusal(refusal, call, receive, send)


async def refuse_handshake(problem: Problem, call: Call, receive: Receive, send: Send) -> None:
    """Answer a handshake with a problem as plain HTTP, which says more than a closed socket."""
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
    ]
    await _send_refusal(_Refusal(problem.status, headers, body_of(problem, call.path)), call, receive, send)


async def _send_refusal(refusal: _Refusal, call: Call, receive: Receive, send: Send) -> None:
    call.status = refusal.status
    call.body_bytes = len(refusal.body)
    headers = [*refusal.headers, *call.added]
    try:
        await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": refusal.body, "more_body": False})
        # uvicorn calls a handshake unfinished, and logs an error, until the refused client's connection is closed; it says
        # "disconnect" once for the refusal and once for the close.
        async with asyncio.timeout(REFUSAL_S_MAX):
            disconnects = 0
            while disconnects < 2:
                disconnects += (await receive())["type"] == "websocket.disconnect"
    except (OSError, TimeoutError):
        # The client went away before it was refused, or does not read the refusal.
        return
