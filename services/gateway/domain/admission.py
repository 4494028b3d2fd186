"""Who may pass: the token a route asks for, verified once and remembered."""

from services.gateway.model import Auth
from shared import context
from shared.deadline import limit
from shared.errors import Forbidden
from shared.tokens import TokenVerifier

VERIFY_S_MAX = 5.0
"""An unknown token waits at most this long for the issuer's keys."""


async def admit(verifier: TokenVerifier, token: str, auth: Auth) -> None:
    """Let pass who `auth` asks for and note in the logs who it is.

    Raises Unauthorized, Forbidden, and Unavailable or DeadlineExceeded when no key to check the token with could be fetched.
    """
    identity = verifier.remembered(token)
    if identity is None:
        async with limit(context.deadline(), VERIFY_S_MAX, "checking the access token"):
            identity = await verifier.verify(token)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    if auth == "admin" and not identity.is_admin:
        raise Forbidden("this needs the role admin")
