"""The head of a request: read once, refused where it is ambiguous, filtered for the next hop."""

import re
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from shared.errors import (
    BadRequest,
    HeadTooLarge,
    MisdirectedRequest,
    Problem,
    UnsupportedMediaType,
    UriTooLong,
)

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order and number in which they came."""

FIELD = b": ".join
"""Makes the line of a header of its pair: `b"\\r\\n".join(map(FIELD, headers))` writes a head at half the cost of a loop."""

HEAD_BYTES_MAX = 32 * 1024
FIELDS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


@lru_cache(maxsize=256)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""RFC 9110, section 7.6.1, and what older proxies added to it."""

_REPLACED = frozenset(
    {
        b"host",
        b"expect",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
        b"traceparent",
        b"x-request-timeout-ms",
        # Set again from what was verified: the framing on the other side is ours.
        b"content-length",
    }
)
_FORGEABLE = (b"x-forwarded-", b"x-auth-", b"x-user-")

# A client could otherwise name them in `Connection` and so take them away between the gateway's checks and the service's.
_END_TO_END = frozenset(
    {
        b"authorization",
        b"cookie",
        b"content-type",
        b"content-length",
        b"host",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"origin",
        b"set-cookie",
        b"cache-control",
        b"www-authenticate",
    }
)


_NOTED = {
    b"host": "host",
    b"authorization": "authorization",
    b"origin": "origin",
    b"accept-encoding": "accept_encoding",
    b"idempotency-key": "idempotency_key",
    b"x-request-id": "request_id",
    b"traceparent": "traceparent",
    b"x-request-timeout-ms": "timeout_ms",
    b"x-forwarded-for": "forwarded_for",
    b"x-forwarded-proto": "forwarded_proto",
    b"connection": "connection",
    b"content-encoding": "content_encoding",
    b"content-length": "content_length",
    b"transfer-encoding": "transfer_encoding",
    b"expect": "expect",
}
"""What the gateway itself reads, and the field of RequestHead it goes to."""

_LISTS = frozenset({"accept_encoding", "connection", "content_encoding", "forwarded_for", "expect"})
"""Fields whose value may be carried on by further lines (RFC 9110, section 5.3)."""

_FIRST_STANDS = frozenset({"request_id", "traceparent", "timeout_ms", "forwarded_proto"})


@lru_cache(maxsize=1024)
def _rule(name: bytes) -> tuple[bool, str | None]:
    """Tell whether a header of this name may reach a service, and which field the gateway reads it into, if any.

    Identity and forwarding headers are the gateway's to set.
    """
    # CGI-style servers read `X_User` as `X-User`: such a name is a way around every filter.
    passes = not (name in HOP_BY_HOP or name in _REPLACED or b"_" in name or name.startswith(_FORGEABLE))
    return passes, _NOTED.get(name)


_OF_CLIENTS = frozenset({b"x-request-id", b"traceparent", b"x-request-timeout-ms"})
"""Read by the gateway and sent on in a form of its own."""


def is_taken(name: bytes) -> bool:
    """Tell whether a client's header of this name (in lower case) has any effect; all others are dropped."""
    return _rule(name)[0] or name in _OF_CLIENTS


class RequestHead:
    """What the gateway needs to know of a request's head; `passed` are the headers that go on to the service.

    `length` is the declared body length, None where none was declared. `repeated` names a field that came twice but may not.
    """

    # Defaults of the class, not of each instance: most requests have few of these, and reading a head writes only what it finds.
    length: int | None = None
    is_chunked = False
    repeated = ""
    host = b""
    authorization = b""
    origin = b""
    accept_encoding = b""
    idempotency_key = b""
    request_id = b""
    traceparent = b""
    timeout_ms = b""
    forwarded_for = b""
    forwarded_proto = b""
    connection = b""
    content_encoding = b""
    content_length = b""
    transfer_encoding = b""
    expect = b""

    def __init__(self) -> None:
        self.passed: Headers = []

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.length)

    @property
    def expects_continue(self) -> bool:
        return bool(self.expect)


def read_head(headers: Headers, *, target_bytes: int, is_old: bool) -> tuple[RequestHead, Problem | None]:
    """Read a request's headers (names in lower case) and say what is wrong with its head, if anything.

    `target_bytes` is the length of its target, `is_old` says HTTP/1.0.

    The problem is returned, not raised: refusing well still needs to know whether a body follows.
    """
    head = RequestHead()
    passed, found = head.passed, vars(head)
    for pair in headers:
        name, value = pair
        passes, noted = _rule(name)
        if passes:
            passed.append(pair)
        if noted is not None:
            if noted in found:
                _repeat(head, noted, value)
            else:
                found[noted] = value
    if head.content_length.isdigit():
        head.length = int(head.content_length)
    head.is_chunked = bool(head.transfer_encoding)
    if head.connection:
        strip_named(passed, head.connection)
    fields = len(headers)
    if size_of(headers) + 4 * fields > HEAD_BYTES_MAX or fields > FIELDS_MAX or target_bytes > TARGET_BYTES_MAX:
        return head, _size_problem(fields, target_bytes)
    problem = _repetition_problem(head, is_old=is_old)
    if problem is None and (head.is_chunked or head.content_encoding):
        problem = _framing_problem(head, is_old=is_old)
    return head, problem


