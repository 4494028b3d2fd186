"""User records: who may read and change which, and how a change is made without losing another one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from services.users.domain.audit import differences, entry_of, shown
from services.users.domain.events import event_of
from services.users.domain.letters import Letters
from services.users.domain.policy import Scope, holds
from services.users.domain.ports import PasswordHasher, Tally, UserRepository, VersionChanged
from services.users.domain.reads import may_read, no_such_user
from services.users.domain.sessions import Endings
from services.users.domain.strength import PasswordStrength
from services.users.model.listing import Listed, UserQuery
from services.users.model.records import Actor, Event, Finished, Letter, Match, Role, User
from services.users.model.text import fold
from shared.errors import (
    Conflict,
    FieldError,
    Forbidden,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Unavailable,
)
from shared.ids import is_id, new_id

WRITE_TRIES_MAX = 10
"""A change without If-Match is made again on the newer record when another one came between."""

ADMIN_USERNAME = "admin"
"""Nobody can register it: it belongs to the first admin."""

Changes = Mapping[str, str | None]
"""New values by field: username, email, full_name, role, password; checked and normalised by the edge."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A user to be."""

    username: str
    email: str
    password: str
    full_name: str | None = None
    role: Role = "user"


class UserService:
    """`announce()` is called after each stored change, to wake the relay; `endings` where sessions end by one, `letters` where an
    address is new (None: no mail is sent)."""

    def __init__(
        self,
        repository: UserRepository,
        passwords: PasswordHasher,
        *,
        tally: Tally,
        announce: Callable[[], None],
        endings: Endings,
        strength: PasswordStrength | None = None,
        letters: Letters | None = None,
        requires_match: bool = False,
    ) -> None:
        self._repository = repository
        self._passwords = passwords
        self._tally = tally
        self._announce = announce
        self._endings = endings
        self._strength = strength or PasswordStrength()
        self._letters = letters
        self._requires_match = requires_match

    async def register(
        self, draft: Draft, actor: Actor | None = None, finish: Callable[[User], Finished] | None = None
    ) -> User:
        """Store a new user; `finish` makes the answer that is kept under an idempotency key, with the user or not at all.

        Raises Conflict, InvalidInput, ClaimLost, Unavailable.
        """
        check_draft(draft, self._strength)
        return await self._add(draft, actor, finish, letters=self._letters)

    async def _add(
        self,
        draft: Draft,
        actor: Actor | None = None,
        finish: Callable[[User], Finished] | None = None,
        letters: Letters | None = None,
    ) -> User:
        password_hash = await self._passwords.hash(draft.password)
        user = user_of(draft)
        letter = await letters.for_new_address(user) if letters is not None else None
        await self._repository.add(
            user,
            password_hash,
            event_of(user, "created"),
            audit=entry_of("user.created", user_id=user.id, actor=actor, after=shown(user)),
            finished=finish(user) if finish else None,
            letter=letter,
        )
        self._tally.user_created()
        self._announce()
        if letter is not None and letters is not None:
            letters.posted()
        return user

    async def ensure_admin(self, *, email: str, password: str) -> bool:
        """Make the first admin where there is none; tell whether this call did. Raises Conflict: name or address is taken."""
        if await self._repository.has_admin():
            return False
        try:
            await self._add(Draft(ADMIN_USERNAME, email, password, role="admin"))
        except Conflict:
            # Another replica, starting at the same time, was first.
            if await self._repository.has_admin():
                return False
            raise
        return True

    async def read(self, actor: Actor, user_id: str) -> User:
        """Return a user to itself or to an admin. Raises NotFound: to everybody else it does not exist."""
        if not is_id(user_id) or not may_read(actor.user_id, user_id, actor.role):
            raise no_such_user()
        return await self._repository.get(user_id)

    async def list(self, query: UserQuery) -> Listed:
        """Return a page of the users; the route asks for an admin. Raises Unavailable."""
        return await self._repository.list(query)

    async def change(self, actor: Actor, user_id: str, changes: Changes, match: Match | None) -> User:
        """Change a user; nothing is stored when nothing differs.

        Raises NotFound, Forbidden, Conflict, InvalidInput, PreconditionFailed, PreconditionRequired, Unavailable.
        """
        current = await self._writable(actor, user_id, match)
        if "role" in changes and not holds(actor.role, Scope.ROLES_WRITE):
            raise Forbidden(f"changing roles needs the scope {Scope.ROLES_WRITE}")
        new_password = changes.get("password") or ""
        if new_password:
            names = {name: changes.get(name) or getattr(current, name) for name in ("username", "email")}
            self._strength.check(new_password, **names)
        password_hash = await self._passwords.hash(new_password) if new_password else ""
        letter: Letter | None = None
        for _ in range(WRITE_TRIES_MAX):
            changed, fields = _apply(current, changes)
            if password_hash:
                fields.add("password")
            if not fields:
                return current
            if "username" in fields and current.role != "admin":
                _refuse_reserved(changed.username)
            before, after = differences(current, changed, fields)
            keep, ended = self._ended_by(fields, actor, user_id)
            if "email" in fields and self._letters is not None:
                letter = letter or await self._letters.for_new_address(changed)
            try:
                await self._repository.replace(
                    changed,
                    event_of(changed, "updated", changed=sorted(fields)),
                    expected_version=current.version,
                    password_hash=password_hash,
                    keep_session=keep,
                    ended=ended,
                    audit=entry_of("user.updated", user_id=user_id, actor=actor, before=before, after=after),
                    letter=letter if "email" in fields else None,
                )
            except VersionChanged:
                current = await self._writable(actor, user_id, match)
                continue
            self._announce()
            if letter is not None and self._letters is not None:
                self._letters.posted()
            if ended is not None:
                await self._endings.tell(ended)
            return changed
        raise Unavailable("this user is being changed by too many at once")

    def _ended_by(self, fields: set[str], actor: Actor, user_id: str) -> tuple[str, Event | None]:
        """Return which session lives on after a change of these fields, and the event where the others end by it."""
        if "role" in fields:
            # No token may go on saying the old role, not even that of an admin who is none any more.
            return "", self._endings.event(user_id, "role_changed")
        keep = actor.session_id if actor.user_id == user_id else ""
        if "password" in fields:
            return keep, self._endings.event(user_id, "password_changed", keep=keep)
        return keep, None

    async def remove(self, actor: Actor, user_id: str, match: Match | None) -> None:
        """Delete a user with its sessions; an admin may restore it. Raises as `_remove` does."""
        await self._remove(actor, user_id, match, is_kept=True)

    async def restore(self, actor: Actor, user_id: str) -> User:
        """Make a deleted user live again; the route asks for an admin.

        Raises NotFound, Conflict when its name or address has been taken in the meantime, Unavailable.
        """
        if not is_id(user_id):
            raise NotFound("there is no such deleted user")
        deleted = (await self._repository.get_deleted(user_id)).user
        user = replace(deleted, version=deleted.version + 1, updated_at=datetime.now(UTC))
        audit = entry_of("user.restored", user_id=user_id, actor=actor, after=shown(user))
        await self._repository.restore(user, event_of(user, "restored"), audit=audit)
        self._announce()
        return user

    async def purge(self, actor: Actor, user_id: str, match: Match | None) -> None:
        """Delete a user for good, live or deleted already; the route asks for an admin. Raises as `_remove` does."""
        if not is_id(user_id):
            raise NotFound("there is no such user")
        try:
            await self._repository.purge(user_id, audit=entry_of("user.purged", user_id=user_id, actor=actor))
        except NotFound:
            await self._remove(actor, user_id, match, is_kept=False)

    async def purge_old(self, limit: int, *, kept: timedelta) -> int:
        """Forget up to `limit` users that were deleted longer than `kept` ago; return how many those were. Raises Unavailable."""
        return await self._repository.purge_deleted_before(
            datetime.now(UTC) - kept, audit=entry_of("user.purged"), limit=limit
        )

    async def _remove(self, actor: Actor, user_id: str, match: Match | None, *, is_kept: bool) -> None:
        """Raises NotFound, PreconditionFailed, PreconditionRequired, Unavailable."""
        action = "user.deleted" if is_kept else "user.purged"
        for _ in range(WRITE_TRIES_MAX):
            current = await self._writable(actor, user_id, match)
            ended = self._endings.event(user_id, "user_deleted")
            try:
                await self._repository.remove(
                    user_id,
                    event_of(current, "deleted"),
                    expected_version=current.version,
                    deleted_at=datetime.now(UTC) if is_kept else None,
                    ended=ended,
                    audit=entry_of(action, user_id=user_id, actor=actor, before=shown(current)),
                )
            except VersionChanged:
                continue
            self._announce()
            await self._endings.tell(ended)
            return
        raise Unavailable("this user is being changed by too many at once")

    async def _writable(self, actor: Actor, user_id: str, match: Match | None) -> User:
        current = await self.read(actor, user_id)
        if match is None and self._requires_match:
            raise PreconditionRequired()
        if match is not None and not match.takes(current.version):
            raise PreconditionFailed()
        return current


