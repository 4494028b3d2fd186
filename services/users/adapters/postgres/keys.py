"""Signing keys in PostgreSQL; replicas that start together agree on one."""

from services.users.adapters.postgres.locks import KEY_LOCK
from services.users.adapters.postgres.pool import Database, statement_timeout_s
from services.users.model.records import StoredKey


class PostgresKeys:
    """The signing keys of a database; a KeyStore."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def all(self) -> list[StoredKey]:
        rows = await self._db.rows(
            "SELECT kid, public_key, sealed_key, created_at FROM signing_keys ORDER BY created_at DESC, kid DESC LIMIT 100"
        )
        return [StoredKey(row["kid"], row["public_key"], row["sealed_key"], row["created_at"]) for row in rows]

    async def add_first(self, key: StoredKey) -> list[StoredKey]:
        async with self._db.connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", KEY_LOCK, timeout=statement_timeout_s())
            await connection.execute(
                "INSERT INTO signing_keys (kid, public_key, sealed_key, created_at) "
                "SELECT $1, $2, $3, $4 WHERE NOT EXISTS (SELECT 1 FROM signing_keys)",
                key.kid,
                key.public_key,
                key.sealed_key,
                key.created_at,
                timeout=statement_timeout_s(),
            )
        return await self.all()
