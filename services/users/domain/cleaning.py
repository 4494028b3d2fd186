"""Cleaning: what is kept for a time is forgotten when that is over, in small batches, by any replica."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import structlog

from shared.errors import Unavailable

BATCH = 500
"""Rows a statement forgets, so that none holds its locks for long."""

Forget = Callable[[int], Awaitable[int]]
"""Forget at most so many records that are over; return how many those were."""


class Cleaner:
    """Runs each job of forgetting until it finds nothing more, again and again; replicas may do so at the same time."""

    def __init__(self, jobs: Mapping[str, Forget], *, every_s: float) -> None:
        self._jobs = jobs
        self._every_s = every_s
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Clean for ever; a service runs it as a background task."""
        while True:
            # Replicas that started together drift apart.
            await asyncio.sleep(self._every_s * random.uniform(0.5, 1.5))
            await self.clean()

    async def clean(self) -> None:
        """Run each job once. A store that is away is tried again at the next round."""
        for name, forget in self._jobs.items():
            total = 0
            try:
                while (count := await forget(BATCH)) > 0:
                    total += count
            except Unavailable as error:
                self._log.warning("cleaning_waits", job=name, reason=str(error))
            if total:
                self._log.info("cleaned", job=name, records=total)
