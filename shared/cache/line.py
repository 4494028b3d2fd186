"""The line between the local tiers of all replicas: what changed is told to all over the bus, and whether all was heard is known.

Core messages come at most once, so the line is asked four times a second: a round trip that comes back proves that everything that was
published before it has come too. A connection made anew, or a message dropped, means that something may have been missed.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import orjson
import structlog

from shared.bus.base import Bus, BusUnavailable, Message, Subscription
from shared.bus.throttle import Throttle

CHECK_INTERVAL_S = 0.25
CHECK_WAIT_S = 0.5
VOUCHED_MAX_S = 0.8
"""So long after a round trip began that was answered, the line vouches that nothing older is unknown here."""

RETRY_S = 0.5
KEYS_PER_MESSAGE = 200
UNTOLD_MAX = 10_000
"""So many keys are remembered while they cannot be told; more become "everything"."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Change:
    """Keys that changed, each with the oldest version that is still right (0 where there are no versions), tags, or everything."""

    keys: dict[str, int] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    is_everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.keys or self.tags or self.is_everything)

    def add(self, other: "Change") -> None:
        """Take another change in."""
        for key, version in other.keys.items():
            self.keys[key] = max(version, self.keys.get(key, 0))
        self.tags |= other.tags
        self.is_everything = self.is_everything or other.is_everything
        if len(self.keys) + len(self.tags) > UNTOLD_MAX:
            self.is_everything = True
        if self.is_everything:
            self.keys.clear()
            self.tags.clear()


class Line:
    """`heard(change)` is called for what other replicas changed, `missed()` where something may not have been heard.

    `connect` opens a bus of the line's own; nothing is asked of it before `run`, because a bus that is away is no reason not to start.
    """

    def __init__(
        self,
        subject: str,
        connect: Callable[[], Awaitable[Bus]],
        *,
        heard: Callable[[Change], None],
        missed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subject = subject
        self._connect = connect
        self._heard = heard
        self._missed = missed
        self._clock = clock
        self._own = os.urandom(8).hex()
        self._bus: Bus | None = None
        self._vouched_at = float("-inf")
        self._session = -1
        self._dropped = 0
        # Told since the last round trip that came back: lost, perhaps, when the connection is.
        self._told = Change()
        self._untold = Change()
        self._garbled = Throttle()

    def vouches(self, now: float) -> bool:
        """Tell whether everything that others changed until 0.8 s ago has been heard here."""
        return now - self._vouched_at <= VOUCHED_MAX_S

    async def tell(self, change: Change) -> None:
        """Tell the other replicas; what cannot be told now is told when the bus is back. Never raises, waits 2 s at most."""
        if self._bus is None:
            self._untold.add(change)
            return
        try:
            await self._send(self._bus, change)
        except BusUnavailable:
            self._untold.add(change)
        else:
            self._told.add(change)

    async def _send(self, bus: Bus, change: Change) -> None:
        keys = list(change.keys.items())
        for start in range(0, max(1, len(keys)), KEYS_PER_MESSAGE):
            document = {
                "from": self._own,
                "keys": dict(keys[start : start + KEYS_PER_MESSAGE]),
                "tags": sorted(change.tags) if not start else [],
                "everything": change.is_everything,
            }
            await bus.publish(self._subject, orjson.dumps(document))

    async def _take(self, message: Message) -> None:
        try:
            document = orjson.loads(message.data)
            if document["from"] == self._own:
                return
            keys = {str(key): int(version) for key, version in document["keys"].items()}
            tags = {str(tag) for tag in document["tags"]}
            change = Change(keys, tags, bool(document["everything"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            # A newer release may tell what we do not know: then nothing here is sure.
            if self._garbled.due():
                _log.warning("cache_change_not_understood", subject=self._subject)
            self._missed()
            return
        self._heard(change)

    async def run(self) -> None:
        """Hold the line for ever; a service runs it as a background task."""
        while True:
            try:
                bus = await self._connect()
            except BusUnavailable as error:
                _log.warning("cache_line_waits", subject=self._subject, reason=str(error)[:300])
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await self._hold(bus)
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)
            finally:
                self._bus = None
                await bus.close()

    async def _hold(self, bus: Bus) -> None:
        session = bus.session
        subscription = await bus.subscribe(self._subject, self._take)
        self._bus, self._session, self._dropped = bus, session, subscription.dropped
        self._missed()
        while True:
            await self._check(bus, subscription)
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _check(self, bus: Bus, subscription: Subscription) -> None:
        """Make one round trip; vouch from its beginning where nothing was missed."""
        began_at, session = self._clock(), bus.session
        told, self._told = self._told, Change()
        try:
            await bus.ping(timeout_s=CHECK_WAIT_S)
        except BusUnavailable:
            self._untold.add(told)
            return
        if (session, subscription.dropped) != (self._session, self._dropped):
            self._session, self._dropped = session, subscription.dropped
            self._untold.add(told)
            self._missed()
        if self._untold:
            untold, self._untold = self._untold, Change()
            await self.tell(untold)
        self._vouched_at = began_at
