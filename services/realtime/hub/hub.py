"""The hub: admits peers, lets them enter and leave channels, publishes, and delivers direct messages, over every replica."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import structlog

from services.realtime.domain.channels import LOG, notice_subject, stored_subject, user_subject
from services.realtime.domain.conduct import Limits
from services.realtime.domain.positions import Position
from services.realtime.domain.publications import to_stored
from services.realtime.hub.channel import Channel
from services.realtime.hub.inbox import Inbox
from services.realtime.hub.metrics import HubMetrics
from services.realtime.hub.peers import TOKEN_EXPIRED, Peer
from services.realtime.hub.topics import Topics
from services.realtime.model import Encoded
from shared.bus.base import Bus, BusUnavailable
from shared.ids import new_id
from shared.revocation import Revocation

APPEND_TIMEOUT_S = 2.0
DIRECT_TIMEOUT_S = 1.0
AnyPeer = Peer[Any]


class TooManyConnections(Exception):
    """The user has as many peers of this kind on this replica as allowed."""


class Hub:
    """One per process. Everything that touches the bus raises BusUnavailable within its deadline; sockets stay open through it."""

    def __init__(self, bus: Bus, *, limits: Limits, metrics: HubMetrics) -> None:
        self.bus = bus
        self.limits = limits
        self.metrics = metrics
        self.epoch = ""
        self._log = structlog.get_logger()
        self.peers: dict[str, AnyPeer] = {}
        self.channels: Topics[Channel] = Topics(self._channel, topics_max=limits.channels_max)
        # An empty inbox must not linger: to the sender of a direct message it looks like a user who is there.
        self.inboxes: Topics[Inbox] = Topics(self._inbox, topics_max=limits.channels_max, linger_s=0)

    def _channel(self, name: str) -> Channel:
        return Channel(name, bus=self.bus, current_epoch=lambda: self.epoch, metrics=self.metrics)

    def _inbox(self, user: str) -> Inbox:
        return Inbox(user, bus=self.bus)

    async def open(self) -> None:
        """Make sure of the log; call once, before anybody enters."""
        self.epoch = await self.bus.ensure_log(LOG)

    async def admit(self, peer: AnyPeer) -> None:
        """Take a peer in; its owner calls `dismiss` in the end. Raises TooManyConnections, Overloaded or BusUnavailable."""
        inbox = self.inboxes.get(peer.user)
        if inbox is not None and inbox.count(peer.kind) >= self.limits.connections_per_user_max:
            raise TooManyConnections
        inbox = await self.inboxes.enter(peer.user, peer)
        # Several may have entered together while the inbox opened.
        if inbox.count(peer.kind) > self.limits.connections_per_user_max:
            self.inboxes.leave(peer.user, peer)
            raise TooManyConnections
        self.peers[peer.id] = peer
        self.metrics.connections.labels(peer.kind).inc()

    def dismiss(self, peer: AnyPeer) -> list[str]:
        """Forget a peer everywhere; return the channels it was in. Idempotent."""
        left = list(peer.channels)
        for name in left:
            self.leave(name, peer)
        self.inboxes.leave(peer.user, peer)
        if self.peers.pop(peer.id, None) is not None:
            self.metrics.connections.labels(peer.kind).dec()
        return left

    async def enter(self, name: str, peer: AnyPeer) -> Channel:
        """Let a peer listen to a channel; it gets everything after the channel's place at this moment."""
        channel = await self.channels.enter(name, peer)
        peer.channels[name] = None
        return channel

    def leave(self, name: str, peer: AnyPeer) -> None:
        peer.channels.pop(name, None)
        self.channels.leave(name, peer)

    async def publish(self, channel: str, data: Mapping[str, Any], *, user: str = "", message_id: str = "") -> Position:
        """Store a publication and send it to every listener of every replica; returns its place once it is durable."""
        appended = await self.bus.append(
            stored_subject(channel),
            to_stored(data, user=user, time=now_text()),
            message_id=message_id,
            timeout_s=APPEND_TIMEOUT_S,
        )
        return Position(self.epoch, appended.offset)

    async def tell(self, kind: Literal["joined", "left"], channel: str, peer: AnyPeer) -> None:
        """Tell the other members of a channel who came or went; at most once, and lost while the bus is away.

        A user with another peer in the channel on this replica neither comes nor goes.
        """
        found = self.channels.get(channel)
        if found is not None and any(m.user == peer.user and m is not peer for m in found.members.values()):
            return
        try:
            await self.bus.publish(
                notice_subject(channel), orjson.dumps({"kind": kind, "user": peer.user, "by": peer.id})
            )
        except BusUnavailable:
            self._log.debug("notice_lost", kind=kind, channel=channel)

    async def send_direct(self, sender: str, to: str, content: str) -> tuple[str, Encoded]:
        """Deliver to every connection of a user; return the message's id and frame.

        Raises NoResponder when the user is connected nowhere, BusUnavailable when nobody said in time that it arrived.
        """
        message_id = new_id()
        data = orjson.dumps(
            {
                "type": "direct",
                "from": {"id": sender},
                "to": to,
                "content": content,
                "id": message_id,
                "time": now_text(),
            }
        )
        await self.bus.request(user_subject(to), data, timeout_s=DIRECT_TIMEOUT_S)
        return message_id, Encoded(data.decode(), len(data))

    def disconnect(self, user: str, *, code: int, reason: str) -> int:
        """Close every peer of a user on this replica; return how many."""
        inbox = self.inboxes.get(user)
        members = list(inbox.members.values()) if inbox is not None else []
        for member in members:
            member.close(code, reason)
        return len(members)

    def revoke(self, revocation: Revocation) -> None:
        """Close the peers on this replica whose token is refused from now on."""
        inbox = self.inboxes.get(revocation.user_id)
        for member in list(inbox.members.values()) if inbox is not None else []:
            if member.identity is not None and revocation.covers(member.identity):
                member.close(TOKEN_EXPIRED, "the session has ended")


def now_text() -> str:
    """Return the time as RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
