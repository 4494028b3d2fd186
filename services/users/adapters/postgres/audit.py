"""The audit log in PostgreSQL: rows that other statements write beside what they do, and the pages that admins read."""

from datetime import datetime
from typing import Any

import orjson

from services.users.adapters.postgres.pool import Database
from services.users.model.records import AuditEntry, AuditQuery

_COLUMNS = "at, action, actor_id, user_id, request_id, address, before, after"


def audit_rows(parameter: str, *, when: str = "", of: str = "") -> str:
    """Return the INSERT that stores the entries of `audit_json` in `parameter` (such as `$15`), to stand in a WITH of a write.

    `when` names a part of the same WITH: the entries are stored when that returns a row, else never. `of` names one that returns
    ids: the entries on those users are stored.
    """
    condition = f" WHERE EXISTS (SELECT 1 FROM {when})" if when else ""  # noqa: S608 - constants only
    if of:
        condition = f" WHERE user_id IN (SELECT id FROM {of})"  # noqa: S608 - constants only
    return (
        f"INSERT INTO audit ({_COLUMNS}) SELECT {_COLUMNS} "  # noqa: S608
        f"FROM jsonb_to_recordset({parameter}::jsonb) AS entry(at timestamptz, action text, actor_id uuid, user_id uuid, "
        f"request_id text, address text, before jsonb, after jsonb){condition}"
    )


def audit_json(*entries: AuditEntry | None) -> str:
    """Return entries as the parameter of `audit_rows`; what is None is left out."""
    return orjson.dumps([_row(entry) for entry in entries if entry is not None]).decode()


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": entry.at,
        "action": entry.action,
        "actor_id": entry.actor_id or None,
        "user_id": entry.user_id or None,
        "request_id": entry.request_id or None,
        "address": entry.address or None,
        "before": entry.before,
        "after": entry.after,
    }


class PostgresAudit:
    """The audit log of a database; an AuditLog."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, entry: AuditEntry) -> None:
        await self._db.rows(audit_rows("$1"), audit_json(entry))

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        # Only the conditions that are asked for, so that each of the few statements there can be has a plan of its own.
        given = [
            ("user_id = ", query.user_id or None),
            ("actor_id = ", query.actor_id or None),
            ("action = ", query.action or None),
            ("at >= ", query.since),
            ("number < ", query.before),
        ]
        values: list[object] = [query.limit]
        conditions = ["true"]
        for condition, value in given:
            if value is not None:
                values.append(value)
                conditions.append(f"{condition}${len(values)}")
        rows = await self._db.rows(
            f"SELECT number, {_COLUMNS} FROM audit WHERE {' AND '.join(conditions)} "  # noqa: S608 - constants only
            "ORDER BY number DESC LIMIT $1",
            *values,
        )
        return [_entry(row) for row in rows]

    async def remove_before(self, moment: datetime, *, limit: int) -> int:
        rows = await self._db.rows(
            "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE at < $1 ORDER BY at LIMIT $2) RETURNING 1",
            moment,
            limit,
        )
        return len(rows)


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        number=row["number"],
        at=row["at"],
        action=row["action"],
        user_id=str(row["user_id"] or ""),
        actor_id=str(row["actor_id"] or ""),
        request_id=row["request_id"] or "",
        address=row["address"] or "",
        before=orjson.loads(row["before"]) if row["before"] else None,
        after=orjson.loads(row["after"]) if row["after"] else None,
    )
