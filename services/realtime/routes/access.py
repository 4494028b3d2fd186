"""Access: what the routes work with, and who is allowed in, whichever way the token came."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from services.realtime.hub.hub import Hub
from shared import context
from shared.app import parts_of
from shared.checks import Readiness
from shared.errors import Unauthorized, Unavailable
from shared.identity import bearer_of
from shared.tokens import Identity, TokenVerifier, session_ended

SUBPROTOCOL = "rt.v1.json"
BEARER_SUBPROTOCOL = "bearer."
BUS_AWAY = Unavailable("live messages are not available at the moment", code="bus_unavailable")


@dataclass(frozen=True, slots=True)
class Parts:
    """`replica` is opaque: it tells clients one replica from another and says nothing else."""

    hub: Hub
    verifier: TokenVerifier
    readiness: Readiness
    replica: str
    heartbeat_s: float
    leeway_s: float


def open_parts(connection: HTTPConnection) -> Parts:
    """Return the open resources."""
    parts: Parts = parts_of(connection)
    return parts


def token_of(connection: HTTPConnection) -> str:
    """Return the token from the header, `?token=`, or an offered subprotocol `bearer.<token>`. Raises Unauthorized."""
    header = connection.headers.get("authorization")
    if header is not None:
        return bearer_of(header)
    token = connection.query_params.get("token")
    if token:
        return token
    for offered in connection.scope.get("subprotocols", ()):
        if offered.startswith(BEARER_SUBPROTOCOL):
            return str(offered.removeprefix(BEARER_SUBPROTOCOL))
    raise Unauthorized()


async def identify(connection: HTTPConnection, parts: Parts) -> Identity:
    """Return who is asking. Raises Unauthorized; Unavailable while this replica drains."""
    if parts.readiness.draining.is_set():
        raise Unavailable("this replica is stopping; connect again", code="draining")
    token = token_of(connection)
    identity = parts.verifier.remembered(token) or await parts.verifier.verify(token)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    return identity


def check_not_revoked(identity: Identity, parts: Parts) -> None:
    """Raise Unauthorized where the session ended before its connection could be found by that."""
    if parts.verifier.revoked is not None and parts.verifier.revoked.covers(identity):
        raise session_ended()
