"""Sessions, outbox and signing keys in memory."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from services.users.adapters.memory_database import MemoryDatabase
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
from services.users.model.records import Event, Session, StoredKey, User
from shared.errors import NotFound


class MemorySessions:
    """The sessions of a MemoryDatabase; a SessionRepository."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def open(self, session: Session) -> None:
        async with self._db.locked(self._db.users, self._db.sessions):
            if session.user_id not in self._db.users.records:
                raise NotFound("there is no such user")
            records = self._db.sessions.records
            own = sorted((s for s in records.values() if s.user_id == session.user_id), key=lambda s: s.id)
            for position, other in enumerate(reversed(own), start=1):
                if position >= SESSIONS_PER_USER_MAX or other.expires_at <= session.created_at:
                    del records[other.id]
            records[session.id] = session

    async def user_of(self, session_id: str, *, now: datetime) -> User:
        async with self._db.locked(self._db.users, self._db.sessions):
            session = self._db.sessions.records.get(session_id)
            if session is None or session.expires_at <= now:
                raise NotFound("there is no such session")
            return self._db.users.records[session.user_id]

    async def rotate(
        self, *, family_hash: bytes, used_hash: bytes, next_hash: bytes, now: datetime
    ) -> tuple[str, User]:
        async with self._db.locked(self._db.users, self._db.sessions):
            records = self._db.sessions.records
            session = next((s for s in records.values() if s.family_hash == family_hash), None)
            if session is None or session.expires_at <= now:
                raise NotFound("there is no such session")
            if session.refresh_hash == used_hash:
                records[session.id] = Session(
                    id=session.id,
                    user_id=session.user_id,
                    family_hash=family_hash,
                    refresh_hash=next_hash,
                    created_at=session.created_at,
                    expires_at=session.expires_at,
                )
                return session.id, self._db.users.records[session.user_id]
            del records[session.id]
        # Not raised above: that would take back the end of the session.
        raise RefreshReused

    async def end(self, session_id: str) -> None:
        async with self._db.locked(self._db.sessions):
            self._db.sessions.records.pop(session_id, None)


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
            return sorted(self._db.keys.records.values(), key=lambda key: (key.created_at, key.kid), reverse=True)

    async def add_first(self, key: StoredKey) -> list[StoredKey]:
        async with self._db.locked(self._db.keys):
            if not self._db.keys.records:
                self._db.keys.records[key.kid] = key
        return await self.all()
