"""The pool by itself: its bounds, its waiting and what becomes of connections whose waiter gave up."""

import asyncio

import pytest

from services.gateway.lane import pool as pool_module
from services.gateway.lane.connection import UpstreamConnection
from services.gateway.lane.pool import ConnectFailed, Pool
from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import echo_target
from shared.endpoints import Address
from shared.errors import Unavailable


@pytest.fixture
async def address(serve) -> Address:
    upstream = await serve(echo_target)
    return "127.0.0.1", upstream.port


async def used(connection: UpstreamConnection) -> UpstreamConnection:
    """Let a connection serve one request."""
    connection.start(is_head_request=False)
    connection.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    await connection.response_head()
    while not connection.take()[1]:
        await connection.wait()
    return connection


async def test_last_used_connection_is_taken_first(address):
    pool = Pool()
    one, other = await used(await pool.acquire(address)), await used(await pool.acquire(address))
    pool.release(one)
    pool.release(other)
    assert await pool.acquire(address) is other
    assert await pool.acquire(address) is one


async def test_fresh_connection_is_none_of_the_kept(address):
    pool = Pool()
    kept = await used(await pool.acquire(address))
    pool.release(kept)
    assert await pool.acquire(address, is_fresh=True) is not kept


async def test_unfinished_connection_is_not_kept(address):
    pool = Pool()
    connection = await pool.acquire(address)
    connection.start(is_head_request=False)
    pool.release(connection)
    await eventually(lambda: pool.connection_count == 0)


async def test_a_service_that_says_its_last_and_reads_no_more_is_let_go_at_once():
    is_over = asyncio.Event()

    async def half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write_eof()
        await is_over.wait()
        writer.transport.abort()

    pool = Pool()
    async with await asyncio.start_server(half_close, "127.0.0.1", 0) as server:
        connection = await pool.acquire(server.sockets[0].getsockname())
        connection.start(is_head_request=False)
        # More than the sockets' buffers hold.
        connection.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 50_000_000)
        try:
            await eventually(lambda: connection.is_failed)
            assert pool.connection_count == 0
        finally:
            is_over.set()


async def test_full_pool_hands_the_next_free_connection_to_whoever_waits(address):
    pool = Pool(connections_max=1)
    first = await used(await pool.acquire(address))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(pool.acquire(address))
        await asyncio.sleep(0)
        assert not waiting.done()
        pool.release(first)
    assert waiting.result() is first
    assert pool.connection_count == 1


async def test_lost_connection_lets_whoever_waits_make_one(address):
    pool = Pool(connections_max=1)
    first = await pool.acquire(address)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(pool.acquire(address))
        await asyncio.sleep(0)
        first.abort()
    assert waiting.result() is not first
    assert pool.connection_count == 1


async def test_waiting_has_an_end(address, monkeypatch):
    monkeypatch.setattr(pool_module, "WAIT_S_MAX", 0.02)
    pool = Pool(connections_max=1)
    held = await used(await pool.acquire(address))
    with pytest.raises(Unavailable):
        await pool.acquire(address)
    pool.release(held)
    assert await pool.acquire(address) is held


async def test_waiting_line_has_a_limit(address, monkeypatch):
    monkeypatch.setattr(pool_module, "WAITERS_MAX", 1)
    pool = Pool(connections_max=1)
    held = await used(await pool.acquire(address))
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.acquire(address))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await pool.acquire(address)
        pool.release(held)


async def test_connection_handed_to_a_waiter_that_gave_up_is_not_lost(address):
    pool = Pool(connections_max=1)
    held = await used(await pool.acquire(address))
    waiting = asyncio.get_running_loop().create_task(pool.acquire(address))
    await asyncio.sleep(0)
    pool.release(held)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await pool.acquire(address) is held


async def test_waiter_that_gave_up_leaves_the_line(address):
    pool = Pool(connections_max=1)
    held = await used(await pool.acquire(address))
    waiting = asyncio.get_running_loop().create_task(pool.acquire(address))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    pool.release(held)
    assert await pool.acquire(address) is held


async def test_refused_connection_gives_its_place_back(unused_address):
    pool = Pool(connections_max=1)
    for _ in range(3):
        with pytest.raises(ConnectFailed):
            await pool.acquire(unused_address)
    assert pool.connection_count == 0


async def test_address_that_is_gone_keeps_no_connections(address):
    pool = Pool()
    idle, busy = await used(await pool.acquire(address)), await used(await pool.acquire(address))
    pool.release(idle)
    pool.keep_only(())
    await eventually(lambda: pool.connection_count == 1)
    pool.release(busy)
    await eventually(lambda: pool.connection_count == 0)


async def test_many_exchanges_keep_to_the_limit(address):
    pool = Pool(connections_max=3)
    most = 0

    async def exchange() -> None:
        nonlocal most
        for _ in range(5):
            connection = await pool.acquire(address)
            most = max(most, pool.connection_count)
            await used(connection)
            pool.release(connection)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(exchange())
    assert most <= 3
