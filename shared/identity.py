"""Who is asking: FastAPI dependencies that turn the bearer token into an Identity, and refuse where a route needs more."""

from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import HTTPConnection

from shared import context
from shared.app import parts_of
from shared.errors import Forbidden, Unauthorized
from shared.tokens import Identity, TokenVerifier


class HasVerifier(Protocol):
    """What a service's parts need for these dependencies."""

    @property
    def verifier(self) -> TokenVerifier: ...


def bearer_of(authorization: str) -> str:
    """Return the token of an `Authorization` header (RFC 6750). Raises Unauthorized when there is none."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized()
    return token.strip()


async def identify(verifier: TokenVerifier, authorization: str) -> Identity:
    """Return whom an `Authorization` header stands for, and note it for the logs. Raises Unauthorized, Unavailable."""
    token = bearer_of(authorization)
    identity = verifier.remembered(token) or await verifier.verify(token)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    return identity


async def signed_in(connection: HTTPConnection) -> Identity:
    """Return who is asking. Raises Unauthorized."""
    parts: HasVerifier = parts_of(connection)
    return await identify(parts.verifier, connection.headers.get("authorization", ""))


async def admin(identity: Annotated[Identity, Depends(signed_in)]) -> Identity:
    """Return who is asking when that is an admin. Raises Unauthorized or Forbidden."""
    if not identity.is_admin:
        raise Forbidden("this needs the role admin")
    return identity


SignedIn = Annotated[Identity, Depends(signed_in)]
Admin = Annotated[Identity, Depends(admin)]
