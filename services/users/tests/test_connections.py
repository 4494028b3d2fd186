"""The connections kept at hand: used again, given back in time, and never handed out when they are of no use."""

import asyncio

import asyncpg
import pytest

from services.users.adapters.postgres.connections import KEPT_S, Connections

WAIT_S = 5.0


@pytest.fixture
async def pool(contract_database):
    async with asyncpg.create_pool(contract_database, min_size=1, max_size=2) as found:
        yield found


@pytest.fixture
async def connections(pool):
    found = Connections(pool, 2)
    yield found
    await found.close()


async def backend(connections):
    async with connections.use(WAIT_S) as connection:
        return await connection.fetchval("SELECT pg_backend_pid()")


async def test_a_connection_is_used_again_without_the_pool(connections, pool):
    first = await backend(connections)
    assert pool.get_idle_size() == 0
    assert [await backend(connections) for _ in range(3)] == [first] * 3


async def test_what_postgresql_refuses_costs_no_connection(connections, pool):
    first = await backend(connections)
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with connections.use(WAIT_S) as connection:
            await connection.fetchval("SELECT 1 / 0")
    assert pool.get_idle_size() == 0
    assert await backend(connections) == first


@pytest.mark.parametrize("fault", [ValueError, asyncio.CancelledError])
async def test_after_any_other_fault_a_connection_goes_to_the_pool(fault, connections, pool):
    with pytest.raises(fault):
        async with connections.use(WAIT_S):
            raise fault
    assert pool.get_idle_size() == 1
    await backend(connections)


async def test_a_connection_goes_back_now_and_then(pool):
    now = [1000.0]
    connections = Connections(pool, 2, clock=lambda: now[0])
    await backend(connections)
    now[0] += KEPT_S - 1
    await backend(connections)
    assert pool.get_idle_size() == 0
    now[0] += 1
    await backend(connections)
    assert pool.get_idle_size() == 1


async def test_a_connection_that_ended_while_it_was_kept_is_not_handed_out(connections, contract_database):
    ended = await backend(connections)
    gone = asyncio.Event()
    async with connections.use(WAIT_S) as connection:
        connection.add_termination_listener(lambda _: gone.set())
    other = await asyncpg.connect(contract_database)
    await other.fetchval("SELECT pg_terminate_backend($1)", ended)
    await other.close()
    async with asyncio.timeout(WAIT_S):
        await gone.wait()
    assert await backend(connections) != ended


async def test_no_more_than_the_size_are_out_and_who_waits_is_next(connections):
    async with asyncio.TaskGroup() as group, connections.use(WAIT_S), connections.use(WAIT_S):
        with pytest.raises(TimeoutError):
            async with connections.use(0.01):
                pass
        waiting = group.create_task(backend(connections))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert waiting.result()


async def test_who_cannot_get_a_connection_gives_the_place_back(connections, pool):
    await pool.close()
    for _ in range(3):
        with pytest.raises(asyncpg.InterfaceError):
            await backend(connections)


async def test_after_closing_nothing_is_kept(connections, pool):
    async with connections.use(WAIT_S):
        await backend(connections)
        await connections.close()
        assert pool.get_idle_size() == 1
    assert pool.get_idle_size() == 2
