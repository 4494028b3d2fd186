"""Users in memory; every write checks what it needs first, and is undone whole where it fails nevertheless."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from services.users.adapters.memory_database import Collection, MemoryDatabase
from services.users.adapters.memory_idempotency import finish_in
from services.users.adapters.memory_listing import page_of
from services.users.domain.ports import VersionChanged
from services.users.domain.users import taken
from services.users.model.listing import Listed, UserQuery
from services.users.model.records import AddedUser, AuditEntry, Credentials, DeletedUser, Event, Finished, Letter, User
from services.users.model.text import fold
from services.users.model.view import user_json
from shared.errors import NotFound


class MemoryUsers:
    """The users of a MemoryDatabase; a UserRepository."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._db = database
        # What a write may touch.
        self._written = (
            database.users,
            database.deleted_users,
            database.credentials,
            database.logins,
            database.sessions,
            database.outbox,
            database.audit,
            database.idempotency,
            database.tokens,
            database.mails,
        )

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
        async with self._db.locked(*self._written):
            if finished is not None:
                finish_in(self._db, finished)
            self._store(user)
            self._db.credentials.records[user.id] = password_hash
            self._db.post(letter)
            self._tell(event, audit)

    async def add_many(self, new: Sequence[AddedUser]) -> Sequence[str]:
        fields = []
        async with self._db.locked(*self._written):
            logins = self._db.logins.records
            for each in new:
                is_name_taken, is_email_taken = fold(each.user.username) in logins, each.user.email in logins
                fields.append("username" if is_name_taken else "email" if is_email_taken else "")
                if not fields[-1]:
                    self._store(each.user)
                    self._db.credentials.records[each.user.id] = each.password_hash
                    self._tell(each.event, each.audit)
        return fields

    def _tell(self, event: Event, audit: AuditEntry | None, ended: Event | None = None) -> None:
        for each in (event, ended):
            if each is not None:
                self._db.outbox.records[each.id] = each
        self._db.record(audit)

    def _store(self, user: User) -> None:
        logins = self._db.logins.records
        self._forget_logins(user.id)
        if fold(user.username) in logins:
            raise taken("username")
        if user.email in logins:
            raise taken("email")
        self._db.users.records[user.id] = user
        logins.update({fold(user.username): user.id, user.email: user.id})

    def _forget_logins(self, user_id: str) -> None:
        old = self._db.users.records.get(user_id)
        if old is not None:
            del self._db.logins.records[fold(old.username)], self._db.logins.records[old.email]

    async def get(self, user_id: str) -> User:
        async with self._db.locked(self._db.users):
            found = self._db.users.get(user_id)
        if found is None:
            raise NotFound("there is no such user")
        return found

    async def read_json(self, user_id: str) -> tuple[int, bytes] | None:
        async with self._db.locked(self._db.users):
            found = self._db.users.records.get(user_id)
            return (found.version, user_json(found)) if found is not None else None

    async def get_deleted(self, user_id: str) -> DeletedUser:
        async with self._db.locked(self._db.deleted_users):
            found = self._db.deleted_users.get(user_id)
        if found is None:
            raise NotFound("there is no such deleted user")
        return found

    async def find_login(self, login: str) -> Credentials | None:
        async with self._db.locked(self._db.users, self._db.logins, self._db.credentials):
            user_id = self._db.logins.records.get(login)
            if user_id is None:
                return None
            return Credentials(self._db.users.records[user_id], self._db.credentials.records[user_id])

    async def list(self, query: UserQuery) -> Listed:
        listed: Collection[User] | Collection[DeletedUser]
        listed = self._db.deleted_users if query.is_deleted else self._db.users
        async with self._db.locked(listed):
            return page_of(list(listed.records.values()), query)

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
        async with self._db.locked(*self._written):
            self._require_version(user.id, expected_version)
            if spent:
                self._spend(user, spent)
            self._store(user)
            if password_hash:
                self._db.credentials.records[user.id] = password_hash
                self._db.drop_tokens(lambda token: (token.user_id, token.purpose) == (user.id, "reset"))
            self._db.post(letter)
            if password_hash or ended is not None:
                self._db.end_sessions(user.id, keep=keep_session)
            self._tell(event, audit, ended)

    def _spend(self, user: User, token_hash: bytes) -> None:
        tokens = self._db.tokens.records.values()
        if not any((t.hash, t.user_id) == (token_hash, user.id) and t.expires_at > user.updated_at for t in tokens):
            raise VersionChanged
        self._db.drop_tokens(lambda token: token.hash == token_hash)

    def _require_version(self, user_id: str, expected_version: int) -> None:
        current = self._db.users.records.get(user_id)
        if current is None or current.version != expected_version:
            raise VersionChanged

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
        async with self._db.locked(*self._written):
            self._require_version(user_id, expected_version)
            self._forget_logins(user_id)
            user = self._db.users.records.pop(user_id)
            password_hash = self._db.credentials.records.pop(user_id)
            if deleted_at is not None:
                self._db.deleted_users.records[user_id] = DeletedUser(user, password_hash, deleted_at)
            self._db.end_sessions(user_id)
            self._db.drop_tokens(lambda token: token.user_id == user_id)
            self._tell(event, audit, ended)

    async def restore(self, user: User, event: Event, *, audit: AuditEntry | None = None) -> None:
        async with self._db.locked(*self._written):
            deleted = self._db.deleted_users.records.get(user.id)
            if deleted is None or deleted.user.version + 1 != user.version:
                raise NotFound("there is no such deleted user")
            self._store(user)
            self._db.credentials.records[user.id] = deleted.password_hash
            del self._db.deleted_users.records[user.id]
            self._tell(event, audit)

    async def purge(self, user_id: str, *, audit: AuditEntry | None = None) -> None:
        async with self._db.locked(self._db.deleted_users, self._db.audit):
            if self._db.deleted_users.records.pop(user_id, None) is None:
                raise NotFound("there is no such deleted user")
            self._db.record(audit)

    async def purge_deleted_before(self, moment: datetime, *, audit: AuditEntry, limit: int) -> int:
        async with self._db.locked(self._db.deleted_users, self._db.audit):
            old = self._db.deleted_users.find(
                lambda deleted: deleted.deleted_at < moment, key=lambda deleted: deleted.deleted_at, limit=limit
            )
            for deleted in old:
                del self._db.deleted_users.records[deleted.user.id]
                self._db.record(replace(audit, user_id=deleted.user.id))
            return len(old)

    async def rehash(self, user_id: str, *, old_hash: str, new_hash: str) -> None:
        async with self._db.locked(self._db.credentials):
            if self._db.credentials.records.get(user_id) == old_hash:
                self._db.credentials.records[user_id] = new_hash

    async def has_admin(self) -> bool:
        async with self._db.locked(self._db.users):
            return self._db.users.count(lambda user: user.role == "admin") > 0
