"""Sessions inside one process."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.users.adapters.memory_database import MemoryDatabase
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
from services.users.model.records import AuditEntry, Event, Exchange, Session, User
from shared.errors import NotFound


class MemorySessions:
    """The sessions of a MemoryDatabase; a SessionRepository."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def open(self, session: Session, *, audit: AuditEntry | None = None) -> int:
        async with self._db.locked(self._db.users, self._db.sessions, self._db.audit):
            if session.user_id not in self._db.users.records:
                raise NotFound("there is no such user")
            records = self._db.sessions.records
            for other in self._of(session.user_id):
                if other.expires_at <= session.created_at:
                    del records[other.id]
            records[session.id] = session
            self._db.record(audit)
            return len(self._of(session.user_id))

    def _of(self, user_id: str) -> list[Session]:
        found = [session for session in self._db.sessions.records.values() if session.user_id == user_id]
        return sorted(found, key=lambda session: session.id, reverse=True)

    async def user_of(self, session_id: str, *, now: datetime) -> User:
        async with self._db.locked(self._db.users, self._db.sessions):
            session = self._db.sessions.records.get(session_id)
            if session is None or session.expires_at <= now:
                raise NotFound("there is no such session")
            return self._db.users.records[session.user_id]

    async def of_user(self, user_id: str, *, now: datetime) -> list[Session]:
        async with self._db.locked(self._db.sessions):
            return [session for session in self._of(user_id) if session.expires_at > now][: 2 * SESSIONS_PER_USER_MAX]

    async def rotate(self, exchange: Exchange) -> tuple[str, User]:
        async with self._db.locked(self._db.users, self._db.sessions):
            records = self._db.sessions.records
            session = next((s for s in records.values() if s.family_hash == exchange.family_hash), None)
            if session is None or session.expires_at <= exchange.now:
                raise NotFound("there is no such session")
            if session.refresh_hash == exchange.used_hash:
                session = replace(
                    session,
                    refresh_hash=exchange.next_hash,
                    previous_hash=exchange.used_hash,
                    rotated_at=exchange.now,
                )
            elif not _is_made_again(session, exchange):
                raise RefreshReused(session.id, session.user_id)
            records[session.id] = replace(
                session,
                used_at=exchange.now,
                address=exchange.client.address,
                user_agent=exchange.client.user_agent,
            )
            return session.id, self._db.users.records[session.user_id]

    async def end(
        self,
        user_id: str,
        *,
        session_id: str = "",
        keep: str = "",
        events: Sequence[Event] = (),
        audit: AuditEntry | None = None,
    ) -> int:
        db = self._db
        async with db.locked(db.sessions, db.outbox, db.audit):
            ended = [s.id for s in self._of(user_id) if session_id in ("", s.id) and s.id != keep]
            for ended_id in ended:
                del db.sessions.records[ended_id]
            if ended:
                for event in events:
                    db.outbox.records[event.id] = event
                db.record(audit)
            return len(ended)


def _is_made_again(session: Session, exchange: Exchange) -> bool:
    return (
        session.previous_hash == exchange.used_hash
        and session.refresh_hash == exchange.next_hash
        and session.rotated_at is not None
        and session.rotated_at >= exchange.grace_from
    )
