"""From the query of `GET /users` to what the domain is asked, and from its answer to the page."""

from datetime import UTC, datetime, timedelta
from typing import cast

import orjson

from services.users.model.edge import ListQuery
from services.users.model.listing import Listed, Position, Sort, SortField, UserFilter, UserQuery
from services.users.model.text import fold
from services.users.model.view import time_text
from services.users.routes.cursors import Cursors

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def user_query(query: ListQuery, cursors: Cursors) -> UserQuery:
    """Return what is asked for. Raises InvalidInput for a cursor that does not belong to it."""
    field = cast(SortField, query.sort.removeprefix("-"))
    return UserQuery(
        filter=UserFilter(
            role=query.role,
            username=fold(query.username or ""),
            email=query.email or "",
            q=query.q,
            is_verified=query.verified,
            created_after=query.created_after,
            created_before=query.created_before,
        ),
        sort=Sort(field, query.sort.startswith("-")),
        after=_position(query, cursors),
        limit=query.limit,
        fields=query.field_names,
        is_counted=query.count,
        is_deleted=query.deleted,
    )


def page_json(found: Listed, query: ListQuery, cursors: Cursors) -> bytes:
    """Return the page as JSON; its items are passed through as the store made them."""
    after = b"null"
    if found.last is not None:
        key = found.last.key
        place = [(key - _EPOCH) // _MICROSECOND if isinstance(key, datetime) else key, found.last.user_id]
        after = orjson.dumps(cursors.write(_scope(query), place))
    count = b"" if found.count is None else b',"count":%d' % found.count
    return b'{"items":' + found.items + b',"next":' + after + count + b"}"


def _position(query: ListQuery, cursors: Cursors) -> Position | None:
    if not query.cursor:
        return None
    key, user_id = cursors.read(_scope(query), query.cursor)
    return Position(_EPOCH + key * _MICROSECOND if isinstance(key, int) else key, str(user_id))


def _scope(query: ListQuery) -> bytes:
    """Return all that decides which users come in which order; size and form of a page may change from one to the next."""
    moments = [moment and time_text(moment) for moment in (query.created_after, query.created_before)]
    texts = (query.sort, query.role, fold(query.username or ""), query.email, query.q)
    return orjson.dumps(["users", query.deleted, query.verified, *texts, *moments])
