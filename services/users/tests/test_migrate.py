"""Migrations: once, whole, and by one replica at a time."""

import asyncio

import asyncpg
import pytest

from services.users.adapters.database import open_store
from services.users.adapters.postgres.migrate import Migration, migrate, read_migrations
from services.users.adapters.start import StoreError

FIRST = Migration(1, "0001_first", "CREATE TABLE first (id int PRIMARY KEY); INSERT INTO first VALUES (1)")
SECOND = Migration(2, "0002_second", "ALTER TABLE first ADD COLUMN name text NOT NULL DEFAULT 'x'")


async def rows(url, sql):
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def test_a_migration_is_applied_once(postgres_url):
    assert await migrate(postgres_url, name="a", migrations=[FIRST]) == ["0001_first"]
    assert await migrate(postgres_url, name="a", migrations=[FIRST]) == []
    assert await migrate(postgres_url, name="a", migrations=[FIRST, SECOND]) == ["0002_second"]
    assert await rows(postgres_url, "SELECT * FROM first") == [(1, "x")]


async def test_replicas_that_start_together_apply_each_once(postgres_url):
    applied = await asyncio.gather(
        *(migrate(postgres_url, name=f"users-{n}", migrations=[FIRST, SECOND]) for n in range(5))
    )

    assert sorted(name for names in applied for name in names) == ["0001_first", "0002_second"]
    assert await rows(postgres_url, "SELECT count(*) FROM first") == [(1,)]


async def test_a_failing_migration_leaves_nothing_and_says_which_error(postgres_url):
    broken = Migration(2, "0002_broken", "CREATE TABLE half (id int); SELECT nothing FROM nowhere")

    with pytest.raises(StoreError, match="nowhere"):
        await migrate(postgres_url, name="a", migrations=[FIRST, broken])

    assert await rows(postgres_url, "SELECT number FROM schema_migrations") == [(1,)]
    assert await rows(postgres_url, "SELECT 1 FROM pg_tables WHERE tablename = 'half'") == []
    assert await migrate(postgres_url, name="a", migrations=[FIRST, SECOND]) == ["0002_second"]


async def test_a_migration_changed_after_it_was_applied_is_refused(postgres_url):
    await migrate(postgres_url, name="a", migrations=[FIRST])

    with pytest.raises(StoreError, match="0001_first was applied in another form"):
        await migrate(postgres_url, name="a", migrations=[Migration(1, "0001_first", FIRST.sql + " ")])


async def test_a_database_that_is_ahead_is_left_alone(postgres_url):
    await migrate(postgres_url, name="a", migrations=[FIRST, SECOND])

    assert await migrate(postgres_url, name="old", migrations=[FIRST]) == []


async def test_our_own_migrations_run_twice_and_by_many(postgres_url):
    async def start(name):
        async with open_store(postgres_url, name=name) as store:
            await store.ping()

    await asyncio.gather(*(start(f"users-{n}") for n in range(3)))
    await start("users-4")

    assert await rows(postgres_url, "SELECT number, name FROM schema_migrations") == [
        (migration.number, migration.name) for migration in read_migrations()
    ]


def test_badly_named_or_doubled_files_are_refused(tmp_path):
    (tmp_path / "0001_users.sql").write_text("SELECT 1")
    assert [migration.name for migration in read_migrations(tmp_path)] == ["0001_users"]
    (tmp_path / "0001_other.sql").write_text("SELECT 1")
    with pytest.raises(StoreError, match="same number"):
        read_migrations(tmp_path)
    (tmp_path / "0001_other.sql").rename(tmp_path / "next.sql")
    with pytest.raises(StoreError, match=r"next\.sql"):
        read_migrations(tmp_path)
