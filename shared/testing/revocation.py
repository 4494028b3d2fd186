"""The end of a session for tests, as the service that keeps sessions tells of it."""

import json
import time

import jwt

from shared.bus.connect import connected
from shared.revocation import Revocation

ISSUER = "users"
EVENT = "evt.users.session.ended.v1"
CONTROL = "ctl.users.revoked"


def event_of(revocation: Revocation) -> bytes:
    """Return the event that tells of a revocation."""
    return json.dumps({"specversion": "1.0", "data": {**revocation.as_data(), "reason": "test"}}).encode()


async def end_session(nats_url: str, token: str) -> None:
    """Tell every service on a bus that the session of an access token has ended."""
    claims = jwt.decode(token, options={"verify_signature": False})
    now = time.time()
    async with connected(nats_url, name="test") as bus:
        await bus.publish(CONTROL, event_of(Revocation(claims["sub"], now, now + 630, claims["sid"])))
