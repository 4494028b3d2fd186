"""The pool: an absent, slow or crashing PostgreSQL becomes Unavailable in time, and the pool heals."""

import asyncio
import socket

import asyncpg
import pytest

from services.users.adapters.postgres import pool as pool_module
from services.users.adapters.postgres.outbox import PostgresOutbox
from services.users.adapters.postgres.pool import open_database
from services.users.adapters.start import StoreError
from shared import context
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, Unavailable


@pytest.fixture
async def database(contract_database):
    async with open_database(contract_database, name="test", connections_max=2) as found:
        yield found


async def terminate_all(url):
    connection = await asyncpg.connect(url)
    await connection.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def test_no_server_is_a_reason_not_to_start(monkeypatch):
    monkeypatch.setattr(pool_module, "START_WAIT_S", 0.2)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"postgresql://user:secret@127.0.0.1:{held.getsockname()[1]}/db"
        with pytest.raises(StoreError, match="PostgreSQL does not answer") as caught:
            async with open_database(url, name="test", connections_max=1):
                pass
        with pytest.raises(Unavailable):
            async with PostgresOutbox(url, name="test").line():
                pass
    assert "secret" not in str(caught.value)


async def test_a_refusal_is_a_reason_not_to_start(contract_database):
    scheme, _, rest = contract_database.partition("://")
    wrong = f"{scheme}://roundhouse:wrong@{rest.rpartition('@')[2]}"

    with pytest.raises(StoreError, match="PostgreSQL refuses us"):
        async with open_database(wrong, name="test", connections_max=1):
            pass


async def test_a_refused_row_is_not_told(database):
    async with database.transaction() as transaction:
        await transaction.row("CREATE TEMPORARY TABLE secrets (hash text CONSTRAINT short CHECK (length(hash) < 5))")
    # The pool hands out the connection used last, which has the table.
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        await database.row("INSERT INTO pg_temp.secrets VALUES ('$argon2id$of-ada')")
    assert caught.value.constraint_name == "short"
    assert "of-ada" not in str(caught.value)
    with pytest.raises(asyncpg.CheckViolationError) as caught:
        async with database.transaction() as transaction:
            await transaction.row("INSERT INTO pg_temp.secrets VALUES ('$argon2id$of-ada')")
    assert "of-ada" not in str(caught.value)


async def test_a_full_pool_is_unavailable_after_a_bounded_wait(database, monkeypatch):
    monkeypatch.setattr(pool_module, "ACQUIRE_TIMEOUT_S", 0.05)
    async with database.connection(), database.connection():
        with pytest.raises(Unavailable) as caught:
            await database.ping()
    assert caught.value.headers["Retry-After"] == "1"
    await database.ping()


async def test_a_slow_statement_is_unavailable_and_frees_its_connection(database, monkeypatch):
    monkeypatch.setattr(pool_module, "STATEMENT_TIMEOUT_S", 0.05)
    for _ in range(4):
        with pytest.raises(Unavailable):
            await database.row("SELECT pg_sleep(30)")
    monkeypatch.setattr(pool_module, "STATEMENT_TIMEOUT_S", 5.0)
    await database.ping()


async def test_the_deadline_of_the_request_comes_first(database):
    token = context.enter(context.RequestContext("r", deadline=Deadline.after(0.05)))
    try:
        with pytest.raises(DeadlineExceeded):
            await database.row("SELECT pg_sleep(30)")
    finally:
        context.leave(token)


async def test_a_silent_store_is_told_of_before_the_deadline(database):
    token = context.enter(context.RequestContext("r", deadline=Deadline.after(1.2)))
    try:
        with pytest.raises(Unavailable) as caught:
            await database.row("SELECT pg_sleep(30)")
        assert not context.deadline().expired
    finally:
        context.leave(token)
    assert caught.value.headers["Retry-After"] == "1"


async def test_the_server_ends_statements_that_nobody_stops(database):
    found = await database.row("SELECT current_setting('statement_timeout') AS statement_timeout")

    assert found["statement_timeout"] == "5s"


async def test_connections_that_were_cut_are_replaced(database, contract_database):
    await asyncio.gather(database.ping(), database.ping())
    await terminate_all(contract_database)

    async with asyncio.timeout(10):
        while True:
            try:
                await database.ping()
            except Unavailable:
                continue
            break
    await asyncio.gather(*(database.ping() for _ in range(10)))


async def test_a_statement_of_ours_that_is_wrong_is_a_bug(database):
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await database.row("SELEKT 1")
    await database.ping()
