"""Memory that a burst of hashes leaves behind: given back to the system once the hashing has been quiet for a while.

Each hash takes 19 MiB for 20 ms. glibc keeps that for the next one, in an arena per thread where no trimming reaches it: 40 MiB more
on two cores for ever. So there is one arena, and it is trimmed. Returning memory after each hash instead (mmap every time) was measured
to double the time of a hash.
"""

import asyncio
import ctypes
from collections.abc import Callable

QUIET_S = 10.0
_M_ARENA_MAX = -8
"""glibc's name for the number of arenas, from malloc.h."""


def keep_one_arena() -> None:
    """Make threads that begin from now on share the main arena; does nothing where the C library knows no mallopt."""
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Return free heap memory to the system; does nothing where the C library knows no malloc_trim (musl, macOS)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeapTrimmer:
    """Trims once after every burst of uses; `used` is called from the event loop."""

    def __init__(self, *, quiet_s: float = QUIET_S, trim: Callable[[], None] = trim_heap) -> None:
        self._quiet_s = quiet_s
        self._trim = trim
        self._is_used = asyncio.Event()

    def used(self) -> None:
        self._is_used.set()

    async def run(self) -> None:
        """Watch for ever; a service runs it as a background task."""
        while True:
            await self._is_used.wait()
            while self._is_used.is_set():
                self._is_used.clear()
                await asyncio.sleep(self._quiet_s)
            await asyncio.to_thread(self._trim)
