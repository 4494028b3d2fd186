"""A repository of users that tells the cache of every change it stored, so that no writer can forget to."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from services.users.domain.ports import IdempotencyStore, Unit, UserRepository
from services.users.model.listing import Listed, UserQuery
from services.users.model.records import AddedUser, AuditEntry, Credentials, DeletedUser, Event, Finished, Letter, User
from services.users.model.view import user_json
from shared.cache.tiered import TieredCache


class HearsChanges(Protocol):
    """What is told, as a TieredCache is."""

    async def changed(
        self, key: str, version: int = 0, *, value: bytes | None = None, is_told: bool = True
    ) -> None: ...


class WatchedUsers:
    """A UserRepository around another."""

    def __init__(self, users: UserRepository, cache: HearsChanges) -> None:
        self._users = users
        self._cache = cache

    async def _changed(self, user: User) -> None:
        await self._cache.changed(user.id, user.version, value=user_json(user))

    async def _made(self, user: User) -> None:
        # Nobody can have asked for an id before it was made: no other replica holds anything of it.
        await self._cache.changed(user.id, user.version, value=user_json(user), is_told=False)

    # Changes.

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
        await self._users.add(user, password_hash, event, audit=audit, finished=finished, letter=letter)
        await self._made(user)

    async def add_many(self, new: Sequence[AddedUser]) -> Sequence[str]:
        refused = await self._users.add_many(new)
        for each, taken in zip(new, refused, strict=True):
            if not taken:
                await self._made(each.user)
        return refused

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
        await self._users.replace(
            user,
            event,
            expected_version=expected_version,
            password_hash=password_hash,
            keep_session=keep_session,
            ended=ended,
            audit=audit,
            letter=letter,
            spent=spent,
        )
        await self._changed(user)

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
        await self._users.remove(
            user_id, event, expected_version=expected_version, deleted_at=deleted_at, ended=ended, audit=audit
        )
        # Nothing up to the version that was deleted is shown any more; a restored user is one version on.
        await self._cache.changed(user_id, expected_version + 1)

    async def restore(self, user: User, event: Event, *, audit: AuditEntry | None = None) -> None:
        await self._users.restore(user, event, audit=audit)
        await self._changed(user)

    # What changes nothing that is shown.

    async def get(self, user_id: str) -> User:
        return await self._users.get(user_id)

    async def read_json(self, user_id: str) -> tuple[int, bytes] | None:
        return await self._users.read_json(user_id)

    async def find_login(self, login: str) -> Credentials | None:
        return await self._users.find_login(login)

    async def list(self, query: UserQuery) -> Listed:
        return await self._users.list(query)

    async def get_deleted(self, user_id: str) -> DeletedUser:
        return await self._users.get_deleted(user_id)

    async def purge(self, user_id: str, *, audit: AuditEntry | None = None) -> None:
        await self._users.purge(user_id, audit=audit)

    async def purge_deleted_before(self, moment: datetime, *, audit: AuditEntry, limit: int) -> int:
        return await self._users.purge_deleted_before(moment, audit=audit, limit=limit)

    async def rehash(self, user_id: str, *, old_hash: str, new_hash: str) -> None:
        await self._users.rehash(user_id, old_hash=old_hash, new_hash=new_hash)

    async def has_admin(self) -> bool:
        return await self._users.has_admin()


@dataclass(slots=True)
class _Deferred:
    """Hears changes that are not stored yet."""

    heard: list[tuple[str, int, bytes | None, bool]] = field(default_factory=list)

    async def changed(self, key: str, version: int = 0, *, value: bytes | None = None, is_told: bool = True) -> None:
        self.heard.append((key, version, value, is_told))


@dataclass(frozen=True, slots=True)
class _WatchedUnit:
    users: UserRepository
    idempotency: IdempotencyStore


def watched_units(
    units: Callable[[], AbstractAsyncContextManager[Unit]], cache: TieredCache
) -> Callable[[], AbstractAsyncContextManager[Unit]]:
    """Return units of work that tell the cache of their changes once they are stored, and of none where they are not."""

    @asynccontextmanager
    async def begin() -> AsyncIterator[Unit]:
        deferred = _Deferred()
        async with units() as unit:
            yield _WatchedUnit(WatchedUsers(unit.users, deferred), unit.idempotency)
        for key, version, value, is_told in deferred.heard:
            await cache.changed(key, version, value=value, is_told=is_told)

    return begin
