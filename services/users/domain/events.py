"""The events that tell others of a user: CloudEvents 1.0 as JSON, without e-mail address or name."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson

from services.users.model.records import Event, User
from shared import context
from shared.ids import new_id
from shared.revocation import Revocation

USER_EVENTS = "evt.users.user."
DELETED = "evt.users.user.deleted.v1"
CREATED = "evt.users.user.created.v1"
SOURCE = "/users"
"""A URI reference, as CloudEvents asks for; the gateway's address differs by fleet."""


def event_of(user: User, verb: str, *, changed: Sequence[str] = ()) -> Event:
    """Return the event `users.user.<verb>` on subject `evt.users.user.<verb>.v1`.

    Data: `{"id", "username", "role", "version"}`, for `updated` also `"changed"`, the names of the fields (`password` among them).
    """
    data: dict[str, object] = {"id": user.id, "username": user.username, "role": user.role, "version": user.version}
    if changed:
        data["changed"] = sorted(changed)
    return _event(f"user.{verb}", user.id, data)


def session_ended(revocation: Revocation, reason: str) -> Event:
    """Return `users.session.ended`: which access tokens every service refuses from now on, and why; see shared/revocation.py."""
    return _event("session.ended", revocation.user_id, {**revocation.as_data(), "reason": reason})


def session_reused(user_id: str, session_id: str) -> Event:
    """Return `users.session.reused`: an old refresh token came back, so it or the newer one is in wrong hands."""
    return _event("session.reused", user_id, {"user_id": user_id, "session_id": session_id})


def _event(kind: str, user_id: str, data: Mapping[str, object]) -> Event:
    event_id = new_id()
    document: dict[str, object] = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": f"users.{kind}",
        "subject": user_id,
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    found = context.current()
    if found is not None and found.traceparent:
        document["traceparent"] = found.traceparent
    return Event(event_id, f"evt.users.{kind}.v1", orjson.dumps(document))


def versions_told(events: Sequence[Event]) -> dict[str, int]:
    """Return, by user, the version below which nothing is current any more according to these events."""
    found: dict[str, int] = {}
    for event in events:
        if event.subject.startswith(USER_EVENTS) and event.subject != CREATED:
            data = orjson.loads(event.payload)["data"]
            # What was deleted is not current at its last version either.
            version = data["version"] + (event.subject == DELETED)
            found[data["id"]] = max(version, found.get(data["id"], 0))
    return found
