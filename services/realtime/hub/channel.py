"""A channel on this replica: its place in the log, the proof that nothing was skipped, and the fan-out to its members."""

import asyncio
from collections.abc import Callable

import orjson
import structlog

from services.realtime.domain.channels import CHAT, LOG, live_subject, notice_subject, room_of, stored_subject
from services.realtime.domain.positions import Position
from services.realtime.domain.publications import Publication, from_stored
from services.realtime.hub.metrics import HubMetrics
from services.realtime.hub.topics import Topic
from services.realtime.model import notice
from shared.bus.base import Bus, BusUnavailable, Message, Subscription

_log = structlog.get_logger()


class Channel(Topic):
    """`offset` is the place up to which members were served: at or before it nothing is delivered again, after it nothing left out.

    One thing at a time moves it, under the lock `flow`: a live message, the reading of a hole, or a new epoch.
    """

    def __init__(self, name: str, *, bus: Bus, current_epoch: Callable[[], str], metrics: HubMetrics) -> None:
        super().__init__()
        self.name = name
        self.epoch = ""
        self._current_epoch = current_epoch
        self.offset = 0
        self.behind = False
        self._bus = bus
        self._metrics = metrics
        self._flow = asyncio.Lock()
        self._stored = stored_subject(name)
        self._subscriptions: list[Subscription] = []

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)

    async def open(self) -> None:
        try:
            async with self._flow:
                # Live messages wait at the lock until the place to begin at is known.
                self._subscriptions.append(await self._bus.subscribe(live_subject(self.name), self._on_message))
                if self.name.startswith(f"{CHAT}:"):
                    self._subscriptions.append(await self._bus.subscribe(notice_subject(self.name), self._on_notice))
                self.offset = await self._bus.last_offset(LOG.name, self._stored)
                # After the last await: a new life of the log that begins from here on finds this channel open and renews it.
                self.epoch = self._current_epoch()
                self.behind = False
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.stop()

    async def catch_up(self) -> None:
        """Deliver what the log has after the place we are at. Raises BusUnavailable."""
        async with self._flow:
            await self._read_on()

    async def renew(self, epoch: str) -> None:
        """Go on in a new life of the log. Raises BusUnavailable."""
        async with self._flow:
            if self.epoch != epoch:
                self.epoch, self.offset = epoch, 0
                self.tell_gap()
            await self._read_on()

    def tell_gap(self) -> None:
        """Tell the members that publications may be missing for good."""
        self._metrics.gaps.inc()
        for member in self.members.values():
            member.note_gap(room_of(self.name))

    async def history(self, *, after: int, limit: int) -> list[Publication]:
        """Return stored publications, oldest first. Raises BusUnavailable."""
        found = await self._bus.read(LOG.name, self._stored, after=after, limit=limit)
        return [publication for message in found if (publication := self._decode(message)) is not None]

    async def newest_offset(self) -> int:
        """Return the newest stored offset, 0 for none. Raises BusUnavailable."""
        return await self._bus.last_offset(LOG.name, self._stored)

    async def _on_message(self, message: Message) -> None:
        async with self._flow:
            if message.offset <= self.offset:
                return
            if message.previous_offset > self.offset:
                try:
                    await self._read_on()
                except BusUnavailable:
                    # The message is in the log too: the keeper reads from our place once the bus answers.
                    self.behind = True
                    return
            if message.offset > self.offset:
                if message.previous_offset > self.offset:
                    self.tell_gap()
                self._deliver(message)

    async def _read_on(self) -> None:
        limit = LOG.messages_per_subject_max
        while True:
            found = await self._bus.read(LOG.name, self._stored, after=self.offset, limit=limit)
            if len(found) >= limit:
                # The log keeps no more than this: older ones may have been trimmed away before we could read them.
                self.tell_gap()
            for message in found:
                self._deliver(message)
            if len(found) < limit:
                self.behind = False
                return

    def _deliver(self, message: Message) -> None:
        self.offset = message.offset
        publication = self._decode(message)
        if publication is None:
            return
        for member in self.members.values():
            member.offer(publication)
        self._metrics.deliveries.inc(len(self.members))

    def _decode(self, message: Message) -> Publication | None:
        try:
            return from_stored(message, channel=self.name, epoch=self.epoch)
        except ValueError as error:
            _log.warning("publication_unreadable", channel=self.name, offset=message.offset, reason=str(error)[:200])
            return None

    async def _on_notice(self, message: Message) -> None:
        found = orjson.loads(message.data)
        frame = notice(found["kind"], room=room_of(self.name), user=found["user"])
        for member in self.members.values():
            # The one it is about was told by its own replica, at once.
            if member.id != found["by"]:
                member.notice(frame)
