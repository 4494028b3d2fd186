"""The head of a request: read once, refused where it is ambiguous, filtered for the next hop."""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.types import Scope

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

HEAD_BYTES_MAX = 32 * 1024
FIELDS_MAX = 100
TARGET_BYTES_MAX = 8 * 1024

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")

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


@lru_cache(maxsize=1024)
def _passes(name: bytes) -> bool:
    """Tell whether a header of this name may reach a service; identity and forwarding headers are the gateway's to set."""
    # CGI-style servers read `X_User` as `X-User`: such a name is a way around every filter.
    return not (name in HOP_BY_HOP or name in _REPLACED or b"_" in name or name.startswith(_FORGEABLE))


@dataclass(slots=True)
class RequestHead:
    """What the gateway needs to know of a request's head; `passed` are the headers that go on to the service.

    `length` is the declared body length, None where none was declared.
    """

    host: bytes = b""
    passed: Headers = field(default_factory=list)
    length: int | None = None
    is_chunked: bool = False
    expects_continue: bool = False
    authorization: bytes = b""
    origin: bytes = b""

    @property
    def has_body(self) -> bool:
        return self.is_chunked or bool(self.length)


def read_head(scope: Scope) -> tuple[RequestHead, Problem | None]:
    """Read an ASGI scope's head and say what is wrong with it, if anything.

    The problem is returned, not raised: refusing well still needs to know whether a body follows.
    """
    head = RequestHead()
    hosts, fields, size, upgrades = 0, 0, 0, False
    connection, encoding, transfer = b"", b"", b""
    for name, value in scope["headers"]:
        fields += 1
        size += len(name) + len(value) + 4
        if _passes(name):
            head.passed.append((name, value))
            if name == b"authorization":
                head.authorization = value
            elif name == b"origin":
                head.origin = value
            elif name == b"content-encoding":
                encoding = value
        elif name == b"host":
            hosts += 1
            head.host = value
        elif name == b"content-length":
            head.length = int(value) if value.isdigit() else head.length
        elif name == b"transfer-encoding":
            transfer = value
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"expect":
            head.expects_continue = True
        elif name == b"upgrade":
            upgrades = True
    head.is_chunked = bool(transfer)
    if connection:
        strip_named(head.passed, connection)
    problem = _size_problem(scope, fields, size) or _host_problem(scope, hosts, head.host)
    if problem is None and (transfer or encoding or upgrades):
        problem = _framing_problem(
            scope, head, transfer=transfer, encoding=encoding, upgrades=upgrades and b"upgrade" in connection.lower()
        )
    return head, problem


def _size_problem(scope: Scope, fields: int, size: int) -> Problem | None:
    if size > HEAD_BYTES_MAX:
        return HeadTooLarge(f"a head may have at most {HEAD_BYTES_MAX} bytes")
    if fields > FIELDS_MAX:
        return HeadTooLarge(f"a head may have at most {FIELDS_MAX} fields")
    if len(scope["raw_path"]) + len(scope["query_string"]) > TARGET_BYTES_MAX:
        return UriTooLong(f"an address may have at most {TARGET_BYTES_MAX} bytes")
    return None


def _host_problem(scope: Scope, hosts: int, host: bytes) -> Problem | None:
    # RFC 9112, section 3.2; only HTTP/1.0 may leave it out.
    if hosts == 0 and scope["http_version"] == "1.0":
        return None
    if hosts != 1 or not _HOST.fullmatch(host):
        return BadRequest("a request must have exactly one valid Host", code="bad_host")
    return None


def _framing_problem(
    scope: Scope, head: RequestHead, *, transfer: bytes, encoding: bytes, upgrades: bool
) -> Problem | None:
    if transfer and (
        scope["http_version"] == "1.0" or head.length is not None or transfer.strip().lower() != b"chunked"
    ):
        return BadRequest("the length of the body is ambiguous", code="ambiguous_framing")
    if encoding.strip().lower() not in (b"", b"identity"):
        return UnsupportedMediaType("compressed request bodies are not accepted")
    if upgrades and scope["type"] == "http" and head.has_body:
        # The parser stops reading the body of an upgrade; what follows would be taken for a request of its own.
        return BadRequest("a request for an upgrade must have no body", code="ambiguous_framing")
    return None


def strip_named(headers: Headers, connection: bytes) -> None:
    """Remove the headers that `Connection` names as meant for one hop (RFC 9110, section 7.6.1)."""
    named = {token.strip().lower() for token in connection.split(b",")} - _END_TO_END
    headers[:] = [pair for pair in headers if pair[0] not in named]


def check_authority(host: bytes, served: frozenset[str]) -> None:
    """Refuse a `Host` that is not among the served ones, where those are listed. Raises MisdirectedRequest."""
    if served and host.decode("latin-1").lower() not in served:
        raise MisdirectedRequest


_WITHHELD = HOP_BY_HOP | frozenset(
    {
        # The server in front writes its own; two would contradict each other.
        b"date",
        b"server",
        b"x-request-id",
    }
)


def filter_response(headers: Headers, *, has_length: bool = True) -> Headers:
    """Return the headers of an upstream's answer that go on to the client; `has_length=False` leaves Content-Length out."""
    passed: Headers = []
    connection = b""
    for pair in headers:
        name = pair[0]
        if name in _WITHHELD:
            if name == b"connection":
                connection = connection + b"," + pair[1] if connection else pair[1]
        elif has_length or name != b"content-length":
            passed.append(pair)
    if connection:
        strip_named(passed, connection)
    return passed
