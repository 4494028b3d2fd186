"""Who may pass: the token a route asks for, verified once and remembered."""

from services.gateway.domain.addresses import Client
from services.gateway.model import Auth
from shared import context
from shared.deadline import limit
from shared.errors import Forbidden
from shared.tokens import Identity, TokenVerifier

VERIFY_S_MAX = 5.0
"""An unknown token waits at most this long for the issuer's keys."""


async def verify(verifier: TokenVerifier, token: str) -> Identity:
    """Return who a token stands for. Raises Unauthorized; Unavailable and DeadlineExceeded where no key to check it with came."""
    async with limit(context.deadline(), VERIFY_S_MAX, "checking the access token"):
        return await verifier.verify(token)


def check_role(identity: Identity, auth: Auth) -> None:
    """Raises Forbidden where a route is for admins and this is none."""
    if auth == "admin" and not identity.is_admin:
        raise Forbidden("this needs the role admin")


def check_allowed(client: Client) -> None:
    """Raises Forbidden where addresses are listed and this is not one of them."""
    if not client.is_allowed:
        raise Forbidden("this address is not served here", code="address_not_allowed")


async def admit(verifier: TokenVerifier, token: str, auth: Auth) -> Identity:
    """Let pass who `auth` asks for and note in the logs who it is. Raises what verify and check_role do."""
    identity = verifier.remembered(token) or await verify(verifier, token)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    check_role(identity, auth)
    return identity
