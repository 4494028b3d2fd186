"""Reading one user: from memory where it is known to be current, else from the store, and from memory again while the store is away."""

import asyncio

from services.users.domain.policy import Scope, holds
from services.users.domain.ports import UserRepository
from services.users.model.records import Actor
from shared.cache.entries import Found, Loaded
from shared.cache.memory_store import Entry
from shared.cache.tiered import TieredCache
from shared.errors import DeadlineExceeded, NotFound, Unavailable
from shared.ids import is_id

LOAD_TIMEOUT_S = 2.0
RETRY_AFTER_S = 1.0

AWAY = (Unavailable, DeadlineExceeded)
"""What a read raises where the store cannot be asked."""


class UserReads:
    """Answers with the JSON of a user; `cache` holds it under the user's id, with the version of the record."""

    def __init__(self, users: UserRepository, cache: TieredCache) -> None:
        self._users = users
        self._cache = cache

    def peek(self, user_id: str) -> Entry | None:
        """Return what is known at once, None where `read` must find out. Who may see it is the caller's question."""
        return self._cache.peek(user_id)

    async def read(self, actor: Actor, user_id: str, *, bypass: bool = False) -> Found:
        """Return the JSON of a user, to itself or to an admin; `bypass` asks the store in any case.

        Raises NotFound: to everybody else it does not exist. Raises Unavailable.
        """
        if not is_id(user_id) or not may_read(actor.user_id, user_id, actor.role):
            raise no_such_user()
        found = await self._cache.get(user_id, lambda: self._load(user_id), bypass=bypass)
        if found.value is None:
            raise no_such_user()
        return found

    async def _load(self, user_id: str) -> Loaded:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                found = await self._users.read_json(user_id)
        except TimeoutError as error:
            raise Unavailable("the store did not answer in time", retry_after_s=RETRY_AFTER_S) from error
        return Loaded(None) if found is None else Loaded(found[1], found[0])


def may_read(reader_id: str, user_id: str, role: str) -> bool:
    """Tell who may see a record: its owner and admins."""
    return reader_id == user_id or holds(role, Scope.USERS_READ)


def no_such_user() -> NotFound:
    return NotFound("there is no such user")
