"""What routes work with: the open parts of the service, and who asks."""

from collections.abc import Collection
from typing import Annotated, Protocol

from fastapi import Depends
from fastapi.security import OAuth2PasswordBearer
from starlette.requests import HTTPConnection

from services.users.domain.accounts import AccountService
from services.users.domain.auth import AuthService
from services.users.domain.batch import BatchService
from services.users.domain.idempotency import Idempotency
from services.users.domain.keys import KeyRotation
from services.users.domain.ports import AuditLog
from services.users.domain.reads import UserReads
from services.users.domain.sessions import SessionService
from services.users.domain.throttle import client_address
from services.users.domain.users import UserService
from services.users.model.records import Actor, Client
from services.users.routes.cursors import Cursors
from shared.app import parts_of
from shared.errors import Forbidden
from shared.identity import SignedIn, signed_in
from shared.tokens import TokenVerifier

USER_AGENT_CHARS_MAX = 256


class PublishedKeys(Protocol):
    """The public keys as they are sent out."""

    @property
    def document(self) -> bytes: ...

    @property
    def etag(self) -> str: ...

    @property
    def max_age_s(self) -> int:
        """How long others may keep them."""


class RouteParts(Protocol):
    @property
    def users(self) -> UserService: ...

    @property
    def reads(self) -> UserReads: ...

    @property
    def auth(self) -> AuthService: ...

    @property
    def sessions(self) -> SessionService: ...

    @property
    def accounts(self) -> AccountService: ...

    @property
    def keys(self) -> PublishedKeys: ...

    @property
    def rotation(self) -> KeyRotation: ...

    @property
    def batches(self) -> BatchService: ...

    @property
    def idempotency(self) -> Idempotency: ...

    @property
    def audit(self) -> AuditLog: ...

    @property
    def cursors(self) -> Cursors: ...

    @property
    def origins(self) -> Collection[str]:
        """Foreign origins whose pages may use the refresh cookie."""

    @property
    def verifier(self) -> TokenVerifier: ...


async def _parts(connection: HTTPConnection) -> RouteParts:
    found: RouteParts = parts_of(connection)
    return found


Parts = Annotated[RouteParts, Depends(_parts)]

# Only so that the documents show where tokens come from; `shared.identity` is what checks them.
SHOWN_SCHEME = Depends(OAuth2PasswordBearer("/auth/token", auto_error=False))


async def maybe_actor(connection: HTTPConnection) -> Actor | None:
    """Return who asks on a public route, None where no token is sent. Raises Unauthorized for one that is not valid."""
    if "authorization" not in connection.headers:
        return None
    identity = await signed_in(connection)
    return Actor(identity.subject, identity.role, identity.session_id)


async def _reader(identity: SignedIn) -> Actor:
    """Return who asks, by the token alone: a read costs no look-up of the session."""
    return Actor(identity.subject, identity.role, identity.session_id)


Reader = Annotated[Actor, Depends(_reader)]


async def _writer(reader: Reader, parts: Parts) -> Actor:
    """Return who asks, when the session still lives; the role is the stored one, not the token's."""
    user = await parts.sessions.user_of(reader)
    return Actor(user.id, user.role, reader.session_id)


async def _admin_writer(reader: Reader, parts: Parts) -> Actor:
    """Return who asks, when the session still lives and the stored record, as the token, says admin."""
    user = await parts.sessions.user_of(reader)
    if user.role != "admin":
        raise Forbidden("this needs the role admin")
    return Actor(user.id, user.role, reader.session_id)


Writer = Annotated[Actor, Depends(_writer)]
AdminWriter = Annotated[Actor, Depends(_admin_writer)]


async def _client(connection: HTTPConnection) -> Client:
    peer = connection.client.host if connection.client else ""
    agent = connection.headers.get("user-agent", "")
    readable = "".join(character for character in agent[:USER_AGENT_CHARS_MAX] if character.isprintable())
    return Client(client_address(connection.headers.get("x-forwarded-for", ""), peer), readable)


AskedBy = Annotated[Client, Depends(_client)]
"""Whom a request comes from, as the gateway says it."""
