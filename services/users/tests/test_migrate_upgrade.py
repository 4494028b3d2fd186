"""Our own migrations on full tables: nothing is lost, replicas start together, and the former release works on beside them."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from services.users.adapters.database import open_store
from services.users.adapters.postgres.migrate import migrate, read_migrations
from services.users.domain.events import event_of
from services.users.tests import former_release as former
from shared.ids import new_id

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

USERS = 100_000
FULL = f"""
INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'User' || n, 'user' || n, 'user' || n || '@example.com',
    CASE WHEN n % 3 > 0 THEN 'Given' || n % 100 || ' Family' || n % 5000 END, CASE WHEN n = 1 THEN 'admin' ELSE 'user' END,
    1 + n % 7, now() - n * interval '1 minute', now()
FROM generate_series(1, {USERS}) AS n;
INSERT INTO credentials SELECT id, 'hash of ' || username FROM users;
INSERT INTO sessions (id, user_id, family_hash, refresh_hash, created_at, expires_at)
SELECT gen_random_uuid(), id, decode(md5(username), 'hex'), decode(md5(email), 'hex'), now(), now() + interval '1 day' FROM users;
INSERT INTO outbox (id, subject, payload) SELECT id, 'evt.users.user.created.v1', '\\x7b7d' FROM users ORDER BY id LIMIT 5000;
INSERT INTO signing_keys (kid, public_key, sealed_key, created_at) VALUES ('k', '\\x00', '\\x00', now());
"""
COUNTS = {"users": USERS, "credentials": USERS, "sessions": USERS, "outbox": 5000, "signing_keys": 1}


@pytest.fixture
async def connection(postgres_url):
    found = await asyncpg.connect(postgres_url)
    yield found
    await found.close()


@pytest.fixture
async def full(postgres_url, connection):
    """A database of the former release, full."""
    known = [migration for migration in read_migrations() if migration.name <= former.MIGRATION]
    assert await migrate(postgres_url, name="former", migrations=known) == [former.MIGRATION]
    await connection.execute(FULL, timeout=60)
    return postgres_url


async def counts(connection):
    return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in COUNTS}


async def digest(connection):
    """A text that changes with anything that the former release stored of users."""
    return await connection.fetchval(
        "SELECT md5(string_agg(md5(row(id, username, username_folded, email, full_name, role, version, created_at)::text), '' "
        "ORDER BY id)) FROM users"
    )


async def upgrade(url, name="new"):
    return await migrate(url, name=name, migrations=read_migrations())


def new_names():
    return [migration.name for migration in read_migrations() if migration.name > former.MIGRATION]


async def test_full_tables_keep_every_row_and_the_new_release_works_on_them(full, connection, make_user):
    before = await digest(connection)

    applied = await asyncio.gather(*(upgrade(full, f"users-{n}") for n in range(3)))

    assert sorted(name for names in applied for name in names) == new_names()
    assert await counts(connection) == COUNTS
    assert await digest(connection) == before
    async with open_store(full, name="new") as store:
        old = (await store.users.find_login("user77")).user
        assert (old.username, old.version, old.email_verified_at) == ("User77", 1 + 77 % 7, None)
        assert (await store.users.read_json(old.id))[0] == old.version
        assert await store.users.has_admin()
        assert [key.kid for key in await store.keys.all()] == ["k"]
        added = make_user("Ada")
        await store.users.add(added, "hash", event_of(added, "created"))
        await store.users.remove(old.id, event_of(old, "deleted"), expected_version=old.version)
        async with store.outbox.line() as line:
            assert await line.backlog() == 5002


async def test_an_empty_and_a_full_database_end_with_the_same_schema(full, connection):
    await upgrade(full)
    upgraded = await schema(connection)
    name = f"t_{new_id().replace('-', '')}"
    await connection.execute(f"CREATE DATABASE {name}")
    try:
        url = f"{full.rpartition('/')[0]}/{name}"
        await upgrade(url)
        fresh = await asyncpg.connect(url)
        try:
            assert await schema(fresh) == upgraded
        finally:
            await fresh.close()
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def schema(connection):
    columns = await connection.fetch(
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
        "WHERE table_schema = 'public' ORDER BY table_name, column_name"
    )
    indexes = await connection.fetch("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname")
    return [tuple(row) for row in (*columns, *indexes)]


async def test_every_statement_of_the_former_release_works_on_the_new_schema(postgres_url, connection):
    await upgrade(postgres_url)
    now = datetime.now(UTC)

    left = await former.life_of_a_user(connection, new_id, now, now + timedelta(days=1))

    await connection.execute(former.ADD_KEY, "k1", b"public", b"sealed", now)
    await connection.execute(former.ADD_KEY, "k2", b"public", b"sealed", now)
    assert [row["kid"] for row in await connection.fetch(former.KEYS)] == ["k1"]
    waiting = await connection.fetch(former.WAITING, 100)
    assert [row["subject"] for row in waiting] == left
    assert await connection.fetchval(former.BACKLOG, 1000) == len(left)
    await connection.execute(former.DONE, [row["id"] for row in waiting], 1000)
    assert await connection.fetchval(former.BACKLOG, 1000) == 0
    assert await connection.fetchrow(former.HAS_ADMIN) is None
    assert await migrate(postgres_url, name="former", migrations=read_migrations()[:1]) == []


async def test_the_former_release_writes_on_while_full_tables_are_upgraded(full, connection):
    is_over, lives = asyncio.Event(), 0

    async def replica():
        nonlocal lives
        own = await asyncpg.connect(full, server_settings={"statement_timeout": "5000"})
        try:
            while not is_over.is_set():
                now = datetime.now(UTC)
                await former.life_of_a_user(own, new_id, now, now + timedelta(days=1))
                lives += 1
        finally:
            await own.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(replica())
        while lives < 10:
            await asyncio.sleep(0.01)
        assert await upgrade(full) == new_names()
        upgraded_at = lives
        while lives < upgraded_at + 10:
            await asyncio.sleep(0.01)
        is_over.set()

    assert await counts(connection) == {**COUNTS, "outbox": 5000 + 4 * lives}


async def test_each_release_reads_what_the_other_wrote(postgres_url, connection, make_user):
    now = datetime.now(UTC)
    async with open_store(postgres_url, name="new") as store:
        user = make_user("Ada")
        await store.users.add(user, "hash", event_of(user, "created"))
        found = await connection.fetchrow(former.FIND_BY_NAME, "ada")
        assert (str(found["id"]), found["password_hash"]) == (user.id, "hash")
        changed = (user.id, "Ada", "ada", user.email, "By the former", "user", 2, now, 1)
        event = (new_id(), "evt.users.user.updated.v1", b"{}")
        assert await connection.fetchrow(former.REPLACE, *changed, None, None, *event) is not None
        assert (await store.users.get(user.id)).full_name == "By the former"
        await store.users.remove(user.id, event_of(user, "deleted"), expected_version=2, deleted_at=now)
        assert await connection.fetchrow(former.GET, user.id) is None
        # The name is free at once, for either.
        again = (new_id(), "Ada", "ada", user.email, None, "user", 1, now, now, "hash")
        await connection.execute(former.ADD, *again, new_id(), "evt.users.user.created.v1", b"{}")
        assert (await store.users.find_login("ada")).user.id == again[0]
