"""The statement of a page of users: filters, a keyset to go on from, the JSON of all items built by PostgreSQL, one row back."""

from services.users.adapters.postgres.view import view_text
from services.users.model.listing import Listed, Position, Prefix, UserFilter, UserQuery, login_prefix, name_prefix
from services.users.model.view import DELETED_FIELDS, FIELDS

_USERNAME, _EMAIL = 'u.username_folded COLLATE "C"', 'u.email COLLATE "C"'
_NAME = 'lower(u.full_name COLLATE "C")'
_LAST_NAME = f"split_part({_NAME}, ' ', -1)"


class _Values:
    """The parameters of a statement; adding one returns its place, such as `$3`."""

    def __init__(self, *values: object) -> None:
        self.all = list(values)

    def add(self, value: object) -> str:
        self.all.append(value)
        return f"${len(self.all)}"


def statement_of(query: UserQuery) -> tuple[str, list[object]]:
    """Return the SQL of a page and its values; only the parts that are asked for, so that each statement has a plan of its own."""
    table = "deleted_users" if query.is_deleted else "users"
    # The rules of usernames leave nothing but ASCII, so this is what `username_folded` holds.
    username = 'lower(u.username COLLATE "C")' if query.is_deleted else _USERNAME
    key = {"username": username, "email": _EMAIL}.get(query.sort.field, f"u.{query.sort.field}")
    order, beyond = ("DESC", "<") if query.sort.is_descending else ("ASC", ">")
    values = _Values(query.limit)
    filters = _conditions(query.filter, values, username)
    place = list(filters)
    if query.after is not None:
        place.append(f"({key}, u.id) {beyond} ({values.add(query.after.key)}, {values.add(query.after.user_id)}::uuid)")
    fields = query.fields or (DELETED_FIELDS if query.is_deleted else FIELDS)
    total = f"(SELECT count(*) FROM {table} u WHERE {_all(filters)})" if query.is_counted else "NULL::bigint"  # noqa: S608
    return (
        f"""
SELECT convert_to('[' || coalesce(string_agg(item, ',' ORDER BY place) FILTER (WHERE place <= $1::int), '') || ']', 'UTF8') AS items,
    max(key) FILTER (WHERE place = $1::int) AS last_key, max(id) FILTER (WHERE place = $1::int) AS last_id,
    count(*) > $1::int AS goes_on, {total} AS total
FROM (
    SELECT row_number() OVER (ORDER BY key {order}, id {order}) AS place, key, id::text AS id, {view_text("u", fields=fields)} AS item
    FROM (
        SELECT u.*, {key} AS key FROM {table} u WHERE {_all(place)} ORDER BY {key} {order}, u.id {order} LIMIT $1::int + 1
    ) u
) page""",  # noqa: S608 - constants only
        values.all,
    )


def listed_of(row: object) -> Listed:
    """Return the page in the one row that the statement answers with."""
    found = dict(row)  # type: ignore[call-overload]
    last = Position(found["last_key"], found["last_id"]) if found["goes_on"] else None
    return Listed(found["items"], last, found["total"])


def _all(conditions: list[str]) -> str:
    return " AND ".join(conditions) or "true"


def _conditions(filter_: UserFilter, values: _Values, username: str) -> list[str]:
    given = [
        ("u.role =", filter_.role),
        (f"{username} =", filter_.username or None),
        (f"{_EMAIL} =", filter_.email or None),
        ("u.created_at >", filter_.created_after),
        ("u.created_at <", filter_.created_before),
    ]
    conditions = [f"{condition} {values.add(value)}" for condition, value in given if value is not None]
    if filter_.is_verified is not None:
        conditions.append(f"u.email_verified_at IS {'NOT NULL' if filter_.is_verified else 'NULL'}")
    if filter_.q:
        conditions.append(_search(filter_.q, values, username))
    return conditions


def _search(q: str, values: _Values, username: str) -> str:
    """Return one alternative for each index that can serve it."""
    login, name = _range(login_prefix(q), values), _range(name_prefix(q), values)
    found = [f"({column} >= {start} AND {column} < {end})" for column in (username, _EMAIL) for start, end in [login]]
    # The first part of each is what the partial indexes ask for.
    found += [
        f"(u.full_name IS NOT NULL AND {column} >= {start} AND {column} < {end})"
        for column in (_NAME, _LAST_NAME)
        for start, end in [name]
    ]
    return f"({' OR '.join(found)})"


def _range(prefix: Prefix, values: _Values) -> tuple[str, str]:
    return f"{values.add(prefix.start)}::text", f"{values.add(prefix.end)}::text"
