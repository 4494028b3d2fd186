"""`GET` and `HEAD /users/{user_id}`: the service's hottest path, answered before the framework where nothing needs it."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.users.domain.reads import may_read, no_such_user
from services.users.model.edge import UserView
from services.users.model.records import Actor
from services.users.routes.guard import GuardedRoute
from services.users.routes.parts import SHOWN_SCHEME, Parts, Reader, RouteParts
from services.users.routes.respond import problems, read_tags
from shared import context
from shared.cache.entries import Found
from shared.identity import identify

router = APIRouter(tags=["users"], route_class=GuardedRoute)

PREFIX = "/users/"
ROUTE = "/users/{user_id}"
_PATH_CHARS = len(PREFIX) + 36
_METHODS = frozenset({"GET", "HEAD"})
_SAMPLED = frozenset("13579bdf")
"""Last digits of a traceparent whose flags say so."""

IfNoneMatch = Annotated[str | None, Header(description="Answer 304 while this is the version.")]
CacheControl = Annotated[str | None, Header(description="`no-cache`: ask the store, whatever is cached.")]
RawHeaders = list[tuple[bytes, bytes]]

_STALE_HEADERS = {
    "Age": {
        "description": "Only while the store is away: how many seconds ago this was current.",
        "schema": {"type": "integer"},
    },
    "Cache-Status": {"description": "Only while the store is away (RFC 9211).", "schema": {"type": "string"}},
}


@router.head(ROUTE, include_in_schema=False)
@router.get(
    ROUTE,
    response_model=UserView,
    responses={
        200: {"headers": _STALE_HEADERS},
        304: {"description": "Not modified."},
        **problems(401, 404, 503),
    },
    dependencies=[SHOWN_SCHEME],
    summary="Read a user (owner, admins)",
)
async def read(
    user_id: str,
    reader: Reader,
    parts: Parts,
    if_none_match: IfNoneMatch = None,
    cache_control: CacheControl = None,
) -> Response:
    found = await parts.reads.read(reader, user_id, bypass=asks_the_store(cache_control or ""))
    status, headers, body = _answer(found, if_none_match)
    response = Response(body, status)
    response.raw_headers = headers
    return response


def asks_the_store(cache_control: str) -> bool:
    """Tell whether a client wants no cached answer (RFC 9111, section 5.2.1.4); `max-age=0` is how browsers say it."""
    wishes = {wish.strip().lower() for wish in cache_control.split(",")}
    return not wishes.isdisjoint({"no-cache", "no-store", "max-age=0"})


def _answer(found: Found, if_none_match: str | None) -> tuple[int, RawHeaders, bytes]:
    """Return status, headers and body for a record, 304 where the client has this version."""
    body = found.value or b""
    headers = [(b"cache-control", b"no-store"), (b"etag", b'"v%d"' % found.version)]
    if found.is_stale:
        headers += [(b"age", b"%d" % found.age_s), (b"cache-status", b'users; hit; detail="the store is away"')]
    match = read_tags(if_none_match, weak=True) if if_none_match is not None else None
    if match is not None and match.takes(found.version):
        return 304, headers, b""
    headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    return 200, headers, body


class HotReads:
    """Answers reads of one user as the route above does, without the framework's half of the time.

    The route stays for what is rare: a query string, and a request whose span is to be exported (`traces`), because the
    framework's instrumentation makes it.
    """

    def __init__(self, app: ASGIApp, state: Any, *, traces: bool) -> None:
        self._app = app
        self._state = state
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["method"] in _METHODS
            and len(scope["path"]) == _PATH_CHARS
            and scope["path"].startswith(PREFIX)
            and not scope["query_string"]
            and not (self._traces and is_exported())
        ):
            await self._read(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _read(self, scope: Scope, send: Send) -> None:
        parts: RouteParts = self._state.parts
        request = context.current()
        if request is not None:
            request.route = ROUTE
        authorization = wish = ""
        if_none_match: str | None = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = authorization or value.decode("latin-1")
            elif name == b"cache-control":
                wish = f"{wish},{value.decode('latin-1')}" if wish else value.decode("latin-1")
            elif name == b"if-none-match":
                if_none_match = if_none_match or value.decode("latin-1")
        identity = await identify(parts.verifier, authorization)
        user_id: str = scope["path"][len(PREFIX) :]
        if not may_read(identity.subject, user_id, identity.role):
            raise no_such_user()
        bypass = bool(wish) and asks_the_store(wish)
        entry = None if bypass else parts.reads.peek(user_id)
        if entry is None:
            actor = Actor(identity.subject, identity.role, identity.session_id)
            found = await parts.reads.read(actor, user_id, bypass=bypass)
        elif entry.is_missing:
            raise no_such_user()
        else:
            found = Found(entry.value, entry.version)
        status, headers, body = _answer(found, if_none_match)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def is_exported() -> bool:
    """Tell whether the trace of the request being served is sampled, and its span to be exported where spans are."""
    request = context.current()
    return request is not None and request.traceparent[-1:] in _SAMPLED
