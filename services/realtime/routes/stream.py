"""The event stream, `/sse/stream`: the public pulse or one chat room, with ids a client can resume from on any replica."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from services.realtime.domain.channels import PULSE, is_channel
from services.realtime.domain.positions import Position, parse_position
from services.realtime.hub.hub import TooManyConnections
from services.realtime.hub.peers import SLOW, TOKEN_EXPIRED, Stream
from services.realtime.hub.resume import enter_stream
from services.realtime.hub.topics import Overloaded
from services.realtime.routes.access import BUS_AWAY, Parts, check_not_revoked, identify, open_parts
from services.realtime.routes.cutting import cut, cut_later
from shared.bus.base import BusUnavailable
from shared.errors import PROBLEM_MEDIA_TYPE, FieldError, InvalidInput, TooManyRequests, Unavailable
from shared.tokens import Identity

OPEN_TIMEOUT_S = 5.0
FLUSH_TIMEOUT_S = 1.0
CHANNELS_MAX = 1
HEARTBEAT = b": hb\n\n"
PREAMBLE = b": hb\nretry: 2000\n\n"

REFUSALS = {
    400: "The place to resume from is malformed.",
    401: "No valid access token.",
    422: "No such channel, or more than one.",
    429: "The user has too many streams open.",
    503: "Stopping, full, or without its bus; come again.",
}

router = APIRouter(tags=["realtime"])


async def _signed_in(
    request: Request,
    _: Annotated[str | None, Query(alias="token", description="The access token, where no header can be set.")] = None,
    __: Annotated[str | None, Query(alias="ticket", description="A ticket of `POST /auth/ticket`, instead.")] = None,
) -> Identity:
    return await identify(request, open_parts(request))


@router.get(
    "/sse/stream",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events for as long as the client stays."},
        **{status: {"content": {PROBLEM_MEDIA_TYPE: {}}, "description": text} for status, text in REFUSALS.items()},
    },
)
async def stream_events(
    request: Request,
    identity: Annotated[Identity, Depends(_signed_in)],
    ch: Annotated[list[str] | None, Query(max_length=16)] = None,
    since: Annotated[str | None, Query(max_length=64)] = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """Stream a channel: `chat:<room>`, or the public pulse where none is named.

    Resumes exactly after `Last-Event-ID` (or `since`); a first event `reset` says that this was not possible and something may
    have been missed. `token` may be given as a query parameter, since browsers cannot set headers on event streams.
    """
    channel = _channel_of(ch)
    # A reconnecting browser still has the `since` of its first address; the header is newer.
    text = last_event_id or since
    return EventStream(open_parts(request), identity, channel=channel, since=parse_position(text) if text else None)


def _channel_of(given: list[str] | None) -> str:
    channels = list(dict.fromkeys(given or [PULSE]))
    for number, name in enumerate(channels):
        if not is_channel(name):
            raise InvalidInput(
                "ch is chat:<room> or public:pulse",
                errors=[FieldError(f"query.ch.{number}", "no such channel", "channel")],
            )
    if len(channels) > CHANNELS_MAX:
        raise InvalidInput(
            "one channel a stream for now", errors=[FieldError("query.ch", "give one channel", "too_many")]
        )
    return channels[0]


class EventStream(Response):
    """A response that lasts: pure ASGI, fed from the hub by one bounded outbox."""

    media_type = "text/event-stream"

    def __init__(self, parts: Parts, identity: Identity, *, channel: str, since: Position | None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._channel = channel
        self._since = since
        self._expires_in_s = identity.expires_at + parts.leeway_s - time.time()
        self._identity = identity
        limits, metrics = parts.hub.limits, parts.hub.metrics
        self._stream = Stream(identity.subject, limits=limits, metrics=metrics, identity=identity)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            position = await self._enter()
            # Where a client without any event yet would resume from.
            self.headers["Last-Event-ID"] = str(position)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._serve(receive, send)
            await self._finish(scope, send)
        finally:
            self._parts.hub.dismiss(self._stream)

    async def _enter(self) -> Position:
        """Enter the hub while a problem can still be answered; return the place from which on everything will be sent."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._parts.hub.admit(self._stream)
                check_not_revoked(self._identity, self._parts)
                return await enter_stream(self._parts.hub, self._stream, self._channel, since=self._since)
        except TooManyConnections:
            raise TooManyRequests("this user has too many streams open", retry_after_s=5) from None
        except Overloaded:
            raise Unavailable("this replica has no place for another stream", code="overloaded") from None
        except (BusUnavailable, TimeoutError):
            raise BUS_AWAY from None

    async def _serve(self, receive: Receive, send: Send) -> None:
        """Send until the stream is to end or the client is gone."""
        stream = self._stream
        expiry = asyncio.get_running_loop().call_later(
            self._expires_in_s, stream.close, TOKEN_EXPIRED, "the access token has expired"
        )
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._watch(receive))
                writer = group.create_task(self._write(send))
                await stream.closing.wait()
                watcher.cancel()
                if stream.farewell.gone or stream.farewell.code == SLOW:
                    writer.cancel()
                await asyncio.wait({writer}, timeout=FLUSH_TIMEOUT_S)
                writer.cancel()
        finally:
            expiry.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._stream.leave()

    async def _write(self, send: Send) -> None:
        try:
            await send({"type": "http.response.body", "body": PREAMBLE, "more_body": True})
            for missed in self._stream.backlog:
                await send({"type": "http.response.body", "body": missed, "more_body": True})
            self._stream.backlog.clear()
            while (event := await self._next()) is not None:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except OSError:
            self._stream.leave()

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(self._parts.heartbeat_s):
                return await self._stream.outbox.take()
        except TimeoutError:
            return HEARTBEAT

    async def _finish(self, scope: Scope, send: Send) -> None:
        """End the body, so that the client knows to come again; cut the connection where that cannot be written."""
        if self._stream.farewell.gone:
            return
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            cut(scope)
        except OSError:
            return
        else:
            if self._stream.farewell.code == SLOW:
                cut_later(scope)
