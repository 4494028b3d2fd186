"""`GET /users` and `POST /users` as their routes answer them, without the framework's half of the time.

Only what is ordinary is answered here: whatever the models refuse, has a key to be remembered under, or comes in an unusual form goes
to the route, with the body as it came, so that there is one place where refusals are made.
"""

from typing import Any
from urllib.parse import parse_qsl

from pydantic import TypeAdapter, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.users.domain.policy import rule_of
from services.users.model.edge import ListQuery, NewUser
from services.users.model.records import Actor
from services.users.model.view import user_json
from services.users.routes.guard import check
from services.users.routes.listing import page_json, user_query
from services.users.routes.parts import RouteParts
from services.users.routes.reads import is_exported
from services.users.routes.respond import tag_of
from services.users.routes.users import draft_of
from shared import context
from shared.identity import identify

PATH = "/users"
QUERY_BYTES_MAX = 4096
_NEW_USER: TypeAdapter[NewUser] = TypeAdapter(NewUser)
_LIST_RULE = rule_of("GET", PATH)
_FIXED = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]


class HotCollection:
    """`traces`: spans are exported, so that a request whose trace is sampled belongs to the framework, which makes its span."""

    def __init__(self, app: ASGIApp, state: Any, *, traces: bool) -> None:
        self._app = app
        self._state = state
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and not (self._traces and is_exported()):
            if scope["method"] == "GET":
                return await self._list(scope, receive, send)
            if scope["method"] == "POST":
                return await self._register(scope, receive, send)
        return await self._app(scope, receive, send)

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts: RouteParts = self._state.parts
        _name_route()
        check(_LIST_RULE, await identify(parts.verifier, _header(scope, b"authorization") or ""), "")
        query = _list_query(scope["query_string"])
        if query is None:
            return await self._app(scope, receive, send)
        found = await parts.users.list(user_query(query, parts.cursors))
        return await _answer(send, 200, page_json(found, query, parts.cursors), [])

    async def _register(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["query_string"]
            or _header(scope, b"content-type") != "application/json"
            or _header(scope, b"idempotency-key") is not None
        ):
            return await self._app(scope, receive, send)
        messages, body = await _whole(receive)
        draft = None
        if body is not None:
            try:
                draft = draft_of(_NEW_USER.validate_json(body))
            except ValidationError:
                # Told by the route, in the words of all its refusals.
                draft = None
        if draft is None:
            return await self._app(scope, _replayed(messages, receive), send)
        _name_route()
        parts: RouteParts = self._state.parts
        authorization = _header(scope, b"authorization")
        actor = None
        if authorization is not None:
            identity = await identify(parts.verifier, authorization)
            actor = Actor(identity.subject, identity.role, identity.session_id)
        user = await parts.users.register(draft, actor)
        headers = [(b"location", f"/users/{user.id}".encode()), (b"etag", tag_of(user).encode())]
        return await _answer(send, 201, user_json(user), headers)


def _name_route() -> None:
    request = context.current()
    if request is not None:
        request.route = PATH


def _header(scope: Scope, wanted: bytes) -> str | None:
    """Return the first header of a name."""
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return None


def _list_query(query_string: bytes) -> ListQuery | None:
    """Return the query as the model reads it, None where it is for the route to refuse."""
    if len(query_string) > QUERY_BYTES_MAX:
        return None
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    values = dict(pairs)
    if len(values) != len(pairs):
        return None
    try:
        return ListQuery.model_validate(values)
    except ValidationError:
        return None


async def _whole(receive: Receive) -> tuple[list[Message], bytes | None]:
    """Return the messages of a body, which the layers outside bound, and the body; None where the client has gone."""
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return messages, None
        if not message.get("more_body", False):
            return messages, b"".join(each.get("body", b"") for each in messages)


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """Return a receive that gives the messages again, and then goes on."""
    left = iter(messages)

    async def again() -> Message:
        message = next(left, None)
        return message if message is not None else await receive()

    return again


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *_FIXED, *headers]})
    await send({"type": "http.response.body", "body": body})
