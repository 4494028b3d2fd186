"""Callers of a gateway, light enough to stand beside it on a small machine, and what they saw."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from services.gateway.tests.scripted import Message, Wire

PATIENCE_S = 10.0
"""What takes longer, nobody waits for; far above every deadline of the tests."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to; the status is 0 where it was not answered. Times in seconds of the monotonic clock."""

    path: str
    status: int
    began_at: float
    took_s: float
    message: Message | None = None

    @property
    def code(self) -> str:
        """The code of a problem document, "" for anything else."""
        if self.message is None or self.message.get("content-type") != "application/problem+json":
            return ""
        return str(json.loads(self.message.body)["code"])


@dataclass(slots=True)
class Answers:
    """All answers of some callers, in the order in which they came."""

    all: list[Answer] = field(default_factory=list)

    def of(self, path: str, *, since: float = 0.0) -> "Answers":
        """Those to calls of a path that began at `since` or later."""
        return Answers([answer for answer in self.all if answer.path == path and answer.began_at >= since])

    def last(self, path: str, count: int) -> "Answers":
        """The newest to calls of a path."""
        return Answers([answer for answer in self.all if answer.path == path][-count:])

    def __len__(self) -> int:
        return len(self.all)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.all)

    @property
    def codes(self) -> Counter[str]:
        """Problem codes of what was not answered as asked; `status N` for what is no problem document."""
        return Counter(answer.code or f"status {answer.status}" for answer in self.all if answer.status != 200)

    def share_of(self, status: int) -> float:
        return self.statuses[status] / max(1, len(self.all))

    def median_s(self) -> float:
        return median(answer.took_s for answer in self.all)


class Caller:
    """Asks a gateway; as many calls at once as wanted, each on a kept connection or a new one."""

    def __init__(self, port: int) -> None:
        self.answers = Answers()
        self._port = port
        self._idle: list[Wire] = []

    async def ask(self, path: str, method: str = "GET", *, keeps: bool = True) -> Answer:
        """Make one call; never raises for what happens to it."""
        began_at = time.monotonic()
        message: Message | None = None
        wire: Wire | None = None
        lines = [f"{method} {path} HTTP/1.1", "Host: a", *(["Content-Length: 0"] if method == "POST" else []), "", ""]
        try:
            async with asyncio.timeout(PATIENCE_S):
                wire = self._idle.pop() if self._idle and keeps else Wire(*await self._connect())
                wire.received.clear()
                wire.writer.write("\r\n".join(lines).encode())
                message = await wire.message()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # Told by the status.
        finally:
            if wire is not None:
                if message is not None and keeps and message.get("connection") != "close":
                    self._idle.append(wire)
                else:
                    wire.abort()
        answer = Answer(path, message.status if message else 0, began_at, time.monotonic() - began_at, message)
        self.answers.all.append(answer)
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def calls(self, path: str, count: int, *, at_once: int = 8, method: str = "GET") -> Answers:
        """Make so many calls, `at_once` at a time, and return their answers."""
        left = iter(range(count))
        found = Answers()

        async def some() -> None:
            for _ in left:
                found.all.append(await self.ask(path, method))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(some())
        return found

    @asynccontextmanager
    async def steadily(
        self, paths: Iterable[str], *, per_s: float, method: str = "GET", keeps: bool = True
    ) -> AsyncIterator[None]:
        """Call each path so often a second meanwhile, however long answers take; none is left under way at the end."""
        is_over = asyncio.Event()

        async def drive(path: str) -> None:
            begun, began_at = 0, time.monotonic()
            while not is_over.is_set():
                # As many as should have begun by now: a stall of the machine changes the moment, not the number.
                due = int((time.monotonic() - began_at) * per_s) + 1
                for _ in range(begun, due):
                    tasks.create_task(self.ask(path, method, keeps=keeps))
                begun = due
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks:
            for path in paths:
                tasks.create_task(drive(path))
            try:
                yield
            finally:
                is_over.set()

    async def close(self) -> None:
        """Close the kept connections."""
        for wire in self._idle:
            wire.abort()
        for wire in self._idle:
            with contextlib.suppress(ConnectionError):
                await wire.writer.wait_closed()


async def until(is_so: Callable[[], bool], what: str, timeout_s: float = 15.0) -> float:
    """Wait until a condition holds; return how many seconds that took."""
    began_at = time.monotonic()
    while not is_so():
        assert time.monotonic() - began_at < timeout_s, f"{what}: not within {timeout_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began_at
