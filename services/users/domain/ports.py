"""What the rules need from outside, as Protocols; adapters fulfil them, one contract suite holds each to its word."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from email.message import EmailMessage
from typing import Protocol

from services.users.model.listing import Listed, UserQuery
from services.users.model.records import (
    AddedUser,
    Answer,
    AuditEntry,
    AuditQuery,
    Credentials,
    DeletedUser,
    Event,
    Exchange,
    Finished,
    IdempotencyClaim,
    Letter,
    Mail,
    OneTimeToken,
    Session,
    StoredKey,
    User,
)

SESSIONS_PER_USER_MAX = 100
"""One more ends the oldest, so that a script that only ever logs in cannot fill the table."""


class VersionChanged(Exception):
    """The record is not (or no longer) at the version that a write expected."""


class RefreshReused(Exception):
    """A refresh token that had been exchanged before was used again; its session is still there."""

    def __init__(self, session_id: str, user_id: str) -> None:
        super().__init__(session_id)
        self.session_id = session_id
        self.user_id = user_id


class UserRepository(Protocol):
    """Every write stores its event and its line of the audit log with the change, or nothing. All calls may raise Unavailable."""

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
        """Store a new user, and with it a mail to it and the answer `finished` under its idempotency key.

        Raises Conflict naming the field that is taken, ClaimLost.
        """

    async def add_many(self, new: Sequence[AddedUser]) -> Sequence[str]:
        """Store those whose name and address are free, also of each other.

        Return for each the field that is taken, empty where the user was stored.
        """

    async def get(self, user_id: str) -> User:
        """Return a user. Raises NotFound."""

    async def read_json(self, user_id: str) -> tuple[int, bytes] | None:
        """Return a user's version and its view as JSON, None when there is no such user."""

    async def find_login(self, login: str) -> Credentials | None:
        """Return whom a folded username or a normalised e-mail address belongs to, None when to nobody."""

    async def list(self, query: UserQuery) -> Listed:
        """Return a page of users."""

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
        """Store a changed user, whose version is `expected_version` + 1, and a mail to it.

        A `password_hash` replaces the old one, and no token that was to set one is good any more. With it or with `ended`, all of the
        user's sessions but `keep_session` end; `ended` is the event by which the other services learn of that, so whoever gives a
        password gives it too. `spent` is the hash of the one-time token that allows the change and is used up by it.
        Raises VersionChanged, also when that token is gone, Conflict naming the field that is taken.
        """

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
        """Delete a user with its sessions, of which `ended` tells; it is kept for restoring where `deleted_at` says when, else gone.

        Raises VersionChanged.
        """

    async def get_deleted(self, user_id: str) -> DeletedUser:
        """Return a user that can be restored. Raises NotFound."""

    async def restore(self, user: User, event: Event, *, audit: AuditEntry | None = None) -> None:
        """Make a deleted user live again as `user`, one version on, with the password it had.

        Raises NotFound, Conflict naming the field that is taken by now.
        """

    async def purge(self, user_id: str, *, audit: AuditEntry | None = None) -> None:
        """Forget a deleted user for good. Raises NotFound."""

    async def purge_deleted_before(self, moment: datetime, *, audit: AuditEntry, limit: int) -> int:
        """Forget up to `limit` users deleted before a moment, each with a line like `audit`; return how many those were."""

    async def rehash(self, user_id: str, *, old_hash: str, new_hash: str) -> None:
        """Replace a hash of the same password; nothing happens when it is no longer `old_hash`."""

    async def has_admin(self) -> bool: ...


class SessionRepository(Protocol):
    """All calls may raise Unavailable."""

    async def open(self, session: Session, *, audit: AuditEntry | None = None) -> int:
        """Store a session and drop the user's expired ones; return how many it has now. Raises NotFound: the user is gone."""

    async def user_of(self, session_id: str, *, now: datetime) -> User:
        """Return whose live session this is. Raises NotFound."""

    async def of_user(self, user_id: str, *, now: datetime) -> list[Session]:
        """Return a user's live sessions, newest first, up to twice the limit."""

    async def rotate(self, exchange: Exchange) -> tuple[str, User]:
        """Exchange the hash of the refresh token in one step; return the session's id and user.

        The newest exchange may be made again from `grace_from` on: it changes nothing more, so that all who make it at once get the
        same. Raises NotFound when there is no such live session, RefreshReused when `used_hash` is older than that.
        """

    async def end(
        self,
        user_id: str,
        *,
        session_id: str = "",
        keep: str = "",
        events: Sequence[Event] = (),
        audit: AuditEntry | None = None,
    ) -> int:
        """Remove a session of a user, or all but `keep`; return how many. Events and audit are stored where any was there."""


class AuditLog(Protocol):
    """Most entries are written by whoever stores what they tell of. All calls may raise Unavailable."""

    async def add(self, entry: AuditEntry) -> None:
        """Store an entry that tells of nothing else that is stored."""

    async def page(self, query: AuditQuery) -> list[AuditEntry]:
        """Return up to `query.limit` entries, newest first."""

    async def remove_before(self, moment: datetime, *, limit: int) -> int:
        """Forget up to `limit` entries older than a moment; return how many those were."""


class ClaimLost(Exception):
    """The request has run longer than its lease, and another one has taken over its idempotency key; nothing was stored."""


class KeyReused(Exception):
    """The idempotency key came with another body before."""


class KeyRunning(Exception):
    """A request with this idempotency key is running."""


