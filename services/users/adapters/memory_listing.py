"""A page of users in memory."""

from collections.abc import Sequence
from typing import Any

import orjson

from services.users.model.listing import (
    Listed,
    Position,
    Prefix,
    Sort,
    UserFilter,
    UserQuery,
    login_prefix,
    lower_ascii,
    name_prefix,
)
from services.users.model.records import DeletedUser, User
from services.users.model.text import fold
from services.users.model.view import deleted_view_of, projected, view_of


def page_of(records: Sequence[User | DeletedUser], query: UserQuery) -> Listed:
    """Return the page of these users that a query asks for."""
    found = [record for record in records if _fits(_user_of(record), query.filter)]
    count = len(found) if query.is_counted else None
    found.sort(key=lambda record: _place(record, query.sort), reverse=query.sort.is_descending)
    if query.after is not None:
        after = (query.after.key, query.after.user_id)
        found = [
            record
            for record in found
            if (_place(record, query.sort) < after if query.sort.is_descending else _place(record, query.sort) > after)
        ]
    page = found[: query.limit]
    last = Position(*_place(page[-1], query.sort)) if len(found) > query.limit else None
    return Listed(orjson.dumps([projected(_view(record), query.fields) for record in page]), last, count)


def _user_of(record: User | DeletedUser) -> User:
    return record.user if isinstance(record, DeletedUser) else record


def _view(record: User | DeletedUser) -> dict[str, object]:
    return deleted_view_of(record) if isinstance(record, DeletedUser) else view_of(record)


def _place(record: User | DeletedUser, sort: Sort) -> tuple[Any, str]:
    """Return the sort key and the id of a record."""
    user = _user_of(record)
    if sort.field == "username":
        return fold(user.username), user.id
    return getattr(record if sort.field == "deleted_at" else user, sort.field), user.id


def _fits(user: User, asked: UserFilter) -> bool:
    return (
        asked.role in (None, user.role)
        and asked.username in ("", fold(user.username))
        and asked.email in ("", user.email)
        and asked.is_verified in (None, user.email_verified_at is not None)
        and (asked.created_after is None or user.created_at > asked.created_after)
        and (asked.created_before is None or user.created_at < asked.created_before)
        and (not asked.q or _is_found(user, asked.q))
    )


def _is_found(user: User, q: str) -> bool:
    login, name = login_prefix(q), name_prefix(q)
    if _begins(fold(user.username), login) or _begins(user.email, login):
        return True
    full_name = lower_ascii(user.full_name or "")
    return _begins(full_name, name) or _begins(full_name.split(" ")[-1], name)


def _begins(text: str, prefix: Prefix) -> bool:
    return text.startswith(prefix.start)
