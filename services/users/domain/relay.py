"""The relay: takes events from the outbox to the bus in order, once the bus has each, and waits out every outage."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from services.users.domain.ports import Outbox, OutboxLine, Tally
from services.users.model.records import Event
from shared.bus.base import Append, Bus, BusUnavailable, LogConfig
from shared.errors import Unavailable

LOG = LogConfig(
    name="EVT",
    subjects=("evt.>",),
    messages_per_subject_max=1_000_000,
    age_max_s=7 * 24 * 3600,
    # Longer than any pause between a crash after the append and the replay by the next relay.
    duplicate_window_s=600,
)
BATCH_MAX = 500
"""Stored by the bus together, with one wait for its disk."""

POLL_S = 0.25
"""Events of other replicas come without a call; this is how late they may be noticed."""

BACKLOG_INTERVAL_S = 1.0
"""While there is much to do: counting it costs more than taking a batch of it."""

LEAD_POLL_S = 1.0
RETRY_S = 0.5


class OutboxRelay:
    """One relay of the fleet is active, the one whose line leads; `connect` makes the bus when it is first needed.

    `relayed` hears of events that are on the bus, and may raise nothing.
    """

    def __init__(
        self,
        outbox: Outbox,
        connect: Callable[[], Awaitable[Bus]],
        *,
        tally: Tally,
        relayed: Callable[[Sequence[Event]], Awaitable[None]] | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._outbox = outbox
        self._connect = connect
        self._tally = tally
        self._relayed = relayed
        self._retry_s = retry_s
        self._bus: Bus | None = None
        self._woken = asyncio.Event()
        self._failing = ""
        self._log = structlog.get_logger()

    def wake(self) -> None:
        """Look into the outbox now rather than at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Relay for ever; a service runs it as a background task."""
        try:
            while True:
                try:
                    async with self._outbox.line() as line:
                        await self._serve(line)
                except (Unavailable, BusUnavailable) as error:
                    # Another replica's bus may be well: the line, and with it the lead, has been given up.
                    self._note(f"{type(error).__name__}: {error}"[:300])
                    await asyncio.sleep(self._retry_s)
        finally:
            if self._bus is not None:
                await self._bus.close()

    async def _serve(self, line: OutboxLine) -> None:
        while not await line.lead():
            self._tally.backlog(0)
            await asyncio.sleep(LEAD_POLL_S)
        self._tally.backlog(await line.backlog())
        counted_at = time.monotonic()
        if self._bus is None:
            self._bus = await self._connect()
        await self._bus.ensure_log(LOG)
        while True:
            self._woken.clear()
            events = await line.waiting(BATCH_MAX)
            if events:
                await self._relay(line, self._bus, events)
            self._note("")
            if len(events) < BATCH_MAX:
                self._tally.backlog(0)
                await self._sleep()
            elif time.monotonic() - counted_at > BACKLOG_INTERVAL_S:
                self._tally.backlog(await line.backlog())
                counted_at = time.monotonic()

    async def _relay(self, line: OutboxLine, bus: Bus, events: list[Event]) -> None:
        """Append all together, then forget them; a crash between the two replays ids the bus knows, and it stores none twice."""
        await bus.append_all([Append(event.subject, event.payload, event.id) for event in events])
        if self._relayed is not None:
            await self._relayed(events)
        await line.done([event.id for event in events])

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return

    def _note(self, failing: str) -> None:
        if failing and not self._failing:
            self._log.warning("relay_waits", reason=failing)
        elif self._failing and not failing:
            self._log.info("relay_goes_on")
        self._failing = failing
