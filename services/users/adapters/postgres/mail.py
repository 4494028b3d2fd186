"""One-time tokens and mail on its way, in PostgreSQL: a token and its mail are written by the statement that gives reason for them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
import orjson

from services.users.adapters.postgres.audit import audit_json, audit_rows
from services.users.adapters.postgres.pool import Database
from services.users.model.records import AuditEntry, Letter, Mail, OneTimeToken

BACKLOG_COUNTED_MAX = 1_000_000


def letter_parts(parameter: str, *, when: str = "") -> str:
    """Return parts of a WITH that store the letter of `letter_json` in `parameter` (such as `$16`), to stand last in it.

    `when` names an earlier part: the letter is stored when that returns a row, else never.
    """
    condition = f"WHERE EXISTS (SELECT 1 FROM {when})" if when else ""  # noqa: S608 - constants only
    return f"""letter AS (
    SELECT * FROM jsonb_to_recordset({parameter}::jsonb) AS given(hash text, purpose text, user_id uuid, email text,
        created_at timestamptz, expires_at timestamptz, mail_id uuid, sealed text) {condition}
), issued AS (
    INSERT INTO one_time_tokens (hash, purpose, user_id, email, created_at, expires_at)
    SELECT decode(hash, 'hex'), purpose, user_id, email, created_at, expires_at FROM letter
    ON CONFLICT (user_id, purpose) DO UPDATE
        SET hash = excluded.hash, email = excluded.email, created_at = excluded.created_at, expires_at = excluded.expires_at
), mailed AS (
    INSERT INTO mail_outbox (id, recipient, kind, sealed, created_at, expires_at, next_try_at)
    SELECT mail_id, email, purpose, decode(sealed, 'hex'), created_at, expires_at, created_at FROM letter
)"""  # noqa: S608 - constants only


def letter_json(letter: Letter | None) -> str:
    """Return a letter as the parameter of `letter_parts`; None stores nothing."""
    return "[]" if letter is None else orjson.dumps([_row(letter)]).decode()


def _row(letter: Letter) -> dict[str, Any]:
    token, mail = letter.token, letter.mail
    return {
        "hash": token.hash.hex(),
        "purpose": token.purpose,
        "user_id": token.user_id,
        "email": token.email,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "mail_id": mail.id,
        "sealed": mail.sealed.hex(),
    }


_ISSUE = f"""
WITH owner AS (
    SELECT 1 FROM users WHERE id = $1 AND email = $2
), audited AS (
    {audit_rows("$3")}
), {letter_parts("$4", when="owner")}
SELECT 1 FROM owner
"""  # noqa: S608 - constants only

# Not in the order of their numbers: a mail that fails moves behind those that were not tried yet.
_CLAIM = """
UPDATE mail_outbox SET tries = tries + 1, next_try_at = $2
WHERE number IN (SELECT number FROM mail_outbox WHERE next_try_at <= $1 ORDER BY next_try_at LIMIT $3 FOR UPDATE SKIP LOCKED)
RETURNING number, id, recipient, kind, sealed, created_at, expires_at, tries, next_try_at
"""


class PostgresTokens:
    """The one-time tokens of a database; a OneTimeTokens."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def issue(self, letter: Letter, *, audit: AuditEntry) -> bool:
        token = letter.token
        try:
            found = await self._db.row(_ISSUE, token.user_id, token.email, audit_json(audit), letter_json(letter))
        except asyncpg.ForeignKeyViolationError:
            # Deleted while the statement ran.
            return False
        return found is not None

    async def find(self, token_hash: bytes, *, now: datetime) -> OneTimeToken | None:
        row = await self._db.row(
            "SELECT hash, purpose, user_id, email, created_at, expires_at FROM one_time_tokens "
            "WHERE hash = $1 AND expires_at > $2",
            token_hash,
            now,
        )
        if row is None:
            return None
        return OneTimeToken(
            row["hash"], row["purpose"], str(row["user_id"]), row["email"], row["created_at"], row["expires_at"]
        )

    async def living(self, token_hashes: Sequence[bytes], *, now: datetime) -> set[bytes]:
        rows = await self._db.rows(
            "SELECT hash FROM one_time_tokens WHERE hash = ANY($1::bytea[]) AND expires_at > $2",
            list(token_hashes),
            now,
        )
        return {row["hash"] for row in rows}

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        rows = await self._db.rows(
            "DELETE FROM one_time_tokens WHERE hash IN ("
            "SELECT hash FROM one_time_tokens WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED"
            ") RETURNING 1",
            now,
            limit,
        )
        return len(rows)


class PostgresMailOutbox:
    """The mails of a database; a MailOutbox."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def claim(self, now: datetime, *, until: datetime, limit: int) -> list[Mail]:
        return [_mail_of(row) for row in await self._db.rows(_CLAIM, now, until, limit)]

    async def done(self, mail: Mail) -> None:
        await self._db.rows("DELETE FROM mail_outbox WHERE number = $1", mail.number)

    async def retry(self, mail: Mail, *, at: datetime) -> None:
        await self._db.rows("UPDATE mail_outbox SET next_try_at = $2 WHERE number = $1", mail.number, at)

    async def backlog(self) -> int:
        found = await self._db.row(
            "SELECT count(*) AS mails FROM (SELECT 1 FROM mail_outbox LIMIT $1) waiting", BACKLOG_COUNTED_MAX
        )
        return int(found["mails"])

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        rows = await self._db.rows(
            "DELETE FROM mail_outbox WHERE number IN ("
            "SELECT number FROM mail_outbox WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1",
            now,
            limit,
        )
        return len(rows)


def _mail_of(row: Any) -> Mail:
    return Mail(
        id=str(row["id"]),
        recipient=row["recipient"],
        kind=row["kind"],
        sealed=row["sealed"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        next_try_at=row["next_try_at"],
        tries=row["tries"],
        number=row["number"],
    )
