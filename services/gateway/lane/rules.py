"""What a request must keep beyond what the parser asks of it, and what the parser's own complaints mean."""

import re

import httptools

from services.gateway.lane.head import FIELDS_MAX, Headers
from shared.errors import BadRequest, HeadTooLarge, MethodNotAllowed, MisdirectedRequest, Problem, UriTooLong

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

LINE_BYTES_MAX = 8 * 1024 - 32
"""Of a line of a WebSocket handshake: its own parser reads 8 KiB and says nothing about more."""

_REQUEST_LINE = re.compile(rb"(?:\r\n)*[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64} [!-~]+ HTTP/1\.[01]\r\n")
_ABSOLUTE = re.compile(rb"(?i:(https?)://)([^/?]*)(.*)")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


class MethodUnknown(Problem):
    """RFC 9110, section 9.1."""

    status, code, title = 501, "method_not_implemented", "This method is not known here"


class VersionNotSupported(Problem):
    """RFC 9110, section 15.6.6."""

    status, code, title = 505, "http_version_not_supported", "This server speaks HTTP/1.1"


class HandshakeVersion(Problem):
    """A WebSocket of another version (RFC 6455, section 4.4)."""

    status, code, title = 426, "bad_handshake", "This server speaks WebSocket version 13"

    def __init__(self) -> None:
        super().__init__(headers={"Sec-WebSocket-Version": "13"})


def meaning_of(error: httptools.HttpParserError, data: bytes) -> Problem | None:
    """Return what the parser's error means for the client, None for one that is a fault of ours.

    `data` is what was read, from the request's first byte on, b"" where it does not begin there.
    """
    if isinstance(error, httptools.HttpParserCallbackError):
        return error.__context__ if isinstance(error.__context__, Problem) else None
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _REQUEST_LINE.match(data):
        return MethodUnknown()
    return BadRequest(f"this is not well-formed HTTP/1.1: {error}"[:200], code="malformed_request")


def origin_form(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the path and query of a target that is not plainly those (RFC 9112, section 3.2). Raises Problem."""
    if method == b"CONNECT":
        raise MethodNotAllowed("this is no proxy to elsewhere", allow=METHODS)
    if b"#" in target:
        raise BadRequest("the fragment of an address stays with the client", code="bad_target")
    if target == b"*" and method == b"OPTIONS":
        raise MethodUnknown("OPTIONS is answered for addresses, not for the server as a whole")
    match = _ABSOLUTE.fullmatch(target)
    if match is None or b"@" in match[2]:
        raise BadRequest("the target must be a path, or an http address of this server", code="bad_target")
    scheme, authority, rest = match[1].lower(), match[2].lower(), match[3]
    hosts = [value.lower() for name, value in headers if name == b"host"]
    port = _DEFAULT_PORTS[scheme]
    # What is wrong with `Host` itself is said where it is checked for every request.
    if len(hosts) == 1 and hosts[0].removesuffix(port) != authority.removesuffix(port):
        raise MisdirectedRequest("the target's authority is not that of Host")
    return rest if rest.startswith(b"/") else b"/" + rest


def is_handshake(method: bytes, version: str, headers: Headers) -> bool:
    """Tell whether a request for an upgrade asks for a WebSocket; others go on as if they had not asked."""
    if method != b"GET" or version != "1.1":
        return False
    return [value.strip().lower() for name, value in headers if name == b"upgrade"] == [b"websocket"]


def check_handshake(target: bytes, headers: Headers) -> None:
    """Refuse what the WebSocket library would refuse without a problem document, or not answer at all. Raises Problem."""
    if len(target) > LINE_BYTES_MAX:
        raise UriTooLong(f"a handshake's address may have at most {LINE_BYTES_MAX} bytes")
    if len(headers) > FIELDS_MAX:
        raise HeadTooLarge(f"a head may have at most {FIELDS_MAX} fields")
    keys, versions = [], []
    for name, value in headers:
        if len(name) + len(value) > LINE_BYTES_MAX:
            raise HeadTooLarge(f"a handshake's field may have at most {LINE_BYTES_MAX} bytes")
        if name == b"sec-websocket-key":
            keys.append(value.strip())
        elif name == b"sec-websocket-version":
            versions.append(value.strip())
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            raise BadRequest("a request for an upgrade must have no body", code="ambiguous_framing")
    if versions != [b"13"]:
        raise HandshakeVersion
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise BadRequest("a handshake needs one Sec-WebSocket-Key of 16 bytes in Base64", code="bad_handshake")
