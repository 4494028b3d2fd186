"""The JSON of a user as its owner and admins see it, byte for byte the same as what PostgreSQL builds (`adapters/postgres/view.py`)."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

import orjson

from services.users.model.records import DeletedUser, User

FIELDS = (
    "id",
    "username",
    "email",
    "email_verified",
    "full_name",
    "role",
    "created_at",
    "updated_at",
    "version",
)
"""What a view shows, in its order; nothing else of a user ever goes out."""

DELETED_FIELDS = (*FIELDS, "deleted_at")


def time_text(moment: datetime) -> str:
    """Return a moment (in UTC) in the one form that goes out: RFC 3339 with six digits of a second and `Z`."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def user_json(user: User) -> bytes:
    return orjson.dumps(view_of(user))


def view_of(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "email_verified": user.email_verified_at is not None,
        "full_name": user.full_name,
        "role": user.role,
        "created_at": time_text(user.created_at),
        "updated_at": time_text(user.updated_at),
        "version": user.version,
    }


def deleted_view_of(deleted: DeletedUser) -> dict[str, Any]:
    return {**view_of(deleted.user), "deleted_at": time_text(deleted.deleted_at)}


def projected(view: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """Return the named fields of a view, in the view's order; all where none is named."""
    return {name: value for name, value in view.items() if name in fields} if fields else view
