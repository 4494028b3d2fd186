"""The pulse: one tick every two seconds on `public:pulse`, once over all replicas, without a leader."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from services.realtime.domain.channels import PULSE
from services.realtime.hub.hub import Hub
from shared.bus.base import BusUnavailable

INTERVAL_S = 2


class Pulse:
    """Every replica publishes every tick under the tick's own id; the log keeps the first and knows the others as duplicates."""

    def __init__(self, hub: Hub, *, clock: Callable[[], float] = time.time) -> None:
        self._hub = hub
        self._clock = clock
        self._failing = False
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Tick for ever; a service runs it as a background task."""
        while True:
            number = int(self._clock() // INTERVAL_S)
            await asyncio.sleep(max(0.0, (number + 1) * INTERVAL_S - self._clock()))
            await self.tick(number + 1)

    async def tick(self, number: int) -> None:
        """Publish the tick of a number; an outage costs ticks and is logged when it begins."""
        at = datetime.fromtimestamp(number * INTERVAL_S, UTC).isoformat().replace("+00:00", "Z")
        try:
            await self._hub.publish(PULSE, {"n": number, "time": at}, message_id=f"pulse-{number}")
        except BusUnavailable as error:
            if not self._failing:
                self._log.warning("pulse_failing", reason=str(error)[:200])
            self._failing = True
        else:
            self._failing = False
