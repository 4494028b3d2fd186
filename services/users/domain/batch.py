"""Many users at once: each item on its own, or all or none."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from services.users.domain.audit import entry_of, shown
from services.users.domain.events import event_of
from services.users.domain.ports import PasswordHasher, Tally, Unit
from services.users.domain.strength import PasswordStrength
from services.users.domain.users import Draft, check_draft, taken, user_of
from services.users.model.records import Actor, AddedUser, Finished, User
from shared.errors import Conflict, FieldError, InvalidInput, Problem, Unavailable

HASHES_AT_ONCE = 4
"""A batch leaves room in the queue of the hashers for those who log in."""

ERRORS_MAX = 32
"""An atomic batch that is refused names so many fields at most."""

Result = User | Problem


class BatchService:
    """`units` begins a unit of work; `announce()` is called after a stored batch, to wake the relay."""

    def __init__(
        self,
        units: Callable[[], AbstractAsyncContextManager[Unit]],
        passwords: PasswordHasher,
        *,
        strength: PasswordStrength,
        tally: Tally,
        announce: Callable[[], None],
    ) -> None:
        self._units = units
        self._passwords = passwords
        self._strength = strength
        self._tally = tally
        self._announce = announce

    async def create(
        self,
        items: Sequence[Draft | Problem],
        actor: Actor,
        *,
        is_atomic: bool,
        finish: Callable[[Sequence[Result]], Finished] | None = None,
    ) -> list[Result]:
        """Store the users that can be stored, and return for each item the user or what refused it; the route asks for an admin.

        An item that is a Problem already is passed through. With `is_atomic` the first refusal refuses all, naming each.
        `finish` makes the answer that is kept under an idempotency key, with the users or not at all.
        Raises InvalidInput and Conflict (atomic only), ClaimLost, Unavailable.
        """
        results: list[Result | None] = [self._refusal(item, place) for place, item in enumerate(items)]
        _refuse_all(results, is_atomic=is_atomic)
        drafts = [(place, item) for place, item in enumerate(items) if isinstance(item, Draft) and not results[place]]
        added = await self._hashed([draft for _, draft in drafts], actor)
        async with self._units() as unit:
            fields = await unit.users.add_many(added)
            for (place, _), new, field in zip(drafts, added, fields, strict=True):
                results[place] = _placed(taken(field), place) if field else new.user
            _refuse_all(results, is_atomic=is_atomic)
            found = [result for result in results if result is not None]
            if finish is not None:
                await unit.idempotency.finish(finish(found))
        for result in found:
            if isinstance(result, User):
                self._tally.user_created()
        self._announce()
        return found

    def _refusal(self, item: Draft | Problem, place: int) -> Problem | None:
        """Return what refuses an item before the store is asked."""
        if isinstance(item, Problem):
            return _placed(item, place)
        try:
            check_draft(item, self._strength)
        except Problem as problem:
            return _placed(problem, place)
        return None

    async def _hashed(self, drafts: Sequence[Draft], actor: Actor) -> list[AddedUser]:
        free = asyncio.Semaphore(HASHES_AT_ONCE)

        async def add(draft: Draft) -> AddedUser:
            async with free:
                password_hash = await self._passwords.hash(draft.password)
            user = user_of(draft)
            audit = entry_of("user.created", user_id=user.id, actor=actor, after=shown(user))
            return AddedUser(user, password_hash, event_of(user, "created"), audit)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(add(draft)) for draft in drafts]
        except* Unavailable as refused:
            raise refused.exceptions[0] from None
        return [task.result() for task in tasks]


def _placed(problem: Problem, place: int) -> Problem:
    """Return a problem whose fields name the item they belong to."""
    problem.errors = tuple(
        FieldError(f"body.items.{place}{error.field.removeprefix('body')}", error.message, error.code)
        for error in problem.errors
    )
    return problem


def _refuse_all(results: Sequence[Result | None], *, is_atomic: bool) -> None:
    refused = [result for result in results if isinstance(result, Problem)]
    if not is_atomic or not refused:
        return
    kind = Conflict if all(isinstance(problem, Conflict) for problem in refused) else InvalidInput
    errors = [error for problem in refused for error in problem.errors][:ERRORS_MAX]
    raise kind(
        f"{len(refused)} of {len(results)} items are refused, so none is stored", code="batch_refused", errors=errors
    )
