"""The store inside one process: collections with a lock each, taken in name order; records are immutable, so reads are copies.

For tests and a single replica. Every write checks all it needs before it changes anything, so a refused one leaves no trace.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused, VersionChanged
from services.users.domain.users import taken
from services.users.model.records import AuditEntry, AuditQuery, Credentials, Event, Session, StoredKey, User
from services.users.model.text import fold
from shared.errors import NotFound

T = TypeVar("T")


class Collection(Generic[T]):
    """Records by id, and the lock that whoever reads or writes them holds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.records: dict[str, T] = {}


class MemoryDatabase:
    """All collections of one process."""

    def __init__(self) -> None:
        self.users: Collection[User] = Collection("users")
        self.credentials: Collection[str] = Collection("credentials")
        self.sessions: Collection[Session] = Collection("sessions")
        self.outbox: Collection[Event] = Collection("outbox")
        self.keys: Collection[StoredKey] = Collection("keys")
        self.audit: Collection[AuditEntry] = Collection("audit")
        self._numbers = itertools.count(1)
        # Ids by folded username and by address; kept under the lock of `users`.
        self.logins: dict[str, str] = {}

    @asynccontextmanager
    async def locked(self, *collections: Collection[Any]) -> AsyncIterator[None]:
        """Hold the locks of several collections, taken in name order so that two holders never wait for each other."""
        async with AsyncExitStack() as stack:
            for collection in sorted(collections, key=lambda item: item.name):
                await stack.enter_async_context(collection.lock)
            yield

    async def ping(self) -> None:
        """Return at once: memory is always there."""

    def record(self, *entries: AuditEntry | None) -> None:
        """Add entries to the audit log, leaving out what is None; the caller holds the lock of `audit`."""
        for entry in entries:
            if entry is not None:
                number = next(self._numbers)
                self.audit.records[str(number)] = replace(copy.deepcopy(entry), number=number)

    def end_sessions(self, user_id: str, *, keep: str = "") -> None:
        """Drop a user's sessions; the caller holds the lock."""
        records = self.sessions.records
        for session in [s for s in records.values() if s.user_id == user_id and s.id != keep]:
            del records[session.id]


class MemoryUsers:
    """The users of a MemoryDatabase; a UserRepository."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def add(self, user: User, password_hash: str, event: Event, *, audit: AuditEntry | None = None) -> None:
        db = self._db
        async with db.locked(db.users, db.credentials, db.outbox, db.audit):
            self._refuse_taken(user)
            self._store(user)
            db.credentials.records[user.id] = password_hash
            db.outbox.records[event.id] = event
            db.record(audit)

    def _refuse_taken(self, user: User) -> None:
        if self._db.logins.get(fold(user.username), user.id) != user.id:
            raise taken("username")
        if self._db.logins.get(user.email, user.id) != user.id:
            raise taken("email")

    def _store(self, user: User) -> None:
        self._forget(user.id)
        self._db.users.records[user.id] = user
        self._db.logins |= {fold(user.username): user.id, user.email: user.id}

    def _forget(self, user_id: str) -> None:
        old = self._db.users.records.pop(user_id, None)
        if old is not None:
            del self._db.logins[fold(old.username)], self._db.logins[old.email]

    async def get(self, user_id: str) -> User:
        async with self._db.locked(self._db.users):
            found = self._db.users.records.get(user_id)
        if found is None:
            raise NotFound("there is no such user")
        return found

    async def find_login(self, login: str) -> Credentials | None:
        async with self._db.locked(self._db.users, self._db.credentials):
            user_id = self._db.logins.get(login)
            if user_id is None:
                return None
            return Credentials(self._db.users.records[user_id], self._db.credentials.records[user_id])

    async def page(self, *, after: str, limit: int) -> list[User]:
        async with self._db.locked(self._db.users):
            ids = sorted(user_id for user_id in self._db.users.records if user_id > after)
            return [self._db.users.records[user_id] for user_id in ids[:limit]]

    async def replace(
        self,
        user: User,
        event: Event,
        *,
        expected_version: int,
        password_hash: str = "",
        keep_session: str = "",
        audit: AuditEntry | None = None,
    ) -> None:
        db = self._db
        async with db.locked(db.users, db.credentials, db.sessions, db.outbox, db.audit):
            self._require_version(user.id, expected_version)
            self._refuse_taken(user)
            self._store(user)
            if password_hash:
                db.credentials.records[user.id] = password_hash
                db.end_sessions(user.id, keep=keep_session)
            db.outbox.records[event.id] = event
            db.record(audit)

    def _require_version(self, user_id: str, expected_version: int) -> None:
        current = self._db.users.records.get(user_id)
        if current is None or current.version != expected_version:
            raise VersionChanged

    async def remove(
        self, user_id: str, event: Event, *, expected_version: int, audit: AuditEntry | None = None
    ) -> None:
        db = self._db
        async with db.locked(db.users, db.credentials, db.sessions, db.outbox, db.audit):
            self._require_version(user_id, expected_version)
            self._forget(user_id)
            del db.credentials.records[user_id]
            db.end_sessions(user_id)
            db.outbox.records[event.id] = event
            db.record(audit)

    async def rehash(self, user_id: str, *, old_hash: str, new_hash: str) -> None:
        async with self._db.locked(self._db.credentials):
            if self._db.credentials.records.get(user_id) == old_hash:
                self._db.credentials.records[user_id] = new_hash

    async def has_admin(self) -> bool:
        async with self._db.locked(self._db.users):
            return any(user.role == "admin" for user in self._db.users.records.values())


class MemoryAudit:
    """The audit log of a MemoryDatabase; an AuditLog."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        async with self._db.locked(self._db.audit):
            found = [entry for entry in reversed(self._db.audit.records.values()) if _is_asked_for(entry, query)]
            return copy.deepcopy(found[: query.limit])


def _is_asked_for(entry: AuditEntry, query: AuditQuery) -> bool:
    return (
        query.user_id in ("", entry.user_id)
        and query.actor_id in ("", entry.actor_id)
        and query.action in ("", entry.action)
        and (query.since is None or entry.at >= query.since)
        and (query.before is None or entry.number < query.before)
    )


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
            if session.refresh_hash != used_hash:
                del records[session.id]
                raise RefreshReused
            records[session.id] = Session(
                id=session.id,
                user_id=session.user_id,
                family_hash=family_hash,
                refresh_hash=next_hash,
                created_at=session.created_at,
                expires_at=session.expires_at,
            )
            return session.id, self._db.users.records[session.user_id]

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
