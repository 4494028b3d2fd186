"""Gzip for answers: whether (RFC 9110, section 12.5.3), what it does to the headers, and the bytes.

Every lane calls `Compression.for_answer` once with an answer's head before that head is sent, and gives the body to the Compressor it
may return. Gzip only: each client knows it and the standard library makes it.

Is it safe to compress what only its owner may read? The attack on that (BREACH) has a victim's browser ask many times, with the
victim's rights and the attacker's guesses in the address, and watches the size. It needs rights that a browser adds by itself. Ours
are in `Authorization`, which a foreign page cannot set. What hands out tokens, and may one day read a cookie, has `compress=False` on
its routes all the same. A service of your own that signs in by cookie and repeats input beside a secret needs that mark too.
"""

import asyncio
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from weakref import WeakSet

from starlette.types import Message, Send

from services.gateway.domain.encodings import accepts_gzip
from services.gateway.lane.head import Headers
from services.gateway.model import Route

BYTES_MIN = 1024
"""A smaller answer is one packet anyway: compressing it costs 11 µs and saves no time."""

LEVEL = 2
"""CPU µs per KiB and size, of a page of 70 users (16 KiB) and of an OpenAPI document (32 KiB), zlib 1.2.13, best of 7 runs:

| level | users     | document  |
|-------|-----------|-----------|
| 1     | 6.3  0.25 | 4.0  0.12 |
| 2     | 5.4  0.25 | 4.0  0.10 |
| 3     | 6.1  0.25 | 4.4  0.10 |
| 4     | 10.2 0.24 | 8.6  0.09 |
| 6     | 14.2 0.23 | 12.7 0.08 |
| 9     | 19.3 0.23 | 40.8 0.08 |

Above 3 the CPU doubles for a twentieth of the bytes, and a whole proxied request costs about 100 µs.
"""

OPEN_MAX = 64
"""Bodies compressed in parts at one time. Each holds up to 256 KiB, so 16 MiB in all; more answers than these go out as they are."""

WHOLE_BYTES_MAX = 64 * 1024
STEP_BYTES = 32 * 1024
"""Compressed in one go: at most 0.3 to 0.5 ms that the event loop does nothing else."""

_TYPE_BYTES_MAX = 128

_TYPES = frozenset({b"application/json", b"application/javascript", b"application/xml", b"application/manifest+json"})
_STREAMS = frozenset({b"text/event-stream", b"application/stream+json"})

_CHANGED = frozenset(
    {
        b"content-length",
        b"content-encoding",
        # Ranges and digests are of the bytes that are no longer sent (RFC 9110, section 14.3; RFC 9530).
        b"accept-ranges",
        b"content-digest",
        b"repr-digest",
        b"digest",
        b"content-md5",
    }
)


@lru_cache(maxsize=256)
def _is_text(content_type: bytes) -> bool:
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type in _STREAMS:
        return False
    return media_type.startswith(b"text/") or media_type.endswith((b"+json", b"+xml")) or media_type in _TYPES


class Compression:
    """Decides for the answers of one process."""

    def __init__(self, methods_of: Callable[[str], Collection[str]], *, bytes_min: int = BYTES_MIN) -> None:
        """`methods_of` tells the methods of a decoded path's routes, none where no route knows it."""
        self._methods_of = methods_of
        self._bytes_min = bytes_min
        self._open: WeakSet[Compressor] = WeakSet()

    def for_answer(
        self,
        accept_encoding: bytes,
        method: str,
        status: int,
        headers: Headers,
        *,
        route: Route | None,
        path: str,
        asked: Headers,
    ) -> "Compressor | None":
        """Return what compresses this answer's body, None where it goes out as it is.

        `headers` (names in lower case) are changed in place to what they must say. `route` is None for the gateway's own answers;
        `asked` are the request's headers. The answer to HEAD gets the headers that GET's would have, all but `Content-Length`, which
        only compressing would tell and which may be left out for that reason (RFC 9110, section 9.3.2); and never a Compressor.
        """
        if route is not None and not (route.compress and route.kind == "http"):
            return None
        if status == 304:
            _revalidated(headers, asked)
            return None
        if status in (204, 205, 206):
            return None
        size = self._size(headers, path)
        if size is None:
            return None
        _vary(headers)
        if not accepts_gzip(accept_encoding):
            return None
        if method == "HEAD":
            _encode(headers)
            return None
        if len(self._open) >= OPEN_MAX:
            return None
        _encode(headers)
        compressor = Compressor(headers, size, self._open)
        self._open.add(compressor)
        return compressor

    def _size(self, headers: Headers, path: str) -> int | None:
        """Return the length of a body that may be compressed, -1 where it is not known; None for one that may not."""
        kind = etag = b""
        size = -1
        for name, value in headers:
            if name == b"content-type":
                kind = value
            elif name == b"content-length":
                size = int(value)
            elif name == b"etag":
                etag = value
            elif (
                name == b"content-range"
                or (name == b"content-encoding" and value.strip().lower() != b"identity")
                or (name == b"cache-control" and b"no-transform" in value.lower())
            ):
                return None
        if not 0 <= size < self._bytes_min and _is_text(kind[:_TYPE_BYTES_MAX]) and not self._may_return(etag, path):
            return size
        return None

    def _may_return(self, etag: bytes, path: str) -> bool:
        """Tell whether a tag may come back in `If-Match`.

        Compressing makes a strong tag weak, and a weak tag never matches there (RFC 9110, section 13.1.1): the service would refuse a
        good change with 412. Making it strong again on the way up would break services whose own tags are weak, and clients that know
        the rule would not send it. So what can be edited keeps its strong tag, and its bytes.
        """
        return etag.startswith(b'"') and not {"POST", "PUT", "PATCH", "DELETE"}.isdisjoint(self._methods_of(path))


