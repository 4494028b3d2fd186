"""The contract of the audit log, held by memory and by PostgreSQL: lines are written with what they tell of, or not at all."""

from dataclasses import replace
from datetime import timedelta

import pytest

from services.users.domain.audit import entry_of
from services.users.domain.events import event_of
from services.users.domain.ports import VersionChanged
from services.users.model.records import Actor, AuditQuery
from shared.errors import Conflict
from shared.ids import new_id

ADMIN = Actor(new_id(), "admin", "session")


@pytest.fixture
def add(store, make_user):
    """Store a user with an entry of the audit log; return the entry."""

    async def add(**values):
        user = make_user(**values)
        entry = entry_of("user.created", user_id=user.id, actor=ADMIN, after={"list": [1, {"deep": "é"}]})
        await store.users.add(user, "hash", event_of(user, "created"), audit=entry)
        return user, entry

    return add


async def test_an_entry_is_read_back_as_it_was_written(store, add):
    user, entry = await add()
    entry = replace(entry, request_id="r-1", address="192.0.2.1", before={"x": None})
    changed = replace(user, version=2)
    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1, audit=entry)

    found, first = await store.audit.page(AuditQuery())

    assert found.number > first.number
    assert replace(found, number=0) == entry
    assert (first.before, first.request_id, first.address) == (None, "", "")


async def test_a_refused_write_leaves_no_entry(store, add, make_user):
    user, entry = await add(username="ada")
    same, changed = make_user(username="ada"), replace(user, version=8)

    with pytest.raises(Conflict):
        await store.users.add(same, "hash", event_of(same, "created"), audit=entry)
    with pytest.raises(VersionChanged):
        await store.users.replace(changed, event_of(changed, "updated"), expected_version=7, audit=entry)
    with pytest.raises(VersionChanged):
        await store.users.remove(user.id, event_of(user, "deleted"), expected_version=7, audit=entry)

    assert len(await store.audit.page(AuditQuery())) == 1


async def test_the_log_outlives_the_user(store, add):
    user, entry = await add()
    await store.users.remove(user.id, event_of(user, "deleted"), expected_version=1, audit=entry)

    assert len(await store.audit.page(AuditQuery(user_id=user.id))) == 2


async def test_each_filter_limits_and_pages_go_on(store, add):
    entries = [(await add())[1] for _ in range(5)]
    user, old = await add()
    odd = replace(old, user_id=new_id(), actor_id=new_id(), action="user.updated", at=old.at - timedelta(days=3))
    changed = replace(user, version=2)
    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1, audit=odd)

    async def found(**values):
        return [replace(entry, number=0) for entry in await store.audit.page(AuditQuery(**values))]

    for name in ("user_id", "actor_id", "action"):
        assert await found(**{name: getattr(odd, name)}) == [odd]
    assert await found(since=entries[2].at) == [old, entries[4], entries[3], entries[2]]
    assert await found(action="user.created", actor_id=ADMIN.user_id, limit=2) == [old, entries[4]]
    assert await found(user_id=new_id()) == []
    first = await store.audit.page(AuditQuery(limit=3))
    assert await found(before=first[-1].number, limit=3) == [entries[3], entries[2], entries[1]]


async def test_what_is_read_is_a_copy(store, add):
    await add()
    [entry] = await store.audit.page(AuditQuery())
    entry.after["list"][1]["deep"] = "changed"

    assert (await store.audit.page(AuditQuery()))[0].after == {"list": [1, {"deep": "é"}]}
