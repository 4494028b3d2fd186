"""Outbox and signing keys in memory."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from services.users.adapters.memory_database import MemoryDatabase
from services.users.domain.ports import KeyChange
from services.users.model.records import Event, StoredKey


class MemoryOutbox:
    """The outbox of a MemoryDatabase; one relay is the only one, so its line always leads."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    @asynccontextmanager
    async def line(self) -> AsyncIterator["MemoryOutbox"]:
        yield self

    async def lead(self) -> bool:
        return True

    async def waiting(self, limit: int) -> list[Event]:
        async with self._db.locked(self._db.outbox):
            return list(self._db.outbox.records.values())[:limit]

    async def done(self, event_ids: Sequence[str]) -> None:
        async with self._db.locked(self._db.outbox):
            for event_id in event_ids:
                self._db.outbox.records.pop(event_id, None)

    async def backlog(self) -> int:
        return len(self._db.outbox.records)


class MemoryKeys:
    """The signing keys of a MemoryDatabase; a KeyStore."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def all(self) -> list[StoredKey]:
        async with self._db.locked(self._db.keys):
            return _newest_first(self._db.keys.records.values())

    async def change(self, decide: KeyChange) -> list[StoredKey]:
        async with self._db.locked(self._db.keys, self._db.audit):
            records = self._db.keys.records
            keys, entries = decide(_newest_first(records.values()))
            for kid in set(records) - {key.kid for key in keys}:
                del records[kid]
            for key in keys:
                records[key.kid] = key
            self._db.record(*entries)
            return _newest_first(records.values())


def _newest_first(keys: Iterable[StoredKey]) -> list[StoredKey]:
    return sorted(keys, key=lambda key: (key.created_at, key.kid), reverse=True)
