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


async def identify(connection: HTTPConnection, parts: Parts) -> Identity:
    """Return who is asking. Raises Unauthorized; Unavailable while this replica drains."""
    if parts.readiness.draining.is_set():
        raise Unavailable("this replica is stopping; connect again", code="draining")
    identity = await _identity_of(connection, parts.verifier)
    found = context.current()
    if found is not None:
        found.subject = identity.subject
    return identity


async def _identity_of(connection: HTTPConnection, verifier: TokenVerifier) -> Identity:
    """Take the token from the header, `?token=`, `?ticket=`, or an offered subprotocol `bearer.<token>`. Raises Unauthorized."""
    header = connection.headers.get("authorization")
    token = connection.query_params.get("token") if header is None else bearer_of(header)
    if not token:
        # Spent by the gateway, which sees all replicas; here it is only checked.
        ticket = connection.query_params.get("ticket")
        if ticket:
            return await verifier.verify_ticket(ticket)
        token = _offered(connection)
    return verifier.remembered(token) or await verifier.verify(token)


def _offered(connection: HTTPConnection) -> str:
    for offered in connection.scope.get("subprotocols", ()):
        if offered.startswith(BEARER_SUBPROTOCOL):
            return str(offered.removeprefix(BEARER_SUBPROTOCOL))
    raise Unauthorized()


def check_not_revoked(identity: Identity, parts: Parts) -> None:
    """Raise Unauthorized where the session ended before its connection could be found by that."""
    if parts.verifier.revoked is not None and parts.verifier.revoked.covers(identity):
        raise session_ended()
