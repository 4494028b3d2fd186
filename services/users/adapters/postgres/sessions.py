"""Sessions in PostgreSQL: one row a log-in, rotated in one statement so that a refresh token works once."""

from datetime import datetime

import asyncpg

from services.users.adapters.postgres.pool import Database
from services.users.adapters.postgres.users import COLUMNS, user_of
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
from services.users.model.records import Session, User
from shared.errors import NotFound

_OPEN = """
WITH dropped AS (
    DELETE FROM sessions WHERE user_id = $2 AND (
        expires_at <= $5
        OR id IN (SELECT id FROM sessions WHERE user_id = $2 ORDER BY id DESC OFFSET $7)
    )
)
INSERT INTO sessions (id, user_id, family_hash, refresh_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)
"""

_ROTATE = f"""
UPDATE sessions s SET refresh_hash = $3 FROM users u
WHERE s.family_hash = $1 AND s.refresh_hash = $2 AND s.expires_at > $4 AND u.id = s.user_id
RETURNING s.id AS session_id, {COLUMNS}
"""  # noqa: S608 - constants only


class PostgresSessions:
    """The sessions of a database; a SessionRepository."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def open(self, session: Session) -> None:
        try:
            await self._db.rows(
                _OPEN,
                session.id,
                session.user_id,
                session.family_hash,
                session.refresh_hash,
                session.created_at,
                session.expires_at,
                SESSIONS_PER_USER_MAX - 1,
            )
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound("there is no such user") from error

    async def user_of(self, session_id: str, *, now: datetime) -> User:
        found = await self._db.row(
            f"SELECT {COLUMNS} FROM sessions s JOIN users u ON u.id = s.user_id "  # noqa: S608 - constants only
            "WHERE s.id = $1 AND s.expires_at > $2",
            session_id,
            now,
        )
        if found is None:
            raise NotFound("there is no such session")
        return user_of(found)

    async def rotate(
        self, *, family_hash: bytes, used_hash: bytes, next_hash: bytes, now: datetime
    ) -> tuple[str, User]:
        found = await self._db.row(_ROTATE, family_hash, used_hash, next_hash, now)
        if found is not None:
            return str(found["session_id"]), user_of(found)
        ended = await self._db.row(
            "DELETE FROM sessions WHERE family_hash = $1 AND expires_at > $2 RETURNING id", family_hash, now
        )
        if ended is not None:
            raise RefreshReused
        raise NotFound("there is no such session")

    async def end(self, session_id: str) -> None:
        await self._db.rows("DELETE FROM sessions WHERE id = $1", session_id)
