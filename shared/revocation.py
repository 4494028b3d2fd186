"""Revocation: access tokens that are refused before they expire, known to every service without a call per request.

Whoever ends a session stores an event in the log and publishes it on the control subject. Each service keeps a set in memory, fed by
both. What the push did not bring (a start, an outage) is read from the log, as far back as a token can live.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import structlog
from pydantic import Field, TypeAdapter

# pydantic reads TypedDict from typing_extensions on Python < 3.12.
from typing_extensions import TypedDict

from shared.bus.base import Bus, BusUnavailable, Message
from shared.ids import is_id, made_at
from shared.tasks import Supervisor
from shared.tokens import LEEWAY_S, TOKEN_LASTS_S_MAX, Identity, TokenVerifier

REVOKED_MAX = 100_000
READ_BACK_S = TOKEN_LASTS_S_MAX + 2 * LEEWAY_S
LOG = "EVT"
LOOK_S = 0.2
RETRY_S = 1.0
FIRST_WAIT_S = 1.0
PAGE = 1000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Revocation:
    """The tokens of an ended session, or of all sessions that a user had at `ended_at` but `kept_session_id`.

    `ended_at`, and `until`, when the last of the tokens has expired, are epoch seconds.
    """

    user_id: Annotated[str, Field(min_length=1)]
    ended_at: float
    until: float
    session_id: str = ""
    kept_session_id: str = ""

    def covers(self, token: Identity) -> bool:
        """Tell whether a token is one of these."""
        if token.subject != self.user_id:
            return False
        if self.session_id:
            return token.session_id == self.session_id
        # By the session's age: one of its tokens may be on its way to the client while it ends.
        since = made_at(token.session_id) if is_id(token.session_id) else token.issued_at
        return since < self.ended_at and token.session_id != self.kept_session_id

    def as_data(self) -> dict[str, Any]:
        """Return it as the data of an event; what is empty is left out."""
        return {name: value for name, value in asdict(self).items() if value != ""}

    @classmethod
    def of_event(cls, document: bytes) -> "Revocation":
        """Read it from an event (CloudEvents, JSON). Raises ValueError."""
        return _EVENT.validate_json(document)["data"]


class _Event(TypedDict):
    data: Revocation


_EVENT = TypeAdapter(_Event)


class RevokedTokens:
    """The revocations that still matter, at most `entries_max`.

    When it is full the oldest is forgotten and every token issued before its time is refused instead, whoever's it is: a revoked one
    never passes again, the others are renewed by refreshing. `on_added` is called with each new one.
    """

    def __init__(self, *, entries_max: int = REVOKED_MAX, clock: Callable[[], float] = time.time) -> None:
        self.on_added: list[Callable[[Revocation], None]] = []
        self._entries: dict[str, Revocation] = {}
        self._entries_max = entries_max
        self._clock = clock
        self._floor = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def covers(self, token: Identity) -> bool:
        """Tell whether a token is revoked."""
        entries = self._entries
        if not entries:
            # As most of the time.
            return False
        if token.session_id in entries:
            return True
        found = entries.get(token.subject)
        return (found is not None and found.covers(token)) or token.issued_at <= self._floor

    def add(self, revocation: Revocation) -> None:
        """Take a revocation; one that is known or past changes nothing."""
        now = self._clock()
        key = revocation.session_id or revocation.user_id
        known = self._entries.get(key)
        # Of a user the later one says all that the earlier did: what that one spared has ended, or begun after it.
        if revocation.until <= now or (known is not None and known.ended_at >= revocation.ended_at):
            return
        self._entries.pop(key, None)
        self._entries[key] = revocation
        self._trim(now)
        for tell in self.on_added:
            tell(revocation)

    def _trim(self, now: float) -> None:
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if oldest.until > now:
                if len(self._entries) <= self._entries_max:
                    return
                if self._floor < now - TOKEN_LASTS_S_MAX:
                    _log.warning("revocations_full", entries_max=self._entries_max, action="older tokens are refused")
                self._floor = max(self._floor, oldest.ended_at)
            del self._entries[key]


class RevocationFeed:
    """Keeps a set of revoked tokens up to date; `issuer` is the service that ends sessions and has the keys.

    `on_keys_changed` is called when that service has other keys than before. While the bus is away tokens go on being verified, which
    is logged once.
    """

    def __init__(self, open_bus: Callable[[], AbstractAsyncContextManager[Bus]], *, issuer: str) -> None:
        self.revoked = RevokedTokens()
        self.on_keys_changed: list[Callable[[], None]] = []
        self.tried = asyncio.Event()
        """Set once the log has been asked for the first time, whatever it said."""
        self._open_bus = open_bus
        self._event_subject = f"evt.{issuer}.session.ended.v1"
        self._control_subject = f"ctl.{issuer}.revoked"
        self._keys_subject = f"ctl.{issuer}.keys"
        self._bus: Bus | None = None
        self._failing = False
        self._lacks_log = False

    async def announce(self, document: bytes) -> None:
        """Revoke here at once and tell all services that listen; whom that does not reach learns of it by the log."""
        self.revoked.add(Revocation.of_event(document))
        await self._publish(self._control_subject, document)

    async def announce_keys(self) -> None:
        """Have all services that listen look at the issuer's keys again; the others do so by themselves in minutes."""
        await self._publish(self._keys_subject, b"")

    async def _publish(self, subject: str, document: bytes) -> None:
        if self._bus is not None:
            with suppress(BusUnavailable):
                await self._bus.publish(subject, document)

    async def run(self) -> None:
        """Follow for ever; a service runs it as a background task."""
        while True:
            try:
                async with self._open_bus() as bus:
                    await self._follow(bus)
            except BusUnavailable as error:
                self._note(str(error))
                self.tried.set()
            finally:
                self._bus = None
            await asyncio.sleep(RETRY_S)

    async def _follow(self, bus: Bus) -> None:
        # First listen, then read: what is stored meanwhile comes twice rather than never.
        heard = [
            await bus.subscribe(self._control_subject, self._take),
            await bus.subscribe(self._event_subject, self._take),
            await bus.subscribe(self._keys_subject, self._look_at_keys),
        ]
        self._bus = bus
        known: tuple[int, int] | None = None
        try:
            while True:
                state = (bus.session, sum(subscription.dropped for subscription in heard))
                if state != known and bus.connected and await self._caught_up(bus):
                    known = state
                self.tried.set()
                await asyncio.sleep(LOOK_S if state == known else RETRY_S)
        finally:
            for subscription in heard:
                await subscription.stop()

    async def _caught_up(self, bus: Bus) -> bool:
        offset = 0
        try:
            while True:
                found = await bus.read(LOG, self._event_subject, after=offset, limit=PAGE, age_max_s=READ_BACK_S)
                for message in found:
                    await self._take(message)
                if len(found) < PAGE:
                    break
                offset = found[-1].offset
        except BusUnavailable as error:
            self._note(str(error) if not bus.connected else "")
            if bus.connected and not self._lacks_log:
                # As before the first event ever: what is not there has nothing to say.
                _log.info("revocations_not_read", reason=str(error)[:200])
                self._lacks_log = True
            return False
        self._note("")
        self._lacks_log = False
        return True

    async def _take(self, message: Message) -> None:
        try:
            self.revoked.add(Revocation.of_event(message.data))
        except ValueError as error:
            # Not the error's text: it shows what was sent.
            _log.warning("revocation_unreadable", subject=message.subject, reason=type(error).__name__)

    async def _look_at_keys(self, _: Message) -> None:
        for look in self.on_keys_changed:
            look()

    def _note(self, failing: str) -> None:
        if failing and not self._failing:
            _log.warning("revocations_not_followed", reason=failing[:200])
        elif self._failing and not failing:
            _log.info("revocations_followed")
        self._failing = bool(failing)


async def follow(
    tasks: Supervisor,
    verifier: TokenVerifier,
    open_bus: Callable[[], AbstractAsyncContextManager[Bus]],
    *,
    issuer: str,
) -> RevocationFeed:
    """Have a verifier follow what its issuer revokes; returns when that was read once, or after a second without a bus."""
    feed = RevocationFeed(open_bus, issuer=issuer)
    feed.on_keys_changed.append(verifier.renew)
    verifier.revoked = feed.revoked
    tasks.start("revocations", feed.run)
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WAIT_S):
            await feed.tried.wait()
    return feed
