"""How PostgreSQL finds a page among many users: by an index, whatever the sort, and a search by the indexes of its columns."""

import asyncpg
import pytest

from services.users.adapters.postgres.listing import statement_of
from services.users.adapters.postgres.migrate import migrate, read_migrations
from services.users.model.listing import Position, Sort, UserFilter, UserQuery
from shared.ids import new_id

FILL = """
INSERT INTO users (id, username, username_folded, email, full_name, role, created_at, updated_at)
SELECT gen_random_uuid(), 'User' || n, 'user' || n, md5(n::text) || '@example.com',
    CASE WHEN n % 3 = 0 THEN md5((n + 1)::text) || ' ' || md5((n + 2)::text) END, 'user', now() - n * interval '1 second', now()
FROM generate_series(1, 20000) n
"""


@pytest.fixture
async def connection(postgres_url):
    await migrate(postgres_url, name="test", migrations=read_migrations())
    found = await asyncpg.connect(postgres_url)
    await found.execute(FILL)
    await found.execute("ANALYZE users")
    yield found
    await found.close()


async def plan_of(connection, query):
    sql, values = statement_of(query)
    return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {sql}", *values))


async def test_each_sort_reads_one_page_of_an_index(connection):
    for field, index, key in (
        ("created_at", "users_by_age", None),
        ("username", "users_by_username", "user777"),
        ("email", "users_by_email", "b"),
    ):
        for is_descending in (False, True):
            first = UserQuery(sort=Sort(field, is_descending))
            assert f"using {index}" in await plan_of(connection, first)
            if key:
                later = UserQuery(sort=Sort(field, is_descending), after=Position(key, new_id()))
                plan = await plan_of(connection, later)
                assert f"using {index}" in plan
                assert "Seq Scan" not in plan


async def test_a_search_that_finds_few_asks_the_index_of_each_column(connection):
    plan = await plan_of(connection, UserQuery(filter=UserFilter(q="abcdef")))

    assert "Seq Scan" not in plan
    for index in ("users_by_username", "users_by_email", "users_by_name", "users_by_last_name"):
        assert f"Bitmap Index Scan on {index}" in plan


async def test_a_search_that_finds_many_goes_by_the_order_of_the_list(connection):
    assert "using users_by_age" in await plan_of(connection, UserQuery(filter=UserFilter(q="u")))
