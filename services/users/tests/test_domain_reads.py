"""Reads and the cache: bounded waiting, stale answers only of what has not changed, and no write that the cache does not hear of."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from inspect import isfunction

import pytest

from services.users.domain import reads as reads_module
from services.users.domain.events import event_of, session_reused, versions_told
from services.users.domain.ports import UserRepository, VersionChanged
from services.users.domain.reads import AWAY, UserReads
from services.users.domain.watched import WatchedUsers, watched_units
from services.users.model.records import Actor
from shared.cache.entries import CacheConfig, Found
from shared.cache.tiered import TieredCache
from shared.errors import NotFound, Unavailable
from shared.ids import new_id
from shared.testing.cache_probe import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock):
    return TieredCache("users", CacheConfig(stale_s=300, stale_after_s=0.02), away=AWAY, clock=clock)


class Records:
    """A store of JSON that can be away or silent."""

    def __init__(self):
        self.records, self.asked, self.is_away, self.is_silent = {}, 0, False, False

    async def read_json(self, user_id):
        self.asked += 1
        if self.is_away:
            raise Unavailable("away", retry_after_s=1)
        if self.is_silent:
            await asyncio.Event().wait()
        return self.records.get(user_id)


@pytest.fixture
def records():
    return Records()


@pytest.fixture
def reads(records, cache):
    return UserReads(records, cache)


@pytest.fixture
def owner(records):
    user_id = new_id()
    records.records[user_id] = (3, b'{"version":3}')
    return Actor(user_id, "user", "s")


ADMIN = Actor(new_id(), "admin", "s")


async def test_owner_and_admins_read_and_nobody_else(reads, owner, records):
    expected = Found(b'{"version":3}', 3, pytest.approx(0, abs=0.1))
    assert await reads.read(owner, owner.user_id) == expected
    assert await reads.read(ADMIN, owner.user_id) == expected
    for stranger, user_id in ((Actor(new_id(), "user", "s"), owner.user_id), (ADMIN, new_id()), (ADMIN, "no id")):
        with pytest.raises(NotFound):
            await reads.read(stranger, user_id)
    assert records.asked == 2


async def test_records_are_answered_while_the_store_is_away_but_not_for_ever(reads, owner, records, clock):
    await reads.read(owner, owner.user_id)
    records.is_away = True
    clock.now += 300
    found = await reads.read(owner, owner.user_id)
    assert (found.value, found.is_stale) == (b'{"version":3}', True)
    with pytest.raises(Unavailable):
        await reads.read(owner, owner.user_id, bypass=True)
    clock.now += 31
    with pytest.raises(Unavailable):
        await reads.read(owner, owner.user_id)


async def test_a_silent_store_is_waited_for_so_long_and_no_longer(reads, owner, records, clock, monkeypatch):
    monkeypatch.setattr(reads_module, "LOAD_TIMEOUT_S", 0.05)
    records.is_silent = True
    with pytest.raises(Unavailable, match="in time") as caught:
        await reads.read(owner, owner.user_id)
    assert caught.value.headers["Retry-After"] == "1"


async def test_a_silent_store_is_not_waited_for_where_a_record_is_known(reads, owner, records, clock):
    await reads.read(owner, owner.user_id)
    records.is_silent = True
    clock.now += 60
    assert (await reads.read(owner, owner.user_id)).is_stale


# The watched repository, over each store.


@pytest.fixture
def watched(store, cache):
    return WatchedUsers(store.users, cache)


async def shown(watched, cache, user_id):
    """What the cache knows, checked against the store."""
    entry = cache.peek(user_id)
    if entry is None:
        return None
    assert await watched.read_json(user_id) == (entry.version, entry.value)
    return entry.version


async def test_every_change_is_known_at_once_as_the_store_has_it(watched, cache, make_user):
    user = make_user("Ada", full_name='Ada "λ" \\ 😀', created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    await watched.add(user, "hash", event_of(user, "created"))
    assert await shown(watched, cache, user.id) == 1
    changed = replace(user, version=2, full_name=None, email_verified_at=datetime.now(UTC))
    await watched.replace(changed, event_of(changed, "updated"), expected_version=1)
    assert await shown(watched, cache, user.id) == 2
    now = datetime.now(UTC)
    await watched.remove(user.id, event_of(changed, "deleted"), expected_version=2, deleted_at=now)
    assert await shown(watched, cache, user.id) is None
    restored = replace((await watched.get_deleted(user.id)).user, version=3)
    await watched.restore(restored, event_of(restored, "restored"))
    assert await shown(watched, cache, user.id) == 3


async def test_what_was_not_stored_changes_nothing_that_is_known(watched, cache, make_user):
    user = make_user("Ada")
    await watched.add(user, "hash", event_of(user, "created"))
    wrong = replace(user, version=9, full_name="wrong")
    with pytest.raises(VersionChanged):
        await watched.replace(wrong, event_of(wrong, "updated"), expected_version=8)
    with pytest.raises(VersionChanged):
        await watched.remove(user.id, event_of(user, "deleted"), expected_version=8)
    assert await shown(watched, cache, user.id) == 1


async def test_a_unit_of_work_is_known_once_it_is_stored_and_not_before(store, watched, cache, make_user):
    user = make_user("Ada")
    await watched.add(user, "hash", event_of(user, "created"))
    changed = replace(user, version=2, full_name="Ada")
    begin = watched_units(store.unit, cache)

    async def fail():
        async with begin() as unit:
            await unit.users.replace(changed, event_of(changed, "updated"), expected_version=1)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await shown(watched, cache, user.id) == 1
    async with begin() as unit:
        await unit.users.replace(changed, event_of(changed, "updated"), expected_version=1)
        assert cache.peek(user.id).version == 1
    assert await shown(watched, cache, user.id) == 2


def test_every_method_of_a_repository_is_watched():
    asked = {name for name, method in vars(UserRepository).items() if isfunction(method) and not name.startswith("_")}
    assert asked - set(vars(WatchedUsers)) == set()


def test_events_tell_what_is_no_longer_current(make_user):
    one, two = make_user(), make_user()
    events = [
        event_of(one, "created"),
        event_of(replace(one, version=3), "updated"),
        event_of(replace(one, version=2), "updated"),
        event_of(replace(two, version=4), "deleted"),
        session_reused(one.id, new_id()),
    ]
    assert versions_told(events) == {one.id: 3, two.id: 5}
    assert versions_told([]) == {}
