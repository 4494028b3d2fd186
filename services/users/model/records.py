"""Records: what is stored and passed about inside, immutable."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

Role = Literal["user", "admin"]
KeyState = Literal["next", "active", "retired"]
Purpose = Literal["verify", "reset"]
"""What a one-time token is good for: verifying an e-mail address, or setting a new password."""


@dataclass(frozen=True, slots=True)
class User:
    """A user as everybody inside may see it; the password's hash is kept apart. `version` begins with 1 and rises by one a change."""

    id: str
    username: str
    email: str
    full_name: str | None
    role: Role
    version: int
    created_at: datetime
    updated_at: datetime
    email_verified_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeletedUser:
    """A user that can still be restored; its name and address are free for others."""

    user: User
    password_hash: str
    deleted_at: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a log-in is checked against."""

    user: User
    password_hash: str


@dataclass(frozen=True, slots=True)
class Session:
    """One log-in.

    A refresh token has two halves: one that stays as long as the session, one that changes at every use. A known first half with a
    wrong second one is an old token used again. Only SHA-256 hashes of both are kept, and that of the second half before
    (`previous_hash`), which was exchanged at `rotated_at`. `address` and `user_agent` are of its last log-in or refresh, at `used_at`.
    """

    id: str
    user_id: str
    family_hash: bytes
    refresh_hash: bytes
    created_at: datetime
    expires_at: datetime
    previous_hash: bytes | None = None
    rotated_at: datetime | None = None
    used_at: datetime | None = None
    address: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a log-in or a refresh comes from, as its session shows it; both bounded."""

    address: str = ""
    user_agent: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A refresh token to be exchanged: hashes of its halves and of what follows the second, and the time.

    `grace_from`: an exchange at or after it may be made again, with the same result.
    """

    family_hash: bytes
    used_hash: bytes
    next_hash: bytes
    now: datetime
    grace_from: datetime
    client: Client


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, by a verified access token."""

    user_id: str
    role: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Match:
    """The versions that an `If-Match` or `If-None-Match` header names; `is_any` for `*`."""

    versions: frozenset[int] = frozenset()
    is_any: bool = False

    def takes(self, version: int) -> bool:
        return self.is_any or version in self.versions


@dataclass(frozen=True, slots=True)
class Event:
    """A domain event on its way to the bus; `id` is its message id there, `payload` a CloudEvent as JSON."""

    id: str
    subject: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to whom: `action` such as `user.updated`, ids empty where there is nobody, `before` and `after` masked.

    `number` is given by the store, in the order of writing; `address` is the client's.
    """

    action: str
    at: datetime
    user_id: str = ""
    actor_id: str = ""
    request_id: str = ""
    address: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries, newest first; what is empty does not limit. `before` is the number to go on from."""

    user_id: str = ""
    actor_id: str = ""
    action: str = ""
    since: datetime | None = None
    before: int | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True)
class IdempotencyClaim:
    """The right to run a request under its key.

    `scope_hash` is over method, route, who asks and key, `body_hash` over the body; `started_at` tells this run from a later one.
    """

    scope_hash: bytes
    body_hash: bytes
    started_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as it is kept under an idempotency key; it never holds a password or a token."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer of a request that has run under its claim."""

    claim: IdempotencyClaim
    answer: Answer


@dataclass(frozen=True, slots=True)
class AddedUser:
    """A new user with all that is stored beside it."""

    user: User
    password_hash: str
    event: Event
    audit: AuditEntry


@dataclass(frozen=True, slots=True)
class OneTimeToken:
    """A token as it is stored: by its SHA-256 only, good once, until `expires_at`, and while its user has the address `email`."""

    hash: bytes
    purpose: Purpose
    user_id: str
    email: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail on its way; `sealed` is the token it carries, readable only with the key seal.

    `tries` counts the attempts so far, the next is due at `next_try_at`; `number` is given by the store.
    """

    id: str
    recipient: str
    kind: Purpose
    sealed: bytes
    created_at: datetime
    expires_at: datetime
    next_try_at: datetime
    tries: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """A one-time token with the mail that carries it: stored together or not at all."""

    token: OneTimeToken
    mail: Mail


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A signing key as it is stored: the public half (32 raw bytes of Ed25519) open, the private one sealed.

    `next` is published and does not sign yet, `active` signs, `retired` is published until what it signed has expired.
    """

    kid: str
    public_key: bytes
    sealed_key: bytes
    created_at: datetime
    state: KeyState
    state_since: datetime


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a log-in gives."""

    access_token: str
    refresh_token: str
    expires_in_s: int
    session_lasts_s: float
