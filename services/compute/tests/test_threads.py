"""The thread pool: bounded, and honest about threads that cannot be stopped."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from services.compute.pool.threads import ThreadPool, run_in_thread_pool
from shared.errors import DeadlineExceeded, Unavailable


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    found = threading.Event()
    yield found
    found.set()


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    found = ThreadPool(threads=2)
    yield found
    found.close()


async def until_idle(pool: ThreadPool) -> None:
    async with asyncio.timeout(5):
        while pool.calls:
            await asyncio.sleep(0.002)


async def test_a_call_runs_in_a_thread_of_the_pool(pool: ThreadPool) -> None:
    name = await run_in_thread_pool(lambda: threading.current_thread().name, pool=pool)
    assert name.startswith("blocking")


async def test_an_exception_comes_back_as_it_is(pool: ThreadPool) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await run_in_thread_pool(int, "x", pool=pool)


async def test_a_timeout_error_of_the_function_is_its_own(pool: ThreadPool) -> None:
    def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await run_in_thread_pool(fail, pool=pool)


async def test_the_loop_goes_on_while_a_call_blocks(pool: ThreadPool, gate: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        blocked = group.create_task(run_in_thread_pool(gate.wait, pool=pool))
        while pool.calls == 0:
            await asyncio.sleep(0)
        assert await run_in_thread_pool(abs, -1, pool=pool) == 1
        assert not blocked.done()
        gate.set()
    assert blocked.result() is True


async def test_a_full_pool_refuses_and_takes_again_later(pool: ThreadPool, gate: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(run_in_thread_pool(gate.wait, pool=pool)) for _ in range(pool.calls_max)]
        while pool.calls < pool.calls_max:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable) as refused:
            await run_in_thread_pool(abs, -1, pool=pool)
        assert "Retry-After" in refused.value.headers
        gate.set()
    assert all(call.result() for call in calls)
    await until_idle(pool)
    assert await run_in_thread_pool(abs, -1, pool=pool) == 1


async def test_a_call_past_its_deadline_keeps_its_place_until_it_returns(
    pool: ThreadPool, gate: threading.Event
) -> None:
    with pytest.raises(DeadlineExceeded):
        await run_in_thread_pool(gate.wait, pool=pool, timeout_s=0.02)
    assert pool.calls == 1, "the thread is still taken"
    gate.set()
    await until_idle(pool)


async def test_a_cancelled_call_that_has_not_begun_never_runs(pool: ThreadPool, gate: threading.Event) -> None:
    ran = threading.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(run_in_thread_pool(gate.wait, pool=pool))
        waiting = group.create_task(run_in_thread_pool(ran.set, pool=pool))
        while pool.calls < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.set()
    await until_idle(pool)
    assert not ran.is_set()
