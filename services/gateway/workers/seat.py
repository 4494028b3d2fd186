"""A worker's place in its group: what it inherits from the parent at the fork, and what it owes the parent while it runs."""

import asyncio
import os
import signal
import struct
import time
from dataclasses import dataclass, field
from mmap import mmap

from services.gateway.workers.siblings import Siblings

BEAT_S = 1.0
BEAT = struct.Struct("=Q")

TELLS_PARENT: int = getattr(signal, "SIGRTMIN", signal.SIGUSR1)
"""Sent by a worker that drains: its seat is to be filled. A real-time signal, since two of another kind may become one."""

RELOADED: int = TELLS_PARENT + 1 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2
"""Sent by a worker that read the configuration again for all: who starts from now on is to start with that."""

HEEDED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, TELLS_PARENT, RELOADED})
"""What the parent waits for. A worker keeps them waiting until it can heed them itself, so that none ends a half-started one."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker's seat; `beats` is shared with the parent, 8 bytes a seat."""

    siblings: Siblings
    parent_pid: int
    beats: mmap = field(repr=False)

    @property
    def number(self) -> int:
        """From 1 on; the successor of a worker has the same."""
        return self.siblings.number

    def tell_reloaded(self) -> None:
        """Have the parent read the configuration again, for the workers to come; those that run are told otherwise."""
        os.kill(self.parent_pid, RELOADED)

    async def hold(self, draining: asyncio.Event) -> None:
        """Heed signals, beat every second, tell the parent when the drain begins, and go on until cancelled.

        A background task of the service that starts when its handlers of signals are there.
        """
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        while not draining.is_set():
            BEAT.pack_into(self.beats, (self.number - 1) * BEAT.size, time.monotonic_ns())
            try:
                async with asyncio.timeout(BEAT_S):
                    await draining.wait()
            except TimeoutError:
                continue
        # The one that fills the seat beats from here on.
        os.kill(self.parent_pid, TELLS_PARENT)
