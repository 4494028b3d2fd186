"""Sessions in PostgreSQL: one row a log-in, rotated in one statement so that a refresh token works once."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg

from services.users.adapters.postgres.audit import audit_json, audit_rows
from services.users.adapters.postgres.outbox import outbox_rows, outbox_values
from services.users.adapters.postgres.pool import Database
from services.users.adapters.postgres.users import COLUMNS, user_of
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
from services.users.model.records import AuditEntry, Event, Exchange, Session, User
from shared.errors import NotFound

_COLUMNS = "id, user_id, family_hash, refresh_hash, created_at, expires_at, previous_hash, rotated_at, used_at, address, user_agent"

_OPEN = f"""
WITH dropped AS (
    DELETE FROM sessions WHERE user_id = $2 AND expires_at <= $5
), audited AS (
    {audit_rows("$10")}
), added AS (
    INSERT INTO sessions (id, user_id, family_hash, refresh_hash, created_at, expires_at, used_at, address, user_agent)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
)
SELECT count(*) AS before FROM sessions WHERE user_id = $2 AND expires_at > $5
"""  # noqa: S608 - constants only

# Who waits here for the lock of a row that another has just rotated finds the new hashes in it, and makes the exchange again.
_ROTATE = f"""
UPDATE sessions s SET
    refresh_hash = $3, previous_hash = $2, rotated_at = CASE WHEN s.refresh_hash = $2 THEN $4 ELSE s.rotated_at END,
    used_at = $4, address = $6, user_agent = $7
FROM users u
WHERE s.family_hash = $1 AND s.expires_at > $4 AND u.id = s.user_id
    AND (s.refresh_hash = $2 OR (s.previous_hash = $2 AND s.refresh_hash = $3 AND s.rotated_at >= $5))
RETURNING s.id AS session_id, {COLUMNS}
"""  # noqa: S608 - constants only

_END = f"""
WITH ended AS (
    DELETE FROM sessions WHERE user_id = $1 AND ($2::uuid IS NULL OR id = $2) AND id IS DISTINCT FROM $3::uuid RETURNING id
), audited AS (
    {audit_rows("$4", when="ended")}
), told AS (
    {outbox_rows("$5", "$6", "$7", when="ended")}
)
SELECT count(*) AS ended FROM ended
"""  # noqa: S608 - constants only


class PostgresSessions:
    """The sessions of a database; a SessionRepository."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def open(self, session: Session, *, audit: AuditEntry | None = None) -> int:
        try:
            found = await self._db.row(
                _OPEN,
                session.id,
                session.user_id,
                session.family_hash,
                session.refresh_hash,
                session.created_at,
                session.expires_at,
                session.used_at,
                session.address,
                session.user_agent,
                audit_json(audit),
            )
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound("there is no such user") from error
        return int(found["before"]) + 1

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

    async def of_user(self, user_id: str, *, now: datetime) -> list[Session]:
        rows = await self._db.rows(
            f"SELECT {_COLUMNS} FROM sessions WHERE user_id = $1 AND expires_at > $2 ORDER BY id DESC LIMIT $3",  # noqa: S608
            user_id,
            now,
            2 * SESSIONS_PER_USER_MAX,
        )
        return [_session_of(row) for row in rows]

    async def rotate(self, exchange: Exchange) -> tuple[str, User]:
        found = await self._db.row(
            _ROTATE,
            exchange.family_hash,
            exchange.used_hash,
            exchange.next_hash,
            exchange.now,
            exchange.grace_from,
            exchange.client.address,
            exchange.client.user_agent,
        )
        if found is not None:
            return str(found["session_id"]), user_of(found)
        known = await self._db.row(
            "SELECT id, user_id FROM sessions WHERE family_hash = $1 AND expires_at > $2",
            exchange.family_hash,
            exchange.now,
        )
        if known is not None:
            raise RefreshReused(str(known["id"]), str(known["user_id"]))
        raise NotFound("there is no such session")

    async def end(
        self,
        user_id: str,
        *,
        session_id: str = "",
        keep: str = "",
        events: Sequence[Event] = (),
        audit: AuditEntry | None = None,
    ) -> int:
        found = await self._db.row(
            _END, user_id, session_id or None, keep or None, audit_json(audit), *outbox_values(events)
        )
        return int(found["ended"])


def _session_of(row: Any) -> Session:
    return Session(
        id=str(row["id"]),
        user_id=str(row["user_id"]),
        family_hash=row["family_hash"],
        refresh_hash=row["refresh_hash"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        previous_hash=row["previous_hash"],
        rotated_at=row["rotated_at"],
        used_at=row["used_at"],
        address=row["address"] or "",
        user_agent=row["user_agent"] or "",
    )
