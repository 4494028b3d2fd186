"""A client's connection: HTTP/1.1 read strictly and within limits, each request handed to the application in its turn.

uvicorn serves this class through its `Config(http=...)` and keeps what it is good at: sockets, signals, the drain. What its own
protocol leaves open over the same parser (httptools, which is llhttp) is closed here: it puts a chunked body's trailers among the
headers, reads heads of any size for any time, answers a malformed request in the middle of the answer to the one before, drops what
follows an upgrade it does not make, queues any number of pipelined requests, and does not tell the one under way that the client left.
"""

import asyncio
from typing import Any, ClassVar, cast
from urllib.parse import unquote

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from services.gateway.lane.cycle import Cycle, Responder
from services.gateway.lane.flow import FlowProtocol
from services.gateway.lane.front import MIB, Front
from services.gateway.lane.head import FIELDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX, Headers
from services.gateway.lane.rules import VersionNotSupported, check_handshake, is_handshake, meaning_of, origin_form
from services.gateway.lane.wsserver import GatewayWebSocket
from shared.errors import BadRequest, HeadTooLarge, Problem, RequestTimeout, Unavailable, UriTooLong

UNWANTED_BYTES_MAX = MIB
"""Of a body that was answered before it was read; more of it is not worth a connection."""

OVERHEAD_BYTES_MAX = HEAD_BYTES_MAX
"""Of trailers, or of chunks' own lines without a body worth them."""

_ASGI = {"version": "3.0", "spec_version": "2.3"}

log = structlog.get_logger()


class _NoMore(Exception):
    """The requests before this one are answered, then the connection ends; the client asks again on another."""


