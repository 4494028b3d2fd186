"""Rounds: every probe at once, each bounded, again and again; what they say goes to the board."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from services.health.domain.board import Board
from services.health.model import ProbeFailed, Result, Target

AT_ONCE_MAX = 256
JITTER = 0.1
"""Part of the interval; keeps the rounds of several health replicas from meeting for ever."""
TROUBLE_PART = 0.25
"""While anything fails the rounds come four times as often: a start and a recovery show at once."""


class Probe(Protocol):
    @property
    def target(self) -> Target: ...

    async def check(self) -> None:
        """Make one round trip. Raises ProbeFailed; whoever calls bounds it by cancelling."""


class Rounds:
    """Asks what `probes()` returns at the time, every `every_s` (sooner in trouble), each for at most `timeout_s`."""

    def __init__(
        self, probes: Callable[[], Sequence[Probe]], board: Board, *, every_s: float, timeout_s: float
    ) -> None:
        self._probes = probes
        self._board = board
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(AT_ONCE_MAX)
        self._woken = asyncio.Event()
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Go round for ever; a service runs it as a background task."""
        while True:
            started = time.monotonic()
            is_well = await self.once()
            every_s = self._every_s * (1.0 if is_well else TROUBLE_PART)
            pause_s = every_s * random.uniform(1 - JITTER, 1 + JITTER) - (time.monotonic() - started)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause_s)):
                    await self._woken.wait()
            self._woken.clear()

    def wake(self) -> None:
        """Begin the next round at once, as when the replicas are others now."""
        self._woken.set()

    async def once(self) -> bool:
        """Ask every probe once, all at the same time; return whether all are well."""
        probes = self._probes()
        self._board.keep([probe.target for probe in probes])
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._ask(probe)) for probe in probes]
        return all(task.result() for task in asked)

    async def _ask(self, probe: Probe) -> bool:
        async with self._turns:
            started = time.monotonic()
            error = ""
            try:
                async with asyncio.timeout(self._timeout_s):
                    await probe.check()
            except ProbeFailed as failed:
                error = failed.kind
            except TimeoutError:
                error = "timeout"
            except Exception:  # noqa: BLE001 - the edge of a probe: one that is wrong itself must not end the others' round
                self._log.exception("probe_broken", component=probe.target.component)
                error = "error"
            ended = time.monotonic()
            self._board.record(probe.target, Result(error, ended - started, ended))
            return not error
