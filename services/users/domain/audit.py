"""The audit log: entries made from what is being served, without a secret and with personal data masked."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from services.users.domain.throttle import client_address
from services.users.model.records import Actor, AuditEntry, User
from shared import context
from shared.ids import is_id
from shared.log import mask_email

SHOWN = ("username", "email", "full_name", "role", "version")
"""The fields of a user that an entry tells of."""


def entry_of(
    action: str,
    *,
    user_id: str = "",
    actor: Actor | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """Return an entry on what `actor` (None: nobody signed in, or the service itself) does to `user_id` now.

    Request id and address come from the request being served. `before` and `after` must be masked: see `shown` and `differences`.
    """
    found = context.current()
    return AuditEntry(
        action=action,
        at=datetime.now(UTC),
        user_id=user_id,
        actor_id=actor.user_id if actor is not None and is_id(actor.user_id) else "",
        request_id=found.request_id if found else "",
        address=client_address(found.forwarded_for, found.peer) if found else "",
        before=before,
        after=after,
    )


def shown(user: User) -> dict[str, Any]:
    """Return a user as an entry tells of it."""
    return _masked({name: getattr(user, name) for name in SHOWN})


def differences(before: User, after: User, fields: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changed fields before and after, with the versions; of a password only that it changed."""
    old, new = shown(before), shown(after)
    names = [name for name in SHOWN if name in fields or name == "version"]
    told = {name: old[name] for name in names}, {name: new[name] for name in names}
    if "password" in fields:
        told[1]["password"] = "changed"  # noqa: S105 - a word, no password
    return told


def mask_text(text: str) -> str:
    return f"{text[:1]}***"


def _masked(values: dict[str, Any]) -> dict[str, Any]:
    values["email"] = mask_email(values["email"])
    if values["full_name"]:
        values["full_name"] = mask_text(values["full_name"])
    return values
