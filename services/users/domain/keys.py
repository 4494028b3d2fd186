"""Signing keys in turn: published first, then signing, then published until the last token they signed has expired."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from services.users.domain.audit import entry_of
from services.users.domain.ports import KeyStore
from services.users.model.records import Actor, AuditEntry, KeyState, StoredKey
from shared.errors import Conflict, NotFound, Unavailable

POLL_S = 3.0
"""So late at most a replica knows what another has done, where the push did not reach it."""


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """A key signs for `lasts`, is published for `ahead` before that, and for `kept` after it."""

    lasts: timedelta
    ahead: timedelta
    kept: timedelta


def is_due(keys: Sequence[StoredKey], policy: KeyPolicy, now: datetime) -> bool:
    """Tell whether it is time to publish a key that will sign next."""
    if any(key.state == "next" for key in keys):
        return False
    return all(key.state_since + policy.lasts - policy.ahead <= now for key in keys if key.state == "active")


def settled(
    keys: Sequence[StoredKey],
    policy: KeyPolicy,
    now: datetime,
    *,
    fresh: StoredKey | None = None,
    at_once: bool = False,
) -> list[StoredKey]:
    """Return the keys as they are to be now, newest first.

    `fresh` is published where none is waiting to sign; a waiting one signs when it has been published long enough, or `at_once`.
    """
    found = [key for key in keys if key.state != "retired" or key.state_since + policy.kept > now]
    if fresh is not None and not any(key.state == "next" for key in found):
        found = [_turned(fresh, "next", now), *found]
    coming = next((key for key in found if key.state == "next"), None)
    # Of several that sign, as after a roll-out, the newest stays.
    signing = next((key for key in found if key.state == "active"), None)
    if coming is not None and (at_once or signing is None or coming.state_since + policy.ahead <= now):
        signing = coming
    return [_placed(key, signing, now) for key in found]


def _placed(key: StoredKey, signing: StoredKey | None, now: datetime) -> StoredKey:
    if signing is not None and key.kid == signing.kid:
        return _turned(key, "active", now)
    return _turned(key, "retired", now) if key.state == "active" else key


def _turned(key: StoredKey, state: KeyState, now: datetime) -> StoredKey:
    return key if key.state == state else replace(key, state=state, state_since=now)


class KeyRotation:
    """Runs on every replica; each change is made by one of them, under the store's lock, on the keys as they are then.

    `make` returns a new, sealed key. `changed` is called on every replica that sees other keys than before: it takes them over.
    `tell` is called by the one that made a change, to have the others look at once.
    """

    def __init__(
        self,
        store: KeyStore,
        policy: KeyPolicy,
        *,
        make: Callable[[], Awaitable[StoredKey]],
        changed: Callable[[Sequence[StoredKey]], Awaitable[None]],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._policy = policy
        self._make = make
        self._changed = changed
        self._tell = tell
        self._woken = asyncio.Event()
        self._is_away = False
        self._log = structlog.get_logger()

    def wake(self) -> None:
        """Look now rather than at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Rotate when it is time, for ever; a service runs it as a background task."""
        while True:
            self._woken.clear()
            try:
                await self.look()
                self._is_away = False
            except Unavailable as error:
                # The keys that are known go on.
                if not self._is_away:
                    self._log.warning("keys_not_looked_at", reason=str(error)[:200])
                self._is_away = True
            await self._sleep()

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._woken.wait()
        except TimeoutError:
            return

    async def look(self) -> None:
        """Do what is due and take over what has changed. Raises Unavailable."""
        keys, now = await self._store.all(), datetime.now(UTC)
        fresh = await self._make() if is_due(keys, self._policy, now) else None
        if settled(keys, self._policy, now, fresh=fresh) != list(keys):
            await self._change(fresh=fresh)
        else:
            await self._changed(keys)

    async def rotate(self, actor: Actor, *, at_once: bool = False) -> list[StoredKey]:
        """Publish the next key now; it signs when it has been published long enough, or `at_once`. Raises Unavailable."""
        return await self._change(fresh=await self._make(), at_once=at_once, actor=actor)

    async def all(self) -> list[StoredKey]:
        """Return the keys, newest first. Raises Unavailable."""
        return await self._store.all()

    async def retire(self, actor: Actor, kid: str) -> None:
        """Forget a key that does not sign; tokens of it are refused. Raises NotFound, Conflict (it signs), Unavailable."""

        def without(keys: Sequence[StoredKey]) -> tuple[list[StoredKey], list[AuditEntry]]:
            found = next((key for key in keys if key.kid == kid), None)
            if found is None:
                raise NotFound("there is no such key")
            if found.state == "active":
                raise Conflict("this key signs: rotate at once, then retire it", code="key_signs")
            return [key for key in keys if key.kid != kid], [_entry(found, "removed", actor)]

        await self._changed(await self._store.change(without))
        await self._tell()

    async def _change(
        self, *, fresh: StoredKey | None, at_once: bool = False, actor: Actor | None = None
    ) -> list[StoredKey]:
        def settle(keys: Sequence[StoredKey]) -> tuple[list[StoredKey], list[AuditEntry]]:
            now = datetime.now(UTC)
            # Nobody asked for it: another replica may have made one since this one looked.
            needed = fresh if actor is not None or is_due(keys, self._policy, now) else None
            after = settled(keys, self._policy, now, fresh=needed, at_once=at_once)
            return after, _entries(keys, after, actor)

        keys = await self._store.change(settle)
        await self._changed(keys)
        await self._tell()
        return keys


def _entries(before: Sequence[StoredKey], after: Sequence[StoredKey], actor: Actor | None) -> list[AuditEntry]:
    known = {key.kid: key.state for key in before}
    left = {key.kid for key in after}
    return [
        *(_entry(key, key.state, actor) for key in after if known.get(key.kid) != key.state),
        *(_entry(key, "removed", actor) for key in before if key.kid not in left),
    ]


def _entry(key: StoredKey, state: str, actor: Actor | None) -> AuditEntry:
    return entry_of(f"key.{state}", actor=actor, after={"kid": key.kid})
