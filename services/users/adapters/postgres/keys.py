"""Signing keys in PostgreSQL; replicas change them one after the other."""

import asyncpg

from services.users.adapters.postgres.audit import audit_json, audit_rows
from services.users.adapters.postgres.locks import KEY_LOCK
from services.users.adapters.postgres.pool import Database, statement_timeout_s
from services.users.domain.ports import KeyChange
from services.users.model.records import StoredKey

_ALL = (
    "SELECT kid, public_key, sealed_key, created_at, state, state_since FROM signing_keys "
    "ORDER BY created_at DESC, kid DESC LIMIT 100"
)

_PUT = """
INSERT INTO signing_keys (kid, public_key, sealed_key, created_at, state, state_since) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (kid) DO UPDATE SET state = $5, state_since = $6
"""


class PostgresKeys:
    """The signing keys of a database; a KeyStore."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def all(self) -> list[StoredKey]:
        return [_key_of(row) for row in await self._db.rows(_ALL)]

    async def change(self, decide: KeyChange) -> list[StoredKey]:
        async with self._db.connection() as connection, connection.transaction():
            timeout_s = statement_timeout_s()
            await connection.execute("SELECT pg_advisory_xact_lock($1)", KEY_LOCK, timeout=timeout_s)
            before = [_key_of(row) for row in await connection.fetch(_ALL, timeout=timeout_s)]
            keys, entries = decide(before)
            gone = sorted({key.kid for key in before} - {key.kid for key in keys})
            await connection.execute("DELETE FROM signing_keys WHERE kid = ANY($1::text[])", gone, timeout=timeout_s)
            rows = [(k.kid, k.public_key, k.sealed_key, k.created_at, k.state, k.state_since) for k in keys]
            await connection.executemany(_PUT, rows, timeout=timeout_s)
            await connection.execute(audit_rows("$1"), audit_json(*entries), timeout=timeout_s)
            return [_key_of(row) for row in await connection.fetch(_ALL, timeout=timeout_s)]


def _key_of(row: asyncpg.Record) -> StoredKey:
    return StoredKey(
        kid=row["kid"],
        public_key=row["public_key"],
        sealed_key=row["sealed_key"],
        created_at=row["created_at"],
        state=row["state"],
        state_since=row["state_since"],
    )
