"""Users in PostgreSQL: each write is one statement that stores the record, its credentials and its event, or nothing."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from services.users.adapters.postgres.audit import audit_json, audit_rows
from services.users.adapters.postgres.idempotency import finish_rows, finish_values
from services.users.adapters.postgres.listing import listed_of, statement_of
from services.users.adapters.postgres.mail import letter_json, letter_parts
from services.users.adapters.postgres.outbox import outbox_rows, outbox_values
from services.users.adapters.postgres.pool import Statements
from services.users.adapters.postgres.view import view_json
from services.users.domain.ports import ClaimLost, VersionChanged
from services.users.domain.users import taken
from services.users.model.listing import Listed, UserQuery
from services.users.model.records import AddedUser, AuditEntry, Credentials, DeletedUser, Event, Finished, Letter, User
from services.users.model.text import fold
from shared.errors import Conflict, NotFound

COLUMNS = "u.id, u.username, u.email, u.full_name, u.role, u.version, u.created_at, u.updated_at, u.email_verified_at"

_ADD = f"""
WITH added AS (
    INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at, email_verified_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $15)
), secret AS (
    INSERT INTO credentials (user_id, password_hash) VALUES ($1, $10)
), audited AS (
    {audit_rows("$14")}
), {letter_parts("$16")}
INSERT INTO outbox (id, subject, payload) VALUES ($11, $12, $13) RETURNING id
"""  # noqa: S608 - constants only

# The same where an answer is kept under an idempotency key: all of it, or nothing where another request has taken over.
_ADD_FINISHED = f"""
WITH fence AS (
    {finish_rows(17)}
), added AS (
    INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at, email_verified_at)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $15 FROM fence RETURNING id
), secret AS (
    INSERT INTO credentials (user_id, password_hash) SELECT id, $10 FROM added
), audited AS (
    {audit_rows("$14", when="added")}
), {letter_parts("$16", when="added")}
INSERT INTO outbox (id, subject, payload) SELECT $11, $12, $13 FROM added RETURNING id
"""  # noqa: S608 - constants only

# In the order of names, so that two batches rarely wait for each other.
_ADD_MANY = f"""
WITH given AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS each(place int, id uuid, username text, username_folded text, email text,
        full_name text, role text, created_at timestamptz, password_hash text, event_id uuid, subject text, payload text)
), added AS (
    INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at)
    SELECT id, username, username_folded, email, full_name, role, 1, created_at, created_at FROM given ORDER BY username_folded, place
    ON CONFLICT DO NOTHING RETURNING id
), secret AS (
    INSERT INTO credentials (user_id, password_hash) SELECT id, password_hash FROM given JOIN added USING (id)
), audited AS (
    {audit_rows("$2", of="added")}
), told AS (
    INSERT INTO outbox (id, subject, payload)
    SELECT event_id, subject, convert_to(payload, 'UTF8') FROM given JOIN added USING (id) ORDER BY place
)
SELECT id FROM added
"""  # noqa: S608 - constants only

# A NULL hash leaves the credentials alone. A one-time token ($19) is read and used up together: whoever has the row of the user next
# finds another version, and then no token. The events are stored when `changed` returns, so their numbers come after the row lock.
_REPLACE = f"""
WITH changed AS (
    UPDATE users SET username = $2, username_folded = $3, email = $4, full_name = $5, role = $6, version = $7, updated_at = $8,
        email_verified_at = $13
    WHERE id = $1 AND version = $9 AND (
        $19::bytea IS NULL OR EXISTS (SELECT 1 FROM one_time_tokens WHERE hash = $19 AND user_id = $1 AND expires_at > $8)
    )
    RETURNING id
), spent AS (
    DELETE FROM one_time_tokens USING changed
    WHERE user_id = changed.id AND (hash = $19 OR (purpose = 'reset' AND $10::text IS NOT NULL))
), secret AS (
    UPDATE credentials SET password_hash = $10 FROM changed WHERE user_id = changed.id AND $10::text IS NOT NULL
), ended AS (
    DELETE FROM sessions USING changed
    WHERE user_id = changed.id AND $14::boolean AND sessions.id IS DISTINCT FROM $11::uuid
), audited AS (
    {audit_rows("$12", when="changed")}
), told AS (
    {outbox_rows("$15", "$16", "$17", when="changed")}
), {letter_parts("$18", when="changed")}
SELECT id FROM changed
"""  # noqa: S608 - constants only

_KEPT = "id, username, email, full_name, role, version, created_at, updated_at, email_verified_at"

# The credentials are read as they were before the cascade.
_REMOVE = f"""
WITH removed AS (
    DELETE FROM users WHERE id = $1 AND version = $2 RETURNING {_KEPT}
), kept AS (
    INSERT INTO deleted_users ({_KEPT}, password_hash, deleted_at)
    SELECT removed.*, password_hash, $4 FROM removed JOIN credentials ON user_id = removed.id WHERE $4::timestamptz IS NOT NULL
), audited AS (
    {audit_rows("$3", when="removed")}
), told AS (
    {outbox_rows("$5", "$6", "$7", when="removed")}
)
SELECT id FROM removed
"""  # noqa: S608 - constants only

_RESTORE = f"""
WITH found AS (
    DELETE FROM deleted_users WHERE id = $1 AND version = $4 - 1 RETURNING {_KEPT}, password_hash
), added AS (
    INSERT INTO users (id, username, username_folded, email, full_name, role, version, created_at, updated_at, email_verified_at)
    SELECT id, username, $2, email, full_name, role, $4, created_at, $3, email_verified_at FROM found
), secret AS (
    INSERT INTO credentials (user_id, password_hash) SELECT id, password_hash FROM found
), audited AS (
    {audit_rows("$8", when="found")}
)
INSERT INTO outbox (id, subject, payload) SELECT $5, $6, $7 FROM found RETURNING id
"""  # noqa: S608 - constants only

_PURGE = f"""
WITH purged AS (
    DELETE FROM deleted_users WHERE id = $1 RETURNING id
), audited AS (
    {audit_rows("$2", when="purged")}
)
SELECT id FROM purged
"""  # noqa: S608 - constants only

_PURGE_OLD = """
WITH purged AS (
    DELETE FROM deleted_users WHERE id IN (
        SELECT id FROM deleted_users WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ) RETURNING id
), audited AS (
    INSERT INTO audit (at, action, user_id) SELECT $3, $4, id FROM purged
)
SELECT id FROM purged
"""

_READ_JSON = f"SELECT u.version, {view_json('u')} AS json FROM users u WHERE u.id = $1"  # noqa: S608 - constants only


class PostgresUsers:
    """The users of a database; a UserRepository."""

    def __init__(self, database: Statements) -> None:
        self._db = database

    async def add(
        self,
        user: User,
        password_hash: str,
        event: Event,
        *,
        audit: AuditEntry | None = None,
        finished: Finished | None = None,
        letter: Letter | None = None,
    ) -> None:
        try:
            added = await self._db.row(
                _ADD if finished is None else _ADD_FINISHED,
                user.id,
                user.username,
                fold(user.username),
                user.email,
                user.full_name,
                user.role,
                user.version,
                user.created_at,
                user.updated_at,
                password_hash,
                event.id,
                event.subject,
                event.payload,
                audit_json(audit),
                user.email_verified_at,
                letter_json(letter),
                *(() if finished is None else finish_values(finished)),
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken_of(error) from error
        if added is None:
            raise ClaimLost

    async def add_many(self, new: Sequence[AddedUser]) -> Sequence[str]:
        given = orjson.dumps([_given(place, each) for place, each in enumerate(new)]).decode()
        rows = await self._db.rows(_ADD_MANY, given, audit_json(*(each.audit for each in new)))
        added = {str(row["id"]) for row in rows}
        refused = [each.user for each in new if each.user.id not in added]
        names = {fold(user.username) for user in refused}
        # Asked after the writing, so that it is seen what other items of the same batch took.
        found = await self._db.rows("SELECT username_folded FROM users WHERE username_folded = ANY($1)", list(names))
        taken_names = {row["username_folded"] for row in found}
        return [
            "" if user.id in added else "username" if fold(user.username) in taken_names else "email"
            for user in (each.user for each in new)
        ]

    async def get(self, user_id: str) -> User:
        found = await self._db.row(f"SELECT {COLUMNS} FROM users u WHERE u.id = $1", user_id)  # noqa: S608 - constants
        if found is None:
            raise NotFound("there is no such user")
        return user_of(found)

    async def read_json(self, user_id: str) -> tuple[int, bytes] | None:
        found = await self._db.row(_READ_JSON, user_id)
        return (found["version"], found["json"]) if found is not None else None

    async def find_login(self, login: str) -> Credentials | None:
        # A username has no @ and an address always one, so one index is asked, and the same work done for every text.
        column = "email" if "@" in login else "username_folded"
        found = await self._db.row(
            f"SELECT {COLUMNS}, c.password_hash FROM users u JOIN credentials c ON c.user_id = u.id "  # noqa: S608
            f"WHERE u.{column} = $1",
            login,
        )
        return Credentials(user_of(found), found["password_hash"]) if found is not None else None

    async def list(self, query: UserQuery) -> Listed:
        sql, values = statement_of(query)
        return listed_of(await self._db.row(sql, *values))

    async def replace(
        self,
        user: User,
        event: Event,
        *,
        expected_version: int,
        password_hash: str = "",
        keep_session: str = "",
        ended: Event | None = None,
        audit: AuditEntry | None = None,
        letter: Letter | None = None,
        spent: bytes = b"",
    ) -> None:
        try:
            stored = await self._db.row(
                _REPLACE,
                user.id,
                user.username,
                fold(user.username),
                user.email,
                user.full_name,
                user.role,
                user.version,
                user.updated_at,
                expected_version,
                password_hash or None,
                keep_session or None,
                audit_json(audit),
                user.email_verified_at,
                bool(password_hash) or ended is not None,
                *outbox_values([event, ended]),
                letter_json(letter),
                spent or None,
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken_of(error) from error
        if stored is None:
            raise VersionChanged

    async def remove(
        self,
        user_id: str,
        event: Event,
        *,
        expected_version: int,
        deleted_at: datetime | None = None,
        ended: Event | None = None,
        audit: AuditEntry | None = None,
    ) -> None:
        removed = await self._db.row(
            _REMOVE, user_id, expected_version, audit_json(audit), deleted_at, *outbox_values([event, ended])
        )
        if removed is None:
            raise VersionChanged

    async def get_deleted(self, user_id: str) -> DeletedUser:
        found = await self._db.row(
            f"SELECT {COLUMNS}, u.password_hash, u.deleted_at FROM deleted_users u WHERE u.id = $1",  # noqa: S608
            user_id,
        )
        if found is None:
            raise NotFound("there is no such deleted user")
        return DeletedUser(user_of(found), found["password_hash"], found["deleted_at"])

    async def restore(self, user: User, event: Event, *, audit: AuditEntry | None = None) -> None:
        try:
            restored = await self._db.row(
                _RESTORE,
                user.id,
                fold(user.username),
                user.updated_at,
                user.version,
                event.id,
                event.subject,
                event.payload,
                audit_json(audit),
            )
        except asyncpg.UniqueViolationError as error:
            raise _taken_of(error) from error
        if restored is None:
            raise NotFound("there is no such deleted user")

    async def purge(self, user_id: str, *, audit: AuditEntry | None = None) -> None:
        if await self._db.row(_PURGE, user_id, audit_json(audit)) is None:
            raise NotFound("there is no such deleted user")

    async def purge_deleted_before(self, moment: datetime, *, audit: AuditEntry, limit: int) -> int:
        return len(await self._db.rows(_PURGE_OLD, moment, limit, audit.at, audit.action))

    async def rehash(self, user_id: str, *, old_hash: str, new_hash: str) -> None:
        await self._db.rows(
            "UPDATE credentials SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2",
            user_id,
            old_hash,
            new_hash,
        )

    async def has_admin(self) -> bool:
        return await self._db.row("SELECT 1 FROM users WHERE role = 'admin' LIMIT 1") is not None


def user_of(row: Any) -> User:
    """Return the user of a row that holds COLUMNS."""
    return User(
        id=str(row["id"]),
        username=row["username"],
        email=row["email"],
        full_name=row["full_name"],
        role=row["role"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        email_verified_at=row["email_verified_at"],
    )


def _given(place: int, new: AddedUser) -> dict[str, object]:
    """Return a user as `_ADD_MANY` takes it."""
    user = new.user
    return {
        "place": place,
        "id": user.id,
        "username": user.username,
        "username_folded": fold(user.username),
        "email": user.email,
        "full_name": user.full_name,
        "role": user.role,
        "created_at": user.created_at,
        "password_hash": new.password_hash,
        "event_id": new.event.id,
        "subject": new.event.subject,
        "payload": new.event.payload.decode(),
    }


def _taken_of(error: asyncpg.UniqueViolationError) -> Conflict:
    return taken("email" if error.constraint_name == "users_email_unique" else "username")
