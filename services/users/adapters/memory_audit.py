"""The audit log in memory."""

from datetime import datetime

from services.users.adapters.memory_database import MemoryDatabase
from services.users.model.records import AuditEntry, AuditQuery


class MemoryAudit:
    """The audit log of a MemoryDatabase; an AuditLog."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def add(self, entry: AuditEntry) -> None:
        async with self._db.locked(self._db.audit):
            self._db.record(entry)

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        async with self._db.locked(self._db.audit):
            return self._db.audit.find(
                lambda entry: _is_asked_for(entry, query),
                key=lambda entry: entry.number,
                descending=True,
                limit=query.limit,
            )

    async def remove_before(self, moment: datetime, *, limit: int) -> int:
        async with self._db.locked(self._db.audit):
            old = self._db.audit.find(lambda entry: entry.at < moment, key=lambda entry: entry.at, limit=limit)
            for entry in old:
                del self._db.audit.records[str(entry.number)]
            return len(old)


def _is_asked_for(entry: AuditEntry, query: AuditQuery) -> bool:
    return (
        query.user_id in ("", entry.user_id)
        and query.actor_id in ("", entry.actor_id)
        and query.action in ("", entry.action)
        and (query.since is None or entry.at >= query.since)
        and (query.before is None or entry.number < query.before)
    )
