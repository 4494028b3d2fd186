"""The contract of the list of users, held by memory and by PostgreSQL, against a few plain lines that say what is right."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.users.domain.events import event_of
from services.users.model.listing import Sort, UserFilter, UserQuery
from services.users.model.records import User
from services.users.model.view import DELETED_FIELDS, FIELDS, time_text
from shared.ids import new_id

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = [
    None,
    "Ada Lovelace",
    "ada lovelace",
    "ADA",
    "Adam Ant",
    "Émile Zola",
    "émile",
    "Zoë  Ö",
    "李 小龍",
    "a_b%c",
    "ÉA",
    "I İ",
    "~",
]
STEMS = ["ada", "Ada.", "aDa-", "adb", "zoe", "Z_", "0", "a.b"]
MOMENTS = [START + timedelta(microseconds=value) for value in (0, 1, 2, 3_600_000_000)]


def population():
    """Users with equal times, equal beginnings and names that are sorted and folded differently by different rules."""
    users = []
    for number in range(36):
        stem = STEMS[number % len(STEMS)]
        moment = MOMENTS[number * 7 % len(MOMENTS)]
        users.append(
            User(
                id=new_id(),
                username=f"{stem}{number}",
                email=f"{'é' if number % 5 == 0 else stem.strip('.').lower()}{number}@{'a' if number % 2 else 'ü'}.example",
                full_name=NAMES[number % len(NAMES)],
                role="admin" if number % 4 == 0 else "user",
                version=1,
                created_at=moment,
                updated_at=moment,
                email_verified_at=moment if number % 3 == 0 else None,
            )
        )
    return users


USERS = population()
DELETED = {user.id: MOMENTS[number % len(MOMENTS)] for number, user in enumerate(USERS) if number % 2}


def view(user, deleted_at=None):
    shown = {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "email_verified": user.email_verified_at is not None,
        "full_name": user.full_name,
        "role": user.role,
        "created_at": time_text(user.created_at),
        "updated_at": time_text(user.updated_at),
        "version": 1,
    }
    return {**shown, "deleted_at": time_text(deleted_at)} if deleted_at else shown


def ascii_lower(text):
    return "".join(c.lower() if "A" <= c <= "Z" else c for c in text)


def is_right(user, f):
    name = ascii_lower(user.full_name or "")
    found = (user.username.lower(), user.email), (name, name.rsplit(" ", 1)[-1])
    return all(
        [
            f.role is None or user.role == f.role,
            not f.username or user.username.lower() == f.username,
            not f.email or user.email == f.email,
            f.is_verified is None or bool(user.email_verified_at) == f.is_verified,
            not f.created_after or user.created_at > f.created_after,
            not f.created_before or user.created_at < f.created_before,
            not f.q
            or any(text.startswith(f.q.casefold()) for text in found[0])
            or any(text.startswith(ascii_lower(f.q)) for text in found[1]),
        ]
    )


def right_order(query):
    """Return the views that a query should list on all its pages."""
    found = [user for user in USERS if is_right(user, query.filter) and (user.id in DELETED or not query.is_deleted)]
    keys = {
        "created_at": lambda user: (user.created_at, user.id),
        "username": lambda user: (user.username.lower(), user.id),
        "email": lambda user: (user.email.encode(), user.id),
        "deleted_at": lambda user: (DELETED[user.id], user.id),
    }
    found.sort(key=keys[query.sort.field], reverse=query.sort.is_descending)
    views = [view(user, DELETED[user.id] if query.is_deleted else None) for user in found]
    names = query.fields or DELETED_FIELDS
    return [{name: value for name, value in shown.items() if name in names} for shown in views]


def rarely(nothing, *values):
    """Mostly no filter: several at once leave nobody to be listed."""
    return st.integers(0, 3).flatmap(lambda number: st.just(nothing) if number else st.sampled_from(values))


Q = ("a", "A", "AD", "ada l", "É", "é", "z", "ö", "小", "a_", "%", "lo", "i", "İ", "~", "\ud7ff")

filters = st.builds(
    UserFilter,
    role=rarely(None, "user", "admin"),
    username=rarely("", *(user.username.lower() for user in USERS)),
    email=rarely("", *(user.email for user in USERS)),
    q=rarely("", *Q),
    is_verified=rarely(None, True, False),
    created_after=rarely(None, *MOMENTS),
    created_before=rarely(None, *MOMENTS),
)

queries = st.booleans().flatmap(
    lambda is_deleted: st.builds(
        UserQuery,
        filter=filters,
        sort=st.builds(
            Sort,
            st.sampled_from(["created_at", "username", "email", *(["deleted_at"] if is_deleted else [])]),
            st.booleans(),
        ),
        limit=st.integers(1, 40),
        fields=st.just(frozenset())
        | st.frozensets(st.sampled_from(DELETED_FIELDS if is_deleted else FIELDS), min_size=1),
        is_counted=st.booleans(),
        is_deleted=st.just(is_deleted),
    )
)


@pytest.fixture
async def peopled(store):
    """The store with everybody in it; half of them are deleted as well, under the same ids."""
    for user in USERS:
        if user.id in DELETED:
            await store.users.add(user, "hash", event_of(user, "created"))
            await store.users.remove(
                user.id, event_of(user, "deleted"), expected_version=1, deleted_at=DELETED[user.id]
            )
        await store.users.add(user, "hash", event_of(user, "created"))
    return store


async def pages_of(store, query):
    items = []
    while True:
        page = await store.users.list(query)
        found = json.loads(page.items)
        items += found
        if page.last is None:
            return items
        assert len(found) == query.limit
        query = replace(query, after=page.last)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries)
async def test_every_query_lists_what_is_right_in_the_right_order_over_all_pages(peopled, query):
    expected = right_order(query)

    assert await pages_of(peopled, query) == expected
    assert (await peopled.users.list(query)).count == (len(expected) if query.is_counted else None)


@pytest.mark.parametrize("field", ["created_at", "username", "email"])
@pytest.mark.parametrize("is_descending", [False, True])
async def test_pages_are_stable_while_users_come_and_go(peopled, make_user, field, is_descending):
    """Whoever is there from the first page to the last is listed once, whatever becomes of the others."""
    query = UserQuery(sort=Sort(field, is_descending), limit=5)
    going, seen = list(USERS[::3]), []
    while True:
        page = await peopled.users.list(query)
        seen += [item["id"] for item in json.loads(page.items)]
        for user in going[:2]:
            await peopled.users.remove(user.id, event_of(user, "deleted"), expected_version=1)
        del going[:2]
        new = make_user(f"new{len(seen)}", created_at=MOMENTS[0], updated_at=MOMENTS[0])
        await peopled.users.add(new, "hash", event_of(new, "created"))
        if page.last is None:
            break
        query = replace(query, after=page.last)

    assert len(seen) == len(set(seen))
    staying = {user.id for user in USERS} - {user.id for user in USERS[::3]}
    assert staying <= set(seen)


async def test_a_page_goes_on_where_its_last_user_was_deleted(peopled):
    query = UserQuery(limit=3)
    first = await peopled.users.list(query)
    last = next(user for user in USERS if user.id == first.last.user_id)
    await peopled.users.remove(last.id, event_of(last, "deleted"), expected_version=1)

    second = await peopled.users.list(replace(query, after=first.last))

    assert [item["id"] for item in json.loads(second.items)] == [item["id"] for item in right_order(query)[3:6]]


async def test_an_empty_list_is_an_empty_list(store):
    page = await store.users.list(UserQuery(is_counted=True))

    assert (page.items, page.last, page.count) == (b"[]", None, 0)
