"""Migrations: numbered SQL files, forward only, each applied once and whole, by one replica while the others wait."""

import asyncio
import hashlib
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import structlog

from services.users.adapters.postgres.locks import MIGRATION_LOCK
from services.users.adapters.postgres.pool import connect
from services.users.adapters.start import StoreError

FOLDER = Path(__file__).parents[2] / "migrations"
WAIT_S = 60.0
"""For the lock and for one migration."""

LOCK_TIMEOUT_MS = 500
"""Under PostgreSQL's deadlock_timeout (1 s): where a migration and a write wait for each other it is the migration that gives way."""
_NAME = re.compile(r"(?P<number>\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path = FOLDER) -> list[Migration]:
    """Return the migrations by number. Raises StoreError when two have the same one or a name does not fit."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise StoreError(f"the migration {path.name} is not named like 0001_users.sql")
        found.append(Migration(int(match["number"]), path.stem, path.read_text(encoding="utf-8")))
    if len({migration.number for migration in found}) != len(found):
        raise StoreError("two migrations have the same number")
    return found


async def migrate(url: str, *, name: str, migrations: list[Migration]) -> list[str]:
    """Apply what is missing and return the names applied.

    Migrations that the database has and we do not know are left alone: a newer version runs beside us during a roll-out.
    Raises StoreError when one that was applied has changed since.
    """
    connection = await connect(url, name=f"{name}-migrate")
    try:
        await connection.execute(f"SET lock_timeout = '{int(WAIT_S * 1000)}ms'")
        await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK, timeout=WAIT_S)
        return await _apply_missing(connection, migrations)
    except (asyncpg.PostgresError, OSError) as error:
        raise StoreError(f"the database could not be migrated: {type(error).__name__}: {error}") from error
    finally:
        # The lock goes with the connection.
        await connection.close(timeout=WAIT_S)


async def _apply_missing(connection: asyncpg.Connection, migrations: list[Migration]) -> list[str]:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations ("
        "number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, "
        "applied_at timestamptz NOT NULL DEFAULT now())"
    )
    rows = await connection.fetch("SELECT number, checksum FROM schema_migrations")
    known = {row["number"]: row["checksum"] for row in rows}
    applied = []
    for migration in migrations:
        checksum = known.get(migration.number)
        if checksum is None:
            await _apply(connection, migration)
            applied.append(migration.name)
        elif checksum != migration.checksum:
            raise StoreError(f"the migration {migration.name} was applied in another form: add a new one instead")
    return applied


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    """Apply one migration; it gives way to replicas that write, and is tried again."""
    give_up_at = time.monotonic() + WAIT_S
    while True:
        try:
            await _try_apply(connection, migration)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.3))
        else:
            break
    structlog.get_logger().info("migrated", migration=migration.name)


async def _try_apply(connection: asyncpg.Connection, migration: Migration) -> None:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        await connection.execute(migration.sql, timeout=WAIT_S)
        await connection.execute(
            "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
            migration.number,
            migration.name,
            migration.checksum,
        )
