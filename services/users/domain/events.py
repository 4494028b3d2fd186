"""The events that tell others of a user: CloudEvents 1.0 as JSON, without e-mail address or name."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from services.users.model.records import Event, User
from shared import context
from shared.ids import new_id

SOURCE = "/users"
"""A URI reference, as CloudEvents asks for; the gateway's address differs by fleet."""


def event_of(user: User, verb: str, *, changed: Sequence[str] = ()) -> Event:
    """Return the event `users.user.<verb>` on subject `evt.users.user.<verb>.v1`.

    Data: `{"id", "username", "role", "version"}`, for `updated` also `"changed"`, the names of the fields (`password` among them).
    """
    data: dict[str, object] = {"id": user.id, "username": user.username, "role": user.role, "version": user.version}
    if changed:
        data["changed"] = sorted(changed)
    event_id = new_id()
    document: dict[str, object] = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": f"users.user.{verb}",
        "subject": user.id,
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
    found = context.current()
    if found is not None and found.traceparent:
        document["traceparent"] = found.traceparent
    payload = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return Event(event_id, f"evt.users.user.{verb}.v1", payload)
