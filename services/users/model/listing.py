"""What can be asked of the list of users: filters, sorts, a place to go on from; and how each is decided."""

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.users.model.records import Role
from services.users.model.text import fold

SortField = Literal["created_at", "username", "email", "deleted_at"]


@dataclass(frozen=True, slots=True)
class UserFilter:
    """What is empty or None does not limit. `username` is folded, `email` normalised, `q` in NFC; both times are exclusive."""

    role: Role | None = None
    username: str = ""
    email: str = ""
    q: str = ""
    is_verified: bool | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Sort:
    """By the field, then by id, in the same direction; names and addresses whatever their case, in the order of code points."""

    field: SortField = "created_at"
    is_descending: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a user in a sort: its sort key and id. The next page begins after it, whether or not it is still there."""

    key: str | datetime
    user_id: str


@dataclass(frozen=True, slots=True)
class UserQuery:
    """A page of the list: `fields` of the view, all where none is named; `is_deleted` for the deleted users, not the live ones."""

    filter: UserFilter = UserFilter()
    sort: Sort = Sort()
    after: Position | None = None
    limit: int = 20
    fields: frozenset[str] = frozenset()
    is_counted: bool = False
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A page: `items` a JSON array of views, `last` the place to go on from (None at the end), `count` of all pages if asked for."""

    items: bytes
    last: Position | None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The texts that begin with `start`, as the range from it up to, but without, `end`."""

    start: str
    end: str


def login_prefix(q: str) -> Prefix:
    """Return how usernames and addresses, as they are folded, begin where `q` finds them."""
    return _prefix(fold(q))


def name_prefix(q: str) -> Prefix:
    """Return how full names, and their last words, begin where `q` finds them."""
    return _prefix(lower_ascii(unicodedata.normalize("NFC", q)))


def lower_ascii(text: str) -> str:
    """Return a text with A to Z in lower case and nothing else changed: what PostgreSQL's lower() does in the collation C."""
    return "".join(character.lower() if character.isascii() else character for character in text)


def _prefix(start: str) -> Prefix:
    code = ord(start[-1]) + 1
    # UTF-8 has no surrogates; the last code point of all is none that a text may hold.
    return Prefix(start, start[:-1] + chr(0xE000 if code == 0xD800 else code))
