"""The in-memory database: collections with a lock each, taken in name order, and transactions that are undone whole.

For tests and a single replica.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from services.users.model.records import (
    Answer,
    AuditEntry,
    DeletedUser,
    Event,
    IdempotencyClaim,
    Letter,
    Mail,
    OneTimeToken,
    Session,
    StoredKey,
    User,
)

T = TypeVar("T")

_ABSENT: Any = object()


class Records(MutableMapping[str, T]):
    """Records by id, in the order of adding; remembers what each change replaced until it is told to keep or to undo it."""

    def __init__(self) -> None:
        self._records: dict[str, T] = {}
        self._replaced: list[tuple[str, Any]] = []

    def __getitem__(self, record_id: str) -> T:
        return self._records[record_id]

    def __setitem__(self, record_id: str, record: T) -> None:
        self._replaced.append((record_id, self._records.get(record_id, _ABSENT)))
        self._records[record_id] = record

    def __delitem__(self, record_id: str) -> None:
        self._replaced.append((record_id, self._records.pop(record_id)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def keep(self) -> None:
        self._replaced.clear()

    def undo(self) -> None:
        """Take back every change since the last `keep`; a record that comes back stands at the end."""
        for record_id, record in reversed(self._replaced):
            if record is _ABSENT:
                self._records.pop(record_id, None)
            else:
                self._records[record_id] = record
        self._replaced.clear()


class Collection(Generic[T]):
    """Records, and the lock that whoever reads or writes them holds. What `get` and `find` return is a copy, however nested."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = asyncio.Lock()
        self.records: Records[T] = Records()
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        """Return a number that no other record of this collection has or will have."""
        return next(self._numbers)

    def get(self, record_id: str) -> T | None:
        return copy.deepcopy(self.records.get(record_id))

    def find(
        self,
        where: Callable[[T], bool] = lambda _: True,
        *,
        key: Callable[[T], Any] | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> list[T]:
        """Return the records that fit, by `key` (else in the order of adding)."""
        found = [record for record in self.records.values() if where(record)]
        if key is not None:
            found.sort(key=key, reverse=descending)
        elif descending:
            found.reverse()
        return copy.deepcopy(found[:limit])

    def count(self, where: Callable[[T], bool]) -> int:
        return sum(1 for record in self.records.values() if where(record))


class MemoryDatabase:
    """All collections of one process."""

    def __init__(self) -> None:
        self.users: Collection[User] = Collection("users")
        self.deleted_users: Collection[DeletedUser] = Collection("deleted_users")
        self.credentials: Collection[str] = Collection("credentials")
        # Ids by folded username and by address.
        self.logins: Collection[str] = Collection("logins")
        self.sessions: Collection[Session] = Collection("sessions")
        self.outbox: Collection[Event] = Collection("outbox")
        self.keys: Collection[StoredKey] = Collection("keys")
        self.audit: Collection[AuditEntry] = Collection("audit")
        self.idempotency: Collection[tuple[IdempotencyClaim, Answer | None]] = Collection("idempotency")
        # By user and purpose, so that each has one.
        self.tokens: Collection[OneTimeToken] = Collection("tokens")
        self.mails: Collection[Mail] = Collection("mails")
        self._is_joined = False

    @property
    def collections(self) -> list[Collection[Any]]:
        return [value for value in vars(self).values() if isinstance(value, Collection)]

    @asynccontextmanager
    async def locked(self, *collections: Collection[Any]) -> AsyncIterator[None]:
        """Begin a transaction on some collections: what the block changes is kept when it ends, taken back whole when it raises.

        Their locks are taken in name order, so that two holders never wait for each other.
        """
        if self._is_joined:
            yield
            return
        async with AsyncExitStack() as stack:
            for collection in sorted(collections, key=lambda item: item.name):
                await stack.enter_async_context(collection.lock)
            try:
                yield
            except BaseException:
                for collection in collections:
                    collection.records.undo()
                raise
            for collection in collections:
                collection.records.keep()

    @asynccontextmanager
    async def unit(self) -> AsyncIterator["MemoryDatabase"]:
        """Begin a transaction on everything; what is handed out takes part in it and must not be used after the block."""
        async with self.locked(*self.collections):
            joined = copy.copy(self)
            joined._is_joined = True
            yield joined

    async def ping(self) -> None:
        """Return at once: memory is always there."""

    def record(self, *entries: AuditEntry | None) -> None:
        """Add entries to the audit log, leaving out what is None; the caller holds the lock of `audit`."""
        for entry in entries:
            if entry is not None:
                number = self.audit.next_number()
                self.audit.records[str(number)] = replace(copy.deepcopy(entry), number=number)

    def post(self, letter: Letter | None) -> None:
        """Store a token, in place of its user's older one of the purpose, and its mail; the caller holds the locks of both."""
        if letter is not None:
            self.tokens.records[f"{letter.token.user_id} {letter.token.purpose}"] = letter.token
            number = self.mails.next_number()
            self.mails.records[str(number)] = replace(letter.mail, number=number)

    def drop_tokens(self, where: Callable[[OneTimeToken], bool]) -> None:
        """Forget tokens; the caller holds the lock."""
        for token_id in [token_id for token_id, token in self.tokens.records.items() if where(token)]:
            del self.tokens.records[token_id]

    def end_sessions(self, user_id: str, *, keep: str = "") -> None:
        """Drop a user's sessions; the caller holds the lock."""
        records = self.sessions.records
        for session in [s for s in records.values() if s.user_id == user_id and s.id != keep]:
            del records[session.id]
