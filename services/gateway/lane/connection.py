"""One HTTP/1.1 connection to an upstream: writes requests, parses answers, holds both sides to the slower one's pace."""

import asyncio
import select
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

import httptools

from services.gateway.lane.forward import authority_of
from services.gateway.lane.head import AnswerFields, Headers, read_answer, size_of
from services.gateway.lane.outbox import Outbox
from shared.endpoints import Address

BUFFER_BYTES_MAX = 64 * 1024
"""Of an answer's body waiting for a slow client, before the upstream's socket is no longer read."""

HEAD_BYTES_MAX = 64 * 1024
"""Of an answer until its head is complete, interim answers among it."""


class UpstreamFault(Exception):
    """The upstream did not answer as HTTP/1.1 demands; the text is for logs."""


class ClosedEarly(UpstreamFault):
    """The upstream closed before it sent a byte: on a reused connection it had closed it as idle."""


class Owner(Protocol):
    """Who is told when a connection ends."""

    def on_lost(self, connection: "UpstreamConnection") -> None: ...


class Listener(Protocol):
    """Who is called, rather than woken, when anything new came from the upstream."""

    def on_news(self) -> None: ...


class ResponseHead(NamedTuple):
    """An answer's status and the headers that go on to the client."""

    status: int
    headers: Headers
    is_event_stream: bool
    has_length: bool
    """Whether `Content-Length` is among the headers."""


@lru_cache(maxsize=64)
def _keeps_alive(connection: bytes, *, is_old: bool) -> bool:
    tokens = {token.strip() for token in connection.lower().split(b",")}
    return b"close" not in tokens and (not is_old or b"keep-alive" in tokens)


