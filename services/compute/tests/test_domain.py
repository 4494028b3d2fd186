"""The bounded gather and the loop watch."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compute.domain import demonstrate_overlap, gather_with_concurrency, watched_loop


class Gate:
    """Counts who is inside; each waits until the gate opens."""

    def __init__(self) -> None:
        self.inside = 0
        self.inside_max = 0
        self.begun: list[int] = []
        self.open = asyncio.Event()

    async def enter(self, number: int) -> int:
        self.begun.append(number)
        self.inside += 1
        self.inside_max = max(self.inside_max, self.inside)
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return number


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_at_most_limit_run_at_once_and_results_keep_their_order() -> None:
    gate = Gate()
    async with asyncio.TaskGroup() as group:
        gathered = group.create_task(gather_with_concurrency(3, *(gate.enter(n) for n in range(8))))
        await settle()
        assert (gate.inside, gate.begun) == (3, [0, 1, 2])
        gate.open.set()
    assert gathered.result() == list(range(8))
    assert gate.inside_max == 3


@given(st.integers(1, 6), st.integers(0, 15))
def test_the_bound_holds_for_every_size(limit: int, number: int) -> None:
    running, running_max = 0, 0

    async def work() -> int:
        nonlocal running, running_max
        running += 1
        running_max = max(running_max, running)
        await asyncio.sleep(0)
        running -= 1
        return running_max

    assert len(asyncio.run(gather_with_concurrency(limit, *[work] * number))) == number
    assert running_max == min(limit, number)


async def test_a_factory_is_called_only_when_its_turn_comes() -> None:
    gate = Gate()
    called: list[int] = []

    def factory(number: int) -> object:
        def make() -> object:
            called.append(number)
            return gate.enter(number)

        return make

    async with asyncio.TaskGroup() as group:
        group.create_task(gather_with_concurrency(2, *(factory(n) for n in range(5))))  # type: ignore[arg-type]
        await settle()
        assert called == [0, 1]
        gate.open.set()
    assert called == [0, 1, 2, 3, 4]


async def test_the_first_exception_is_raised_as_it_is_and_the_rest_is_cancelled() -> None:
    gate = Gate()

    async def fail() -> int:
        raise LookupError("this one")

    with pytest.raises(LookupError, match="this one"):
        # The last ones never begin; unclosed they would warn, and warnings are errors here.
        await gather_with_concurrency(2, gate.enter(1), fail(), gate.enter(2), gate.enter(3))
    assert gate.inside == 0


async def test_cancelling_cancels_all() -> None:
    gate = Gate()
    async with asyncio.TaskGroup() as group:
        gathered = group.create_task(gather_with_concurrency(2, *(gate.enter(n) for n in range(4))))
        await settle()
        gathered.cancel()
    assert gathered.cancelled()
    assert (gate.inside, gate.begun) == (0, [0, 1])


async def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        await gather_with_concurrency(0, Gate().enter(1))


async def test_the_demonstration_tells_what_it_saw() -> None:
    seen = await demonstrate_overlap(10, 5)
    assert (seen.tasks, seen.limit, seen.max_in_flight) == (10, 5, 5)
    # Five at a time really overlapped: one after another would have taken far longer.
    assert seen.duration_ms < seen.serial_ms / 2

    alone = await demonstrate_overlap(3, 1)
    assert alone.max_in_flight == 1
    assert alone.duration_ms >= alone.serial_ms * 0.99


async def test_the_watch_sees_a_blocked_loop_and_a_free_one() -> None:
    async with watched_loop() as blocked:
        time.sleep(0.1)
    assert blocked.max_s >= 0.1

    async with watched_loop() as late:
        await asyncio.sleep(0.01)
        time.sleep(0.1)
        await asyncio.sleep(0)
    assert late.max_s >= 0.05

    async with watched_loop() as free:
        await asyncio.to_thread(time.sleep, 0.1)
    assert free.max_s < 0.1