def _vary(headers: Headers) -> None:
    """Say that the answer depends on `Accept-Encoding`."""
    if not any(name == b"vary" and (b"accept-encoding" in value.lower() or value == b"*") for name, value in headers):
        headers.append((b"vary", b"Accept-Encoding"))


def _encode(headers: Headers) -> None:
    """Turn the headers of a plain answer into those of the compressed one."""
    headers[:] = [(name, _weak(value) if name == b"etag" else value) for name, value in headers if name not in _CHANGED]
    headers.append((b"content-encoding", b"gzip"))


def _weak(tag: bytes) -> bytes:
    # Not the same bytes for everyone any more: RFC 9110, section 8.8.1.
    return b"W/" + tag if tag.startswith(b'"') else tag


def _revalidated(headers: Headers, asked: Headers) -> None:
    """Give a 304 the tag under which the client keeps the answer; a cache that finds another there cannot use it (RFC 9111, 4.3.4)."""
    for at, (name, tag) in enumerate(headers):
        if name == b"etag" and tag.startswith(b'"'):
            # The services compare weakly, as section 13.1.2 of RFC 9110 has it, and answer with the tag they know.
            if any(name == b"if-none-match" and b"W/" + tag in value for name, value in asked):
                headers[at] = (name, _weak(tag))
                _vary(headers)
            return


class Compressor:
    """Compresses one body: `whole`, or piece by piece (`parts`, `relay`). Counts against OPEN_MAX while anything refers to it."""

    __slots__ = ("__weakref__", "_headers", "_open", "_size", "_zlib")

    def __init__(self, headers: Headers, size: int, opened: "WeakSet[Compressor]") -> None:
        self._headers = headers
        self._size = size
        self._open = opened
        self._zlib: zlib._Compress | None = None

    def whole(self, data: bytes) -> bytes:
        """Return a whole body, of at most WHOLE_BYTES_MAX, and set its length in the answer's headers."""
        state = _state(len(data))
        found = state.compress(data) + state.flush()
        self._headers.append((b"content-length", str(len(found)).encode()))
        self._open.discard(self)
        return found

    def parts(self, data: bytes, *, is_last: bool) -> Iterator[bytes]:
        """Yield a piece of the body in parts as they are made; between two of them, other requests should have their turn.

        Each ends where a client can read all that went in: nothing is held back however long the next piece takes, for 1 % of the size
        with pieces of 16 KiB and 10 % with packets.
        """
        if self._zlib is None:
            self._zlib = _state(self._size)
        for at in range(0, max(len(data), is_last), STEP_BYTES):
            step = self._zlib.compress(data[at : at + STEP_BYTES])
            is_end = is_last and at + STEP_BYTES >= len(data)
            yield step + self._zlib.flush(zlib.Z_FINISH if is_end else zlib.Z_SYNC_FLUSH)
        if is_last:
            self._open.discard(self)

    async def relay(self, data: bytes, send: Send, *, is_last: bool) -> int:
        """Send a piece of the body by ASGI messages and return the number of bytes that it became."""
        sent = 0
        for part in self.parts(data, is_last=is_last):
            if sent:
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
            sent += len(part)
        if is_last:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return sent


def _state(size: int) -> "zlib._Compress":
    """Return a gzip state as large as a body of this size (-1: unknown) has use for: 64, 128 or 256 KiB.

    Making one of 256 KiB costs 30 to 75 µs, more than compressing 4 KiB with it; one of 64 KiB costs 10.
    """
    if 0 <= size <= 8 * 1024:
        window_bits, memory = 13, 6
    elif 0 <= size <= 32 * 1024:
        window_bits, memory = 14, 7
    else:
        window_bits, memory = 15, 8
    # 16 more: in gzip's frame, with no name and no time in it, so that one body gives one sequence of bytes.
    return zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + window_bits, memory)


def compressing(send: Send, for_answer: Callable[[int, Headers], Compressor | None]) -> Send:
    """Return a `send` for an ASGI application whose answers are compressed where `for_answer(status, headers)` says so."""
    started: Message | None = None
    compressor: Compressor | None = None

    async def send_compressed(message: Message) -> None:
        nonlocal started, compressor
        if message["type"] == "http.response.start":
            headers: Headers = [(name.lower(), value) for name, value in message.get("headers", ())]
            compressor = for_answer(message["status"], headers)
            message = {**message, "headers": headers}
            if compressor is None:
                await send(message)
            else:
                # Its length is known only when the body is.
                started = message
            return
        if message["type"] != "http.response.body" or compressor is None:
            await send(message)
            return
        data, is_last = message.get("body", b""), not message.get("more_body", False)
        if started is not None:
            is_whole = is_last and len(data) <= WHOLE_BYTES_MAX
            data = compressor.whole(data) if is_whole else data
            head, started = started, None
            await send(head)
            if is_whole:
                await send({"type": "http.response.body", "body": data})
                return
        await compressor.relay(data, send, is_last=is_last)

    return send_compressed
