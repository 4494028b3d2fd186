"""Topics: things opened for the first who enters and closed a while after the last left."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from services.realtime.hub.peers import Peer

LINGER_S = 5.0
"""A room between two visitors is kept so long: subscriptions must not flap."""


class Overloaded(Exception):
    """This replica has as many topics open as it may."""


class Topic(ABC):
    """Something on the bus that peers of this replica share."""

    def __init__(self) -> None:
        self.members: dict[str, Peer[Any]] = {}
        self.life = asyncio.Lock()
        self.is_open = False
        self.claims = 0
        self.idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        return not self.members and not self.claims

    @abstractmethod
    async def open(self) -> None:
        """Begin to listen. Raises BusUnavailable, leaving nothing behind."""

    @abstractmethod
    async def close(self) -> None:
        """Stop listening."""


K = TypeVar("K", bound=Topic)


class Topics(Generic[K]):
    """The topics of one kind by name; `sweep` closes those that have been idle for `linger_s`, `emptied` says that one became so."""

    def __init__(
        self,
        make: Callable[[str], K],
        *,
        topics_max: int,
        linger_s: float = LINGER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._topics_max = topics_max
        self._linger_s = linger_s
        self._clock = clock
        self._topics: dict[str, K] = {}
        self.emptied = asyncio.Event()

    def get(self, name: str) -> K | None:
        return self._topics.get(name)

    def opened(self) -> list[K]:
        """Return the topics that listen now."""
        return [topic for topic in self._topics.values() if topic.is_open]

    async def enter(self, name: str, peer: Peer[Any]) -> K:
        """Make `peer` a member, opening the topic where it is the first. Raises Overloaded or BusUnavailable."""
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= self._topics_max:
                raise Overloaded
            topic = self._topics[name] = self._make(name)
        topic.claims += 1
        try:
            async with topic.life:
                if not topic.is_open:
                    await topic.open()
                    topic.is_open = True
                topic.members[peer.id] = peer
        finally:
            topic.claims -= 1
            topic.idle_since = self._clock()
        return topic

    def leave(self, name: str, peer: Peer[Any]) -> None:
        """Make `peer` no member; a later sweep closes the topic. Synchronous, so that a cancelled owner can always do it."""
        topic = self._topics.get(name)
        if topic is not None and topic.members.pop(peer.id, None) is not None:
            topic.idle_since = self._clock()
            if topic.is_idle:
                self.emptied.set()

    async def sweep(self) -> None:
        """Close and forget what nobody has used for a while."""
        self.emptied.clear()
        now = self._clock()
        for name, topic in list(self._topics.items()):
            if not topic.is_idle or now - topic.idle_since < self._linger_s:
                continue
            async with topic.life:
                if topic.is_idle and topic.is_open:
                    topic.is_open = False
                    await topic.close()
                # While it closed somebody may have come and now waits to open it again.
                if topic.is_idle:
                    self._topics.pop(name, None)