class IdempotencyStore(Protocol):
    """All calls may raise Unavailable."""

    async def claim(self, claim: IdempotencyClaim, *, died_before: datetime) -> Answer | None:
        """Take a key, or return the answer kept under it; a claim that began before `died_before` is taken over.

        Raises KeyReused, KeyRunning.
        """

    async def finish(self, finished: Finished) -> None:
        """Keep an answer. Raises ClaimLost."""

    async def release(self, claim: IdempotencyClaim) -> None:
        """Give a key back; nothing happens when an answer is kept under it or another request has it."""

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        """Forget up to `limit` keys that are over; return how many those were."""


class Unit(Protocol):
    """A unit of work: what its repositories write is stored together when its block ends, and not at all when that raises."""

    @property
    def users(self) -> UserRepository: ...

    @property
    def idempotency(self) -> IdempotencyStore: ...


class OutboxLine(Protocol):
    """A relay's own connection to the outbox. All calls may raise Unavailable, after which the line is dead."""

    async def lead(self) -> bool:
        """Try to become the one active relay of the fleet; True stays true as long as the line lives."""

    async def waiting(self, limit: int) -> list[Event]:
        """Return the oldest events; those of one user come in the order of its changes."""

    async def done(self, event_ids: Sequence[str]) -> None:
        """Remove events, handed out by the last `waiting`, that are on the bus."""

    async def backlog(self) -> int:
        """Count the events that wait."""


class Outbox(Protocol):
    def line(self) -> AbstractAsyncContextManager[OutboxLine]:
        """Open a line. Raises Unavailable."""


KeyChange = Callable[[Sequence[StoredKey]], tuple[Sequence[StoredKey], Sequence[AuditEntry]]]
"""What becomes of the keys, given those there are: the keys there are to be, and what the audit log says of it."""


class KeyStore(Protocol):
    """All calls may raise Unavailable."""

    async def all(self) -> list[StoredKey]:
        """Return the keys, newest first."""

    async def change(self, decide: KeyChange) -> list[StoredKey]:
        """Store what `decide` makes of the keys, while nobody else changes them; return the keys there are then."""


class OneTimeTokens(Protocol):
    """All calls may raise Unavailable."""

    async def issue(self, letter: Letter, *, audit: AuditEntry) -> bool:
        """Store a token, in place of its user's older one of the purpose, and its mail; return False, and store neither, where there
        is no such user with the token's address. The audit line is stored either way, so that both take the same time."""

    async def find(self, token_hash: bytes, *, now: datetime) -> OneTimeToken | None:
        """Return a living token."""

    async def living(self, token_hashes: Sequence[bytes], *, now: datetime) -> set[bytes]:
        """Return those of the hashes that belong to a living token."""

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        """Forget up to `limit` tokens that are over; return how many those were."""


class MailOutbox(Protocol):
    """All calls may raise Unavailable."""

    async def claim(self, now: datetime, *, until: datetime, limit: int) -> list[Mail]:
        """Take up to `limit` mails that are due, each with one try more; nobody else gets them before `until`."""

    async def done(self, mail: Mail) -> None:
        """Remove a mail."""

    async def retry(self, mail: Mail, *, at: datetime) -> None:
        """Make a mail due again."""

    async def backlog(self) -> int:
        """Count the mails that wait."""

    async def remove_expired(self, now: datetime, *, limit: int) -> int:
        """Forget up to `limit` mails that are over; return how many those were."""


class MailRefused(Exception):
    """This mail will never be taken."""


class MailUnavailable(Exception):
    """No mail is taken at the moment."""


class Post(Protocol):
    async def send(self, message: EmailMessage) -> None:
        """Hand a mail over, within seconds. Raises MailRefused, MailUnavailable."""


class SealBroken(Exception):
    """What was sealed is not whole, not bound to what it came with, or was sealed with another key."""


class Seal(Protocol):
    def close(self, text: str, *, bound_to: str) -> bytes:
        """Return the text encrypted, so that only `open` with the same `bound_to` gives it back."""

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        """Return the text. Raises SealBroken."""


class PasswordHasher(Protocol):
    """Slow on purpose, off the event loop; hash and verify raise Unavailable when too many wait already."""

    @property
    def decoy(self) -> str:
        """A hash with the current parameters that no password fits."""

    async def hash(self, password: str) -> str: ...

    async def verify(self, password: str, password_hash: str) -> bool: ...

    def is_outdated(self, password_hash: str) -> bool:
        """Tell whether a hash was made with other parameters than the current ones."""


class TokenIssuer(Protocol):
    @property
    def lasts_s(self) -> int: ...

    def issue(self, user: User, session_id: str) -> str:
        """Return a signed access token."""

    def issue_ticket(self, user: User, session_id: str, *, until: float) -> str:
        """Return a signed ticket for one socket, which may live until then (epoch seconds)."""


class Tally(Protocol):
    """Business counts."""

    def user_created(self) -> None: ...

    def login(self, result: str) -> None:
        """Count a log-in by its result: ok, refused, locked or limited."""

    def session_ended(self, reason: str) -> None:
        """Count an end of one or more sessions by its reason: logged_out, revoked, reused or over_limit."""

    def backlog(self, events: int) -> None:
        """Report how many events wait in the outbox."""

    def mail_sent(self) -> None: ...

    def mail_failed(self, reason: str) -> None:
        """Count a mail that was not taken: unreachable (tried again), refused, expired or unreadable (given up)."""

    def mail_limited(self) -> None:
        """Count a mail that was not written, because there were too many to its account or address."""

    def mail_backlog(self, mails: int) -> None:
        """Report how many mails wait."""