def _repeat(head: RequestHead, field_name: str, value: bytes) -> None:
    if field_name in _LISTS:
        setattr(head, field_name, getattr(head, field_name) + b"," + value)
    elif field_name not in _FIRST_STANDS:
        head.repeated = field_name.replace("_", "-")


def _size_problem(fields: int, target_bytes: int) -> Problem:
    if target_bytes > TARGET_BYTES_MAX:
        return UriTooLong(f"an address may have at most {TARGET_BYTES_MAX} bytes")
    if fields > FIELDS_MAX:
        return HeadTooLarge(f"a head may have at most {FIELDS_MAX} fields")
    return HeadTooLarge(f"a head may have at most {HEAD_BYTES_MAX} bytes")


def _repetition_problem(head: RequestHead, *, is_old: bool) -> Problem | None:
    # RFC 9112, section 3.2; only HTTP/1.0 may leave Host out.
    is_host_left_out = is_old and "host" not in vars(head)
    if not is_host_left_out and (head.repeated == "host" or not _is_host(head.host)):
        return BadRequest("a request must have exactly one valid Host", code="bad_host")
    if head.repeated in ("content-length", "transfer-encoding"):
        return BadRequest("the length of the body is ambiguous", code="ambiguous_framing")
    if head.repeated:
        # Gateway and service could each believe another one of the two.
        return BadRequest(f"a request may have one {head.repeated} header", code="repeated_header")
    return None


def _framing_problem(head: RequestHead, *, is_old: bool) -> Problem | None:
    if head.is_chunked and (is_old or head.length is not None or head.transfer_encoding.strip().lower() != b"chunked"):
        return BadRequest("the length of the body is ambiguous", code="ambiguous_framing")
    if head.content_encoding.strip().lower() not in (b"", b"identity"):
        return UnsupportedMediaType("compressed request bodies are not accepted")
    return None


_NAMES_NOTHING = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
"""What `Connection` says nearly always, which names no header that had passed."""


def strip_named(headers: Headers, connection: bytes) -> None:
    """Remove the headers that `Connection` names as meant for one hop (RFC 9110, section 7.6.1)."""
    if connection in _NAMES_NOTHING:
        return
    named = {token.strip().lower() for token in connection.split(b",")} - _END_TO_END
    headers[:] = [pair for pair in headers if pair[0] not in named]


def check_authority(host: bytes, served: frozenset[str]) -> None:
    """Refuse a `Host` that is not among the served ones, where those are listed. Raises MisdirectedRequest."""
    if served and host.decode("latin-1").lower() not in served:
        raise MisdirectedRequest


_CORS = frozenset(
    b"access-control-" + name
    for name in (
        b"allow-origin",
        b"allow-credentials",
        b"allow-headers",
        b"allow-methods",
        b"allow-private-network",
        b"expose-headers",
        b"max-age",
    )
)
"""Whom a page of another origin may ask is the gateway's to say (cors.py); a browser refuses an answer that says it twice."""

_WITHHELD = (
    HOP_BY_HOP
    | _CORS
    | frozenset(
        {
            # The server in front writes its own; two would contradict each other.
            b"date",
            b"server",
            # Of every answer, so not of some twice.
            b"x-request-id",
            b"x-content-type-options",
        }
    )
)


class AnswerFields(NamedTuple):
    """What the gateway needs to know of an answer's headers; `passed` go on to the client."""

    passed: Headers
    lengths: int
    encodings: list[bytes]
    connection: bytes
    content_type: bytes


_LENGTH, _TYPE, _ENCODING, _CONNECTION, _DROPPED = range(5)
_READ = {
    **dict.fromkeys(_WITHHELD, _DROPPED),
    b"content-length": _LENGTH,
    b"content-type": _TYPE,
    b"transfer-encoding": _ENCODING,
    b"connection": _CONNECTION,
}
"""Which of an answer's headers do not simply go on."""


def read_answer(headers: Headers, *, has_length: bool = True) -> AnswerFields:
    """Read an upstream's headers in one pass; `has_length=False` does not let Content-Length go on."""
    passed: Headers = []
    lengths, encodings = 0, []
    connection = content_type = b""
    for pair in headers:
        kind = _READ.get(pair[0])
        if kind is None:
            passed.append(pair)
        elif kind == _DROPPED:
            continue
        elif kind == _LENGTH:
            lengths += 1
            if has_length:
                passed.append(pair)
        elif kind == _TYPE:
            passed.append(pair)
            content_type = content_type or pair[1]
        elif kind == _CONNECTION:
            connection = connection + b"," + pair[1] if connection else pair[1]
        elif kind == _ENCODING:
            encodings.append(pair[1].strip().lower())
    if connection:
        strip_named(passed, connection)
    return AnswerFields(passed, lengths, encodings, connection, content_type)


def size_of(headers: Headers) -> int:
    """Return how many bytes the names and values have."""
    return sum(map(len, chain.from_iterable(headers)))
