"""The keeper: sees the bus go and come back, and brings every channel to where the log is."""

import asyncio
import contextlib
import time

import structlog

from services.realtime.domain.channels import LOG
from services.realtime.hub.channel import Channel
from services.realtime.hub.hub import Hub
from shared.bus.base import BusUnavailable
from shared.bus.throttle import Throttle

LOOK_S = 0.02
RETRY_S = 0.5
SWEEP_S = 1.0
CHECK_S = 5.0
CHECKED_MAX = 200
"""In one round; a channel that missed its last message without any later one is found in turn."""

AT_ONCE_MAX = 32


class Keeper:
    """Background work of the hub; `run` and `sweep` are two tasks of the service's supervisor."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._log = structlog.get_logger()
        self._lost_at: float | None = None
        self._checked_at = time.monotonic()
        self._turn = 0
        self._failures = Throttle()

    async def run(self) -> None:
        """Watch the bus for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not await self.look():
                await asyncio.sleep(RETRY_S)

    async def sweep(self) -> None:
        """Close what nobody listens to any more, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._hub.inboxes.emptied.wait()
            await self._hub.inboxes.sweep()
            await self._hub.channels.sweep()

    async def look(self) -> bool:
        """Look once and do what is due; False when the bus did not let us."""
        if not self._hub.bus.connected:
            if self._lost_at is None:
                self._lost_at = time.monotonic()
                self._log.warning("bus_away", channels=len(self._hub.channels.opened()))
            return True
        now = time.monotonic()
        behind = [channel for channel in self._hub.channels.opened() if channel.behind]
        try:
            if self._lost_at is not None:
                await self._recover(now - self._lost_at)
                self._lost_at = None
            elif now - self._checked_at >= CHECK_S:
                self._checked_at = now
                await self._renew_if_new()
                await self._catch_up(self._next_checked())
            elif behind:
                await self._catch_up(behind)
        except BusUnavailable as error:
            if self._failures.due():
                self._log.warning("bus_not_caught_up", reason=str(error)[:200])
            if self._lost_at is None:
                self._lost_at = now
            return False
        return True

    async def _recover(self, away_s: float) -> None:
        channels = self._hub.channels.opened()
        if not await self._renew_if_new():
            if away_s > LOG.age_max_s:
                for channel in channels:
                    channel.tell_gap()
            await self._catch_up(channels)
        self._log.info("bus_back", away_s=round(away_s, 2), channels=len(channels))

    async def _renew_if_new(self) -> bool:
        """Go over to a new life of the log where there is one; tell whether any channel did."""
        epoch = await self._hub.bus.ensure_log(LOG)
        if epoch != self._hub.epoch:
            self._log.warning("log_is_new", epoch=epoch, before=self._hub.epoch)
            self._hub.epoch = epoch
        # By what each channel knows, not by what the hub knew: a renewal that failed half-way goes on here.
        stale = [channel for channel in self._hub.channels.opened() if channel.epoch != epoch]
        for channel in stale:
            await channel.renew(epoch)
        return bool(stale)

    def _next_checked(self) -> list[Channel]:
        channels = self._hub.channels.opened()
        if len(channels) <= CHECKED_MAX:
            return channels
        self._turn = (self._turn + CHECKED_MAX) % len(channels)
        return (channels + channels)[self._turn : self._turn + CHECKED_MAX]

    async def _catch_up(self, channels: list[Channel]) -> None:
        gate = asyncio.Semaphore(AT_ONCE_MAX)
        failures: list[BusUnavailable] = []

        async def one(channel: Channel) -> None:
            async with gate:
                try:
                    await channel.catch_up()
                except BusUnavailable as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for channel in channels:
                group.create_task(one(channel))
        if failures:
            raise failures[0]
