"""Idempotency keys in PostgreSQL: a claim is one statement, and an answer is kept by the statement that did what it tells of."""

from datetime import datetime

import orjson

from services.users.adapters.postgres.pool import Statements
from services.users.domain.ports import ClaimLost, KeyReused, KeyRunning
from services.users.model.records import Answer, Finished, IdempotencyClaim

# Taken when the key is new or over, or when who ran it under the same body has died.
_CLAIM = """
INSERT INTO idempotency AS kept (scope_hash, body_hash, started_at, expires_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (scope_hash) DO UPDATE
    SET body_hash = $2, started_at = $3, expires_at = $4, status = NULL, headers = NULL, body = NULL
    WHERE kept.expires_at <= $3 OR (kept.status IS NULL AND kept.started_at <= $5 AND kept.body_hash = $2)
RETURNING 1
"""


def finish_rows(first: int) -> str:
    """Return the UPDATE that keeps the answer of `finish_values` in the parameters from `$first`, to stand in a WITH of a write.

    It returns no row when another request has taken over: then the write must not be made.
    """
    scope, started, status, headers, body = (f"${number}" for number in range(first, first + 5))
    return (
        f"UPDATE idempotency SET status = {status}, headers = {headers}, body = {body} "  # noqa: S608 - constants only
        f"WHERE scope_hash = {scope} AND started_at = {started} AND status IS NULL RETURNING 1"
    )


def finish_values(finished: Finished) -> tuple[bytes, datetime, int, str, bytes]:
    claim, answer = finished.claim, finished.answer
    headers = orjson.dumps(dict(answer.headers)).decode()
    return claim.scope_hash, claim.started_at, answer.status, headers, answer.body


class PostgresIdempotency:
    """The idempotency keys of a database; an IdempotencyStore."""

    def __init__(self, database: Statements) -> None:
        self._db = database

    async def claim(self, claim: IdempotencyClaim, *, died_before: datetime) -> Answer | None:
        taken = await self._db.row(
            _CLAIM, claim.scope_hash, claim.body_hash, claim.started_at, claim.expires_at, died_before
        )
        if taken is not None:
            return None
        kept = await self._db.row(
            "SELECT body_hash, status, headers, body FROM idempotency WHERE scope_hash = $1", claim.scope_hash
        )
        if kept is None:
            # Released between the two: whoever asks again finds it free.
            raise KeyRunning
        if kept["body_hash"] != claim.body_hash:
            raise KeyReused
        if kept["status"] is None:
            raise KeyRunning
        return Answer(kept["status"], orjson.loads(kept["headers"]), kept["body"])

    async def finish(self, finished: Finished) -> None:
        if await self._db.row(finish_rows(1), *finish_values(finished)) is None:
            raise ClaimLost

    async def release(self, claim: IdempotencyClaim) -> None:
        await self._db.rows(
            "DELETE FROM idempotency WHERE scope_hash = $1 AND started_at = $2 AND status IS NULL",
            claim.scope_hash,
            claim.started_at,
        )

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        rows = await self._db.rows(
            "DELETE FROM idempotency WHERE scope_hash IN ("
            "SELECT scope_hash FROM idempotency WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED"
            ") RETURNING 1",
            now,
            limit,
        )
        return len(rows)
