"""Traffic while something happens to the fleet, and what the callers saw of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2

CALLERS = 4
"""Of each path, each with one call in flight."""


@dataclass(slots=True)
class Tally:
    """Answers by status; calls that were not answered have the status 0."""

    statuses: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def count(self, status: int, text: str = "") -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status != 200:
            self.problems.append(f"{status} {text[:200]}")

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)


def assert_none_lost(tally: Tally) -> None:
    """Check that every GET was answered as it should be, whatever was done to the replicas meanwhile."""
    assert tally.failed == 0, f"{tally.statuses} {tally.problems[:5]}"


async def during(
    url: str, headers: dict[str, str], tallies: dict[str, Tally], work: Callable[[], Awaitable[None]]
) -> None:
    """Keep callers busy on every path while `work` runs, and a little before and after."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for path, tally in tallies.items():
            for _ in range(CALLERS):
                tasks.create_task(_call(url, path, headers, tally, stop))
        await _more(tallies, 20)
        await work()
        await _more(tallies, 50)
        stop.set()


async def _call(url: str, path: str, headers: dict[str, str], tally: Tally, stop: asyncio.Event) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=15, trust_env=False) as client:
        while not stop.is_set():
            try:
                response = await client.get(path, headers=headers)
            except httpx2.HTTPError as error:
                tally.count(0, type(error).__name__)
                await asyncio.sleep(0.05)  # a port that refuses would otherwise be asked in a tight loop
            else:
                tally.count(response.status_code, response.text)


async def _more(tallies: dict[str, Tally], more: int) -> None:
    """Wait until every path has had so many further good answers."""
    wanted = {path: tally.statuses.get(200, 0) + more for path, tally in tallies.items()}
    async with asyncio.timeout(60):
        while any(tallies[path].statuses.get(200, 0) < count for path, count in wanted.items()):
            await asyncio.sleep(0.02)
