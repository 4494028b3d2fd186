"""Peers: the listeners of this replica, a WebSocket connection or an event stream, each with its own bounded outbox."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from services.realtime.domain.conduct import Conduct, Limits
from services.realtime.domain.publications import Publication
from services.realtime.hub.metrics import HubMetrics
from services.realtime.hub.outbox import Outbox
from services.realtime.model import Encoded, gap
from shared.tokens import Identity

NORMAL, INTERNAL_ERROR, RESTART, TRY_LATER = 1000, 1011, 1012, 1013
MALFORMED, TOKEN_EXPIRED, FORBIDDEN, SLOW, FLOOD = 4400, 4401, 4403, 4408, 4429

T = TypeVar("T")

GAP_EVENT = b"event: gap\ndata: {}\n\n"
RESET_EVENT = b"event: reset\ndata: {}\n\n"


@dataclass(frozen=True, slots=True)
class Farewell:
    """Why a peer is closed. `gone`: it left by itself, nothing is to be sent."""

    code: int
    reason: str
    gone: bool = False


class Peer(Generic[T]):
    """A listener; its fan-out side is synchronous, its owner waits on `closing` and sends the farewell.

    `identity` is of the token it came with, by which it is found when that is revoked.
    """

    kind: ClassVar[str] = ""

    def __init__(self, user: str, *, outbox: Outbox[T], metrics: HubMetrics, identity: Identity | None = None) -> None:
        self.id = secrets.token_hex(8)
        self.user = user
        self.identity = identity
        self.outbox = outbox
        self.closing = asyncio.Event()
        self.farewell = Farewell(NORMAL, "")
        self.channels: dict[str, None] = {}
        self._metrics = metrics

    def close(self, code: int, reason: str) -> None:
        """Begin the end; what waits is still sent, unless the peer is closed because it does not read. The first call counts."""
        self._end(Farewell(code, reason), discard=code == SLOW)

    def fail(self) -> None:
        """Note that serving the peer broke."""
        self.close(INTERNAL_ERROR, "something went wrong on our side")

    def leave(self) -> None:
        """Note that the peer is gone."""
        self._end(Farewell(NORMAL, "", gone=True), discard=True)

    def _end(self, farewell: Farewell, *, discard: bool) -> None:
        if self.closing.is_set():
            return
        self.farewell = farewell
        self.closing.set()
        self.outbox.end(discard=discard)

    def _put(self, item: T, size_bytes: int) -> None:
        if not self.outbox.put(item, size_bytes=size_bytes):
            self._metrics.slow_consumers_closed.labels(self.kind).inc()
            self.close(SLOW, "too slow")

    def offer(self, publication: Publication) -> None:
        """Take a publication of a channel this peer listens to."""
        raise NotImplementedError

    def notice(self, frame: Encoded) -> None:
        """Take what is told and not kept: joins, leaves, direct messages."""

    def note_gap(self, room: str) -> None:
        """Take the news that publications may be missing."""
        raise NotImplementedError


class Connection(Peer[Encoded]):
    """A chat socket."""

    kind = "websocket"

    def __init__(self, user: str, *, limits: Limits, metrics: HubMetrics, identity: Identity | None = None) -> None:
        outbox: Outbox[Encoded] = Outbox(items_max=limits.outbox_frames_max, bytes_max=limits.outbox_bytes_max)
        super().__init__(user, outbox=outbox, metrics=metrics, identity=identity)
        self.conduct = Conduct(limits)

    def offer(self, publication: Publication) -> None:
        self.notice(publication.frame)

    def notice(self, frame: Encoded) -> None:
        self._put(frame, frame.size_bytes)

    def note_gap(self, room: str) -> None:
        self.notice(gap(room))


class Stream(Peer[bytes]):
    """An event stream of one channel; nothing at or before `after` is sent, since the client has it."""

    kind = "sse"

    def __init__(self, user: str, *, limits: Limits, metrics: HubMetrics, identity: Identity | None = None) -> None:
        outbox: Outbox[bytes] = Outbox(items_max=limits.outbox_events_max, bytes_max=limits.outbox_bytes_max)
        super().__init__(user, outbox=outbox, metrics=metrics, identity=identity)
        self.after = 0
        self.backlog: list[bytes] = []

    def offer(self, publication: Publication) -> None:
        if publication.position.offset > self.after:
            self._put(publication.event, len(publication.event))

    def note_gap(self, room: str) -> None:
        self.after = 0
        self._put(GAP_EVENT, len(GAP_EVENT))
