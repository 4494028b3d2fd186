"""Single flight: callers who want the same thing at the same time share one computing of it."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

IN_FLIGHT_MAX = 1024
"""So many different keys may be computed once for all their callers; past it each caller computes for itself."""

_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class _Flight(Generic[_Result]):
    key: str
    task: "asyncio.Task[_Result]"
    waiting: int = 0


class Flights(Generic[_Result]):
    """What is being computed, by key. `joined` counts the callers who found it under way.

    With `is_detached` it does not see the first caller's request, whose deadline need not be that of those who join.
    """

    def __init__(self, name: str, *, is_detached: bool = False) -> None:
        self.joined = 0
        self._name = name
        self._is_detached = is_detached
        self._flights: dict[str, _Flight[_Result]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: str, compute: Callable[[], Awaitable[_Result]]) -> _Result:
        """Return the result for a key, computed by this call or by one that came before; an exception reaches all who wait."""
        flight = self._flights.get(key)
        if flight is not None:
            self.joined += 1
        elif len(self._flights) >= IN_FLIGHT_MAX:
            return await compute()
        else:
            flight = self._start(key, compute)
        return await self._await(flight)

    def drop(self, key: str) -> None:
        """Let nobody join what is under way for a key; those who wait for it already still get it."""
        self._flights.pop(key, None)

    def drop_all(self) -> None:
        """Let nobody join anything that is under way."""
        self._flights.clear()

    def _start(self, key: str, compute: Callable[[], Awaitable[_Result]]) -> _Flight[_Result]:
        async def work() -> _Result:
            return await compute()

        # A task of its own, so that the caller who came first may be cancelled without failing those who joined.
        surroundings = contextvars.Context() if self._is_detached else None
        task = asyncio.get_running_loop().create_task(work(), name=f"cache {self._name}", context=surroundings)
        flight = self._flights[key] = _Flight(key, task)

        def landed(done: "asyncio.Task[_Result]") -> None:
            self._forget(flight)
            if not done.cancelled():
                done.exception()  # where every caller has gone, nobody else looks at it

        task.add_done_callback(landed)
        return flight

    def _forget(self, flight: _Flight[_Result]) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _await(self, flight: _Flight[_Result]) -> _Result:
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Out of the map first: who calls now must not join what is being cancelled.
                self._forget(flight)
                flight.task.cancel()