def check_draft(draft: Draft, strength: PasswordStrength) -> None:
    """Refuse what can be refused without asking the store. Raises Conflict, InvalidInput."""
    _refuse_reserved(draft.username)
    strength.check(draft.password, username=draft.username, email=draft.email)


def user_of(draft: Draft) -> User:
    """Return the new user of a draft."""
    now = datetime.now(UTC)
    return User(
        id=new_id(),
        username=draft.username,
        email=draft.email,
        full_name=draft.full_name,
        role=draft.role,
        version=1,
        created_at=now,
        updated_at=now,
    )


def _apply(current: User, changes: Changes) -> tuple[User, set[str]]:
    """Return the user after the changes, one version on, and the names of the fields that differ."""
    values: dict[str, Any] = {
        name: value for name, value in changes.items() if name != "password" and getattr(current, name) != value
    }
    fields = set(values)
    if "email" in fields:
        # Whoever proved to read the old address has not proved to read the new one.
        values["email_verified_at"] = None
    return replace(current, **values, version=current.version + 1, updated_at=datetime.now(UTC)), fields


def _refuse_reserved(username: str) -> None:
    if fold(username) == ADMIN_USERNAME:
        raise taken("username")


def taken(field: str) -> Conflict:
    """Return the Conflict that names the field another user has already."""
    what = "username" if field == "username" else "e-mail address"
    error = FieldError(f"body.{field}", f"this {what} is taken", "taken")
    return Conflict(f"this {what} is taken", code=f"{field}_taken", errors=[error])