class GatewayProtocol(FlowProtocol):
    """One connection; `protocol_of` makes the class that uvicorn is given.

    Requests are read ahead and answered one after the other: `newest` is the one being read or read last, `active` the one being
    answered, `waiting` those read and not begun. What answers without ASGI overrides `begin` and brings a Responder of its own.
    """

    __slots__ = (
        "active", "app", "app_state", "body_bytes", "client", "config", "expects_continue", "head_bytes", "headers", "idle_since",
        "is_in_body", "is_in_head", "is_primed", "is_surplus", "is_upgrade", "loop", "newest", "overhead_bytes", "parser", "part_since",
        "refusal", "scheme", "server", "server_state", "unwanted_bytes", "url", "waiting",
    )  # fmt: skip

    front: ClassVar[Front]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__()
        self.limits, self.outbox = self.front.limits, self.front.outbox
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.loop = _loop or asyncio.get_running_loop()
        self.app = config.loaded_app
        self.parser = self._new_parser()
        self.newest: Responder | None = None
        self.active: Responder | None = None
        # Never long, and an empty deque of each connection would be ten times the memory.
        self.waiting: list[Cycle] = []
        self.refusal: Problem | None = None
        self.is_surplus = False
        # Of the message being read.
        self.url = b""
        self.headers: Headers = []
        self.expects_continue = self.is_upgrade = self.is_primed = False
        self.is_in_head = self.is_in_body = False
        self.head_bytes = self.body_bytes = self.overhead_bytes = self.unwanted_bytes = 0
        # When what is waited for began, by the monotonic clock; 0.0 until the first tick that sees it.
        self.part_since = self.idle_since = 0.0

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What follows a request that says `Connection: close` is skipped; an error would come before that request's answer.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.server = get_local_addr(self.transport)
        self.client = get_remote_addr(self.transport)
        self.scheme = "https" if is_ssl(self.transport) else "http"
        self.server_state.connections.add(cast(Any, self))
        self.front.connections.add(self)
        self.is_surplus = len(self.server_state.connections) > self.front.connections_max

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self.waiting.clear()
        if self.active is not None and not self.active.is_complete:
            self.active.on_lost()
        super().connection_lost(exc)
        # It holds this connection's methods, and so the connection, until the collector comes.
        del self.parser

    def _leave(self) -> None:
        self.server_state.connections.discard(cast(Any, self))
        self.front.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        if self.is_deaf:
            self.drop(len(data))
            return
        newest, was_in_body, body_bytes = self.newest, self.is_in_body, self.body_bytes
        upgrade_at = -1
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            upgrade_at = upgrade.args[0]
        except httptools.HttpParserError as error:
            self._on_malformed(error, data if newest is self.newest and not was_in_body else b"")
            return
        if upgrade_at >= 0:
            # Not where it was caught: an error that comes of it would have the upgrade for its cause.
            self._on_upgrade(data[upgrade_at:])
        elif self.is_in_head:
            # Where the data began with another request, what it holds of this one is at most one read.
            self._check_head(len(data) if newest is self.newest and not was_in_body else 0)
        elif was_in_body and self.is_in_body and newest is self.newest:
            self._check_overhead(len(data), self.body_bytes - body_bytes)

    def shutdown(self) -> None:
        """Begin to end, as uvicorn tells each connection when it stops: what is under way or has begun to come is answered."""
        if self.newest is not None and not self.newest.is_complete:
            self.newest.keeps_alive = False
        elif not self.is_in_head:
            self.close()

    def on_tick(self, now: float, elapsed_s: float) -> None:
        """See Front."""
        limits = self.limits
        if self.is_ending:
            self.watch_end(now)
        elif self.is_deaf:
            return
        elif self.is_in_head or self.is_in_body:
            if self.is_read_paused or not self.part_since:
                # Time in which this side does not read is not the client's.
                self.part_since = self.part_since + elapsed_s if self.part_since else now
            elif self.is_in_head and now - self.part_since >= limits.head_s:
                self.refuse(RequestTimeout("the request's head did not arrive in time"))
            elif self.is_in_body and now - self.part_since >= limits.body_s * (1 + self.body_bytes // MIB):
                self._break(RequestTimeout("the request's body did not arrive in time"))
        elif self.newest is None or self.newest.is_complete:
            self.idle_since = self.idle_since or now
            if now - self.idle_since >= (limits.surplus_s if self.is_surplus else limits.idle_s):
                self.close()

    # The parser's side.

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expects_continue = False
        self.is_in_head = True
        self.head_bytes = 0
        self.part_since = self.idle_since = 0.0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # A chunked body's trailers come here too; among the headers they would be believed without any check.
        if self.is_in_head:
            name = name.lower()
            if name == b"expect":
                self.expects_continue = value.lower() == b"100-continue"
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        self.part_since = 0.0
        if self.is_primed:
            return
        if self.is_deaf:
            raise _NoMore
        parser = self.parser
        version, method = parser.get_http_version(), parser.get_method()
        if version not in ("1.1", "1.0"):
            raise VersionNotSupported
        if self.is_surplus:
            raise Unavailable("too many connections are open", code="too_many_connections")
        if self.url[0] != 0x2F or b"#" in self.url or method == b"CONNECT":
            self.url = origin_form(method, self.url, self.headers)
        self.is_upgrade = parser.should_upgrade()
        if (
            self.is_upgrade
            and is_handshake(method, version, self.headers)
            and self.config.ws_protocol_class is not None
        ):
            if self.newest is not None and not self.newest.is_complete:
                raise BadRequest("a handshake must not follow a request that is not answered", code="bad_handshake")
            check_handshake(self.url, self.headers)
            return
        self.begin(method.decode("ascii"), version, keeps_alive=version == "1.1" and parser.should_keep_alive())
        self.is_in_body = True
        self.body_bytes = self.overhead_bytes = self.unwanted_bytes = 0

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        newest = self.newest
        if newest is not None and not newest.is_complete:
            newest.on_body(body)
            return
        self.unwanted_bytes += len(body)
        if self.unwanted_bytes > UNWANTED_BYTES_MAX:
            self.end()

    def on_message_complete(self) -> None:
        if not self.is_upgrade:
            self._end_message()

    def _end_message(self) -> None:
        self.is_in_body = self.is_primed = False
        if self.newest is not None and not self.newest.is_complete:
            self.newest.on_end()

    # Requests.

    def begin(self, method: str, version: str, *, keeps_alive: bool) -> None:
        """Answer the request whose head has been read, or let it wait its turn. Raises _NoMore."""
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        expects_continue = self.expects_continue and version == "1.1"
        cycle = Cycle(self, self.app, scope, keeps_alive=keeps_alive, expects_continue=expects_continue)
        if self.newest is None or self.newest.is_complete:
            self._start(cycle)
        elif len(self.waiting) < self.limits.pipelined:
            self.pause_reading()
            self.waiting.append(cycle)
        else:
            self.waiting[-1].keeps_alive = False
            raise _NoMore
        self.newest = cycle

    def _start(self, cycle: Cycle) -> None:
        self.active = cycle
        task = self.loop.create_task(cycle.run())
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    def on_complete(self) -> None:
        """Hear that the active request is answered: begin the next or wait for one."""
        if self.transport.is_closing():
            return
        if self.active is not None and not self.active.keeps_alive:
            if self.is_deaf or self.is_in_head or self.is_in_body or self.waiting:
                self.end()
            else:
                self.close()
            return
        self.resume_reading()
        if self.waiting:
            self._start(self.waiting.pop(0))
        elif self.refusal is not None:
            self._answer(self.refusal)
        else:
            # Connections are idle most of the time: what was asked and answered last need not stay in memory for that.
            self.newest = self.active = None
            if not (self.is_in_head or self.is_in_body):
                self.url, self.headers = b"", []

    def _on_upgrade(self, rest: bytes) -> None:
        """Go on behind a head that asked for an upgrade, where the parser stops."""
        if not self.is_in_body:
            self._open_websocket(rest)
            return
        # Not one that is made here, as Java's client asks for h2c with its first request: it is served as it is (RFC 9110, section
        # 7.8). The parser took its body for what comes after the upgrade; another is told the framing and reads it.
        self.is_upgrade = False
        framing = [pair for pair in self.headers if pair[0] in (b"content-length", b"transfer-encoding")]
        if framing:
            self.parser, self.is_primed = self._new_parser(), True
            self.data_received(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in framing))
        else:
            self._end_message()
        if rest:
            self.data_received(rest)

    def _open_websocket(self, rest: bytes) -> None:
        """Hand the connection to the WebSocket protocol, which reads the handshake once more."""
        self._leave()
        del self.parser
        self.outbox.flush()
        protocol = GatewayWebSocket(
            config=self.config, server_state=self.server_state, app_state=self.app_state, limits=self.limits
        )
        fields = b"".join(b"%b: %b\r\n" % pair for pair in self.headers if pair[0] != b"content-length")
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"GET %b HTTP/1.1\r\n%b\r\n" % (self.url, fields))
        if rest:
            protocol.data_received(rest)

    # What is wrong.

    def _check_head(self, count: int) -> None:
        self.head_bytes += count
        if len(self.url) > TARGET_BYTES_MAX:
            self.refuse(UriTooLong(f"an address may have at most {TARGET_BYTES_MAX} bytes"))
        elif self.head_bytes > HEAD_BYTES_MAX or len(self.headers) > FIELDS_MAX:
            self.refuse(HeadTooLarge(f"a head may have at most {HEAD_BYTES_MAX} bytes and {FIELDS_MAX} fields"))

    def _check_overhead(self, count: int, body_count: int) -> None:
        """Bound what comes with a chunked body and is none: a read that is hardly any body counts, until one comes that is."""
        self.overhead_bytes = 0 if body_count * 16 >= count else self.overhead_bytes + count
        if self.overhead_bytes > OVERHEAD_BYTES_MAX:
            self._break(HeadTooLarge(f"a body's chunk lines and trailers may have at most {OVERHEAD_BYTES_MAX} bytes"))

    def _on_malformed(self, error: httptools.HttpParserError, data: bytes) -> None:
        if isinstance(error.__context__, _NoMore):
            self.is_deaf = True
            return
        problem = meaning_of(error, data)
        if problem is None:
            log.error("request_failed", exc_info=error)
            problem = Problem()
        if self.is_in_body:
            self._break(problem)
        else:
            self.refuse(problem)

    def _break(self, problem: Problem) -> None:
        """End a request whose body is not to be had."""
        self.is_deaf = True
        if self.newest is None or self.newest.is_complete:
            self.end()
        else:
            self.newest.on_fault(problem)

    def refuse(self, problem: Problem) -> None:
        """Answer what did not become a request, after what is under way, and end the connection."""
        self.is_deaf = True
        if self.newest is None or self.newest.is_complete:
            self._answer(problem)
        else:
            self.refusal = problem

    def _answer(self, problem: Problem) -> None:
        answer = self.front.refuse(
            problem,
            client=self.client[0] if self.client else "",
            method=self.parser.get_method(),
            target=self.url,
            read=self.headers,
            added=self.default_headers,
        )
        self.write(answer)
        self.end()

    @property
    def default_headers(self) -> Headers:
        return self.server_state.default_headers


def protocol_of(front: Front) -> type[GatewayProtocol]:
    """Return the protocol class of one gateway, for `uvicorn.Config(http=...)`."""
    return type("GatewayProtocol", (GatewayProtocol,), {"__slots__": (), "front": front})
