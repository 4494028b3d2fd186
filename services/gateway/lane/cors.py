"""CORS: which pages of other origins may call the API and read its answers (the Fetch standard, section 3.3).

Plain functions of bytes, so that every lane can call them: `preflight` where a request is no more than a browser's question, and
`answer_headers` for every other answer, refusals among them. A service's own CORS headers are dropped where its answer is filtered
(head.py): there is one policy, and a browser refuses two.
"""

import re
from collections.abc import Callable, Collection

from services.gateway.lane.head import Headers, is_taken
from services.gateway.model import Cors
from shared.errors import Forbidden

EXPOSED = (
    "ETag, Location, Allow, Link, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-ID, "
    "Last-Event-ID, Idempotency-Replayed, Deprecation, Sunset"
)
"""Of the answers' headers, what a page may read beside the few that every page may (Cache-Control, Content-Type and their like)."""

UNKNOWN_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
"""For a path that no route knows: let the request itself come, so that its page reads why it is refused, not "CORS error"."""

ASKED_BYTES_MAX = 4096

_FIELD_NAME = re.compile(rb"[!#$%&'*+.^`|~0-9a-z-]+")


class CorsPolicy:
    """The policy of one configuration; with no origins in it, every call returns what is already there.

    Credentials are allowed to the listed origins. Tokens travel in `Authorization`, which needs no credentials mode; but a page may
    keep its refresh token in the gateway's SameSite=Strict cookie, and http://localhost:3000 and http://localhost:8080 are one site:
    the browser sends the cookie there and, without this header, would keep the new token from the page that asked for it. Origins are
    listed one by one, never `*` or `null`, so this trusts nobody whom the operator did not name.
    """

    __slots__ = ("_allowed", "_max_age", "_methods_of", "_others", "_preflights")

    def __init__(self, cors: Cors, methods_of: Callable[[str], Collection[str]]) -> None:
        """`methods_of` tells the methods of a decoded path's routes, none where no route knows it."""
        self._methods_of = methods_of
        self._max_age = str(cors.max_age_s).encode()
        # An answer differs by who asks also where the asker is nobody: a cache must not give it to a page that may read it.
        self._others: Headers = [(b"vary", b"Origin")] if cors.origins else []
        self._allowed: dict[bytes, Headers] = {}
        self._preflights: dict[bytes, Headers] = {}
        for name in cors.origins:
            origin = name.encode()
            allows = [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
            self._allowed[origin] = [*allows, (b"access-control-expose-headers", EXPOSED.encode()), *self._others]
            self._preflights[origin] = [
                *allows,
                (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
            ]

    def answer_headers(self, origin: bytes) -> Headers:
        """Return what an answer to a request of this `Origin` (b"" without one) carries; the list is shared: copy, never change it."""
        return self._allowed.get(origin, self._others)

    def preflight(
        self, origin: bytes, asked_method: bytes, asked_headers: bytes, path: str
    ) -> tuple[int, Headers] | None:
        """Return the answer to an OPTIONS request, None where it is no preflight or there is no policy: then it is like any other.

        The headers are the whole of CORS in this answer: `answer_headers` must not be added. A method or header that is not allowed
        is left out of the lists, and the browser tells its developer which one. An origin that is not allowed raises Forbidden
        (`origin_not_allowed`), as for its WebSockets: the browser shows any answer without CORS headers as the same network error,
        while a person with curl or the network panel open reads the reason. Nothing is asked of the service, no quota spent.
        """
        if not (origin and asked_method and self._preflights):
            return None
        allows = self._preflights.get(origin)
        if allows is None:
            raise Forbidden("pages of this origin may not call the API", code="origin_not_allowed")
        methods = sorted(self._methods_of(path)) or UNKNOWN_METHODS
        headers = [
            *allows,
            (b"access-control-allow-methods", ", ".join(methods).encode()),
            (b"access-control-max-age", self._max_age),
        ]
        names = _taken_of(asked_headers)
        if names:
            headers.append((b"access-control-allow-headers", names))
        return 204, headers


def asked_of(headers: Headers) -> tuple[bytes, bytes]:
    """Return a preflight's `Access-Control-Request-Method` and `-Headers`, b"" for what was not sent."""
    method, names = b"", b""
    for name, value in headers:
        if name == b"access-control-request-method":
            method = value
        elif name == b"access-control-request-headers":
            names = names + b"," + value if names else value
    return method, names


def _taken_of(asked: bytes) -> bytes:
    """Return those of the asked header names that a request may carry: what the lane would drop is not promised."""
    if len(asked) > ASKED_BYTES_MAX:
        return b""
    names = (name.strip(b" \t").lower() for name in asked.split(b","))
    # Each once, in their order.
    return b", ".join(dict.fromkeys(name for name in names if _FIELD_NAME.fullmatch(name) and is_taken(name)))
