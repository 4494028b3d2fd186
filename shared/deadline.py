"""Deadlines: how long an answer is still wanted, from the gateway through every call that serves it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.errors import DeadlineExceeded

HEADER = "X-Request-Timeout-Ms"
HEADER_MS_MAX = 600_000
"""Ten minutes; a larger wish from outside is cut to this."""

TICK_S = 0.01
"""What `patient_timeout` counts at most of each turn of a loop that is late.

A call to Valkey needs several turns. With 1,000 busy connections and twice this, 80 ms ran out for a healthy server in 3 of 4
runs, with this in none of 11. The price is paid where the server is silent and the loop late: giving up then took 0.3 to 0.8 s
instead of 0.1 to 0.2.
"""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point of the monotonic clock after which nobody waits for the answer."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @classmethod
    def from_header(cls, value: str) -> "Deadline | None":
        """Read `X-Request-Timeout-Ms` (whole milliseconds left, 0 or less: already over); None where it is not a number."""
        text = value.strip()
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
            return None
        return cls.after(min(int(text), HEADER_MS_MAX) / 1000)

    def remaining_s(self) -> float:
        """Seconds left, 0.0 when it has passed."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def header_value(self) -> str:
        """What is left, for the next hop."""
        return str(int(self.remaining_s() * 1000))


def bounded_s(deadline: Deadline | None, limit_s: float) -> float:
    """Return the seconds a step may take: its own limit, or less where the request's deadline comes first."""
    return limit_s if deadline is None else min(limit_s, deadline.remaining_s())


@asynccontextmanager
async def limit(deadline: Deadline | None, limit_s: float, what: str) -> AsyncIterator[None]:
    """Bound a block by its own limit and by the request's deadline. Raises DeadlineExceeded naming `what`."""
    seconds = bounded_s(deadline, limit_s)
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{what} took longer than {seconds:.1f} s") from error


@asynccontextmanager
async def patient_timeout(limit_s: float) -> AsyncIterator[None]:
    """Like `asyncio.timeout`, for calls to what answers within milliseconds: the lateness of this loop is not held against them.

    A loop with a thousand requests at hand reads an answer long after it came, and a timer that is due then would win over it. So the
    time is counted in steps of `TICK_S`, one for each turn of the loop at most. Raises TimeoutError.
    """
    loop = asyncio.get_running_loop()
    left = max(1, math.ceil(limit_s / TICK_S))
    step_s = limit_s / left
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(step_s, tick)
        else:
            scope.reschedule(loop.time())

    async with asyncio.timeout(None) as scope:
        timer = loop.call_later(step_s, tick)
        try:
            yield
        finally:
            timer.cancel()