class UpstreamConnection(asyncio.Protocol):
    """Serves one exchange at a time: `start`, `write` ..., `response_head`, then `take` until it says done.

    `is_reusable` is true once an answer ended where its framing said, with nothing after it.
    """

    __slots__ = (
        "_buffered",
        "_can_write",
        "_fault",
        "_head_bytes",
        "_headers",
        "_is_head_request",
        "_is_interim",
        "_is_paused",
        "_is_until_close",
        "_keeps_alive",
        "_news",
        "_owner",
        "_parser",
        "_parts",
        "_poll",
        "_transport",
        "address",
        "authority",
        "head",
        "idle_since",
        "is_busy",
        "is_complete",
        "is_open",
        "is_reusable",
        "is_reused",
        "listener",
        "was_made",
    )

    def __init__(self, address: Address, owner: Owner) -> None:
        self.address = address
        self.authority = authority_of(address)
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._can_write: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._poll: select.poll | None = None
        self.listener: Listener | None = None
        self.was_made = False
        self.is_open = False
        """Whether this side has not closed it and knows of no close; `start` asks the transport, too."""
        self.is_busy = False
        self.is_reused = False
        self.idle_since = 0.0
        self._reset(is_head_request=False)

    def _reset(self, *, is_head_request: bool) -> None:
        self._is_head_request = is_head_request
        self._headers: Headers = []
        self._head_bytes = 0
        self._is_interim = False
        self._is_until_close = False
        self._is_paused = False
        self._keeps_alive = False
        self._parts: list[bytes] = []
        self._buffered = 0
        self._fault: UpstreamFault | None = None
        self.head: ResponseHead | None = None
        self.is_complete = False
        self.is_reusable = False

    # The exchange's side.

    def start(self, *, is_head_request: bool) -> None:
        """Begin an exchange."""
        self._reset(is_head_request=is_head_request)
        self.is_busy = True
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._transport.is_closing():
            self._fail(ClosedEarly("closed before the request"))

    def write(self, data: bytes, outbox: Outbox | None = None) -> None:
        """Send bytes of the request, by an outbox where one is given; a connection that is gone shows in the answer, not here."""
        if self._transport is None or self._transport.is_closing():
            return
        if outbox is not None:
            outbox.write(self._transport, data)
        else:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the upstream reads what was written."""
        if self._can_write is not None:
            await asyncio.shield(self._can_write)

    async def response_head(self) -> ResponseHead:
        """Wait for the answer's head, interim answers skipped. Raises UpstreamFault, also where what followed it broke off meanwhile.

        The client has seen nothing of such an answer, so the request may still be repeated.
        """
        while True:
            if self._fault is not None:
                raise self._fault
            if self.head is not None:
                return self.head
            await self.wait()

    def take(self) -> tuple[bytes, bool]:
        """Return what came of the body since the last call and whether it has ended. Raises UpstreamFault."""
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._buffered = 0
            if self._is_paused and self._transport is not None:
                self._is_paused = False
                self._transport.resume_reading()
            return data, self.is_complete
        if self._fault is not None:
            raise self._fault
        return b"", self.is_complete

    def take_rest(self) -> bytes:
        """Return what is left of the body of an answer that is complete and small enough never to have been paused."""
        parts, self._parts = self._parts, []
        self._buffered = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def wait(self) -> None:
        """Wait for anything new from the upstream."""
        if self._fault is None and not self.is_complete:
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None

    def give_up(self, fault: UpstreamFault) -> None:
        """End the exchange with a fault of the upstream's, as whoever waits for it learns."""
        self._fail(fault)
        self._tell()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self.is_open = False
        if self._transport is not None:
            # One that closes already may wait for ever: for a peer to take what is still to be written.
            self._transport.abort()

    @property
    def is_failed(self) -> bool:
        """Whether nothing more will come, and what came is not all."""
        return self._fault is not None

    @property
    def is_paused(self) -> bool:
        """Whether so much waits to be taken that the upstream's socket is not read."""
        return self._is_paused

    @property
    def buffered_bytes(self) -> int:
        return self._buffered

    def has_unread(self) -> bool:
        """Ask the kernel whether bytes or a close wait to be read; on an idle connection either means that it is spent."""
        if self._poll is None:
            # Made once: a request that must not be sent twice asks this each time.
            sock = self._transport.get_extra_info("socket") if self._transport is not None else None
            if sock is None or sock.fileno() < 0:
                return True
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        return self._transport is None or self._transport.is_closing() or bool(self._poll.poll(0))

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.was_made = self.is_open = True
        # uvloop's transport is one in all but ancestry.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)

    def pause_writing(self) -> None:
        self._can_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None

    def data_received(self, data: bytes) -> None:
        if not self.is_busy or self._parser is None:
            # Nobody asked: an answer to nothing must never become the answer to the next request.
            self.abort()
            return
        if self.head is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._parser = None
            self.is_reusable = False
            if not self.is_complete:
                cause = error.__context__ if isinstance(error.__context__, UpstreamFault) else error
                self._fail(UpstreamFault(f"malformed answer: {cause}"[:200]))
        if self.head is None and self._head_bytes > HEAD_BYTES_MAX:
            self._fail(UpstreamFault("the answer's head is too large"))
        self._tell()

    def eof_received(self) -> None:
        # The service says no more, so what it has not taken of the request does not matter. Closing would wait until it had.
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if self.is_busy and not self.is_complete:
            if self.head is not None and self._is_until_close and exc is None and self._fault is None:
                self.is_complete = True
            elif self._head_bytes == 0:
                self._fail(ClosedEarly("closed before an answer"))
            else:
                self._fail(UpstreamFault("closed in the middle of an answer"))
        self._parser = self._poll = self._transport = None
        self.is_open = False
        self._owner.on_lost(self)
        self._tell()

    def _fail(self, fault: UpstreamFault) -> None:
        if self._fault is None:
            self._fault = fault
        self.is_reusable = False
        self.abort()

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener.on_news()
        elif self._news is not None and not self._news.done():
            self._news.set_result(None)

    # The parser's side.

    def on_message_begin(self) -> None:
        if self.is_complete:
            # More than was asked for: what has been read stands, the connection is spent.
            self.is_reusable = False
            raise UpstreamFault("bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here too; they are dropped, never merged into the head.
        if self.head is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise UpstreamFault("an upgrade nobody asked for")
            self._is_interim = True
            self._headers = []
            return
        version = self._parser.get_http_version()
        if not 200 <= status <= 599 or version not in ("1.1", "1.0"):
            raise UpstreamFault("a status or version that does not exist")
        is_bodiless = status in (204, 304)
        # A 304 may declare the length of what it does not send (RFC 9110, section 8.6), which no server can then keep.
        fields = read_answer(self._headers, has_length=not is_bodiless)
        if self._head_bytes > HEAD_BYTES_MAX and size_of(self._headers) > HEAD_BYTES_MAX:
            raise UpstreamFault("the answer's head is too large")
        self._read_framing(fields, is_bodiless=is_bodiless, is_old=version == "1.0")
        has_no_body = self._is_head_request or is_bodiless
        is_event_stream = fields.content_type[:17].lower() == b"text/event-stream"
        self.head = ResponseHead(status, fields.passed, is_event_stream, fields.lengths > 0 and not is_bodiless)
        if has_no_body:
            self._end()
            if self._is_head_request:
                # The parser does not know of HEAD and waits for a body; it is replaced for the next answer.
                self._parser = None

    def _read_framing(self, fields: AnswerFields, *, is_bodiless: bool, is_old: bool) -> None:
        encodings = fields.encodings
        if fields.lengths > 1 or (encodings and (fields.lengths or encodings != [b"chunked"])):
            raise UpstreamFault("the answer's length is ambiguous")
        self._is_until_close = not fields.lengths and not encodings and not is_bodiless
        self._keeps_alive = _keeps_alive(fields.connection, is_old=is_old) if fields.connection else not is_old

    def on_body(self, data: bytes) -> None:
        if self.is_complete:
            self.is_reusable = False
            return
        self._parts.append(data)
        self._buffered += len(data)
        if self._buffered > BUFFER_BYTES_MAX and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
        elif not self.is_complete:
            self._end()

    def _end(self) -> None:
        self.is_complete = True
        self.is_reusable = self._keeps_alive and (self._is_head_request or not self._is_until_close)
