"""Signing keys in turn, as pure decisions and over both stores."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.adapters.keys import make_key
from services.users.domain.keys import KeyPolicy, KeyRotation, is_due, settled
from services.users.model.records import Actor, AuditQuery
from shared.errors import Conflict, NotFound
from shared.ids import new_id

SEAL = "a-seal-for-the-tests"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = KeyPolicy(lasts=timedelta(days=30), ahead=timedelta(seconds=300), kept=timedelta(seconds=700))
ADMIN = Actor(new_id(), "admin", new_id())


def key(state, *, ago=timedelta()):
    return replace(make_key(SEAL), state=state, state_since=NOW - ago, created_at=NOW - ago)


def states(keys):
    return [item.state for item in keys]


@pytest.mark.parametrize(
    ("ago", "due"),
    [
        (timedelta(days=29), False),
        (timedelta(days=30) - timedelta(seconds=301), False),
        (timedelta(days=30) - timedelta(seconds=300), True),
        (timedelta(days=90), True),
    ],
)
def test_the_next_key_is_published_so_early_that_it_signs_in_time(ago, due):
    assert is_due([key("active", ago=ago)], POLICY, NOW) is due
    assert not is_due([key("next"), key("active", ago=ago)], POLICY, NOW)


def test_a_fresh_key_is_published_before_it_signs():
    active, fresh = key("active", ago=timedelta(days=30)), make_key(SEAL)

    keys = settled([active], POLICY, NOW, fresh=fresh)
    assert states(keys) == ["next", "active"]
    assert keys[0].kid == fresh.kid
    assert settled(keys, POLICY, NOW + timedelta(seconds=299)) == keys

    later = NOW + timedelta(seconds=300)
    turned = settled(keys, POLICY, later)
    assert states(turned) == ["active", "retired"]
    assert [item.state_since for item in turned] == [later, later]


def test_a_retired_key_is_published_until_its_last_token_has_expired():
    keys = [key("active"), key("retired", ago=timedelta(seconds=699))]
    assert settled(keys, POLICY, NOW) == keys
    assert settled(keys, POLICY, NOW + timedelta(seconds=1)) == keys[:1]


def test_a_second_fresh_key_does_not_push_the_waiting_one_away():
    keys = [key("next"), key("active")]
    assert settled(keys, POLICY, NOW, fresh=make_key(SEAL)) == keys


def test_a_key_signs_at_once_where_that_is_wanted_or_none_does():
    assert states(settled([key("active")], POLICY, NOW, fresh=make_key(SEAL), at_once=True)) == ["active", "retired"]
    assert states(settled([key("next"), key("active")], POLICY, NOW, at_once=True)) == ["active", "retired"]
    assert states(settled([], POLICY, NOW, fresh=make_key(SEAL))) == ["active"]


def test_of_several_keys_that_sign_the_newest_stays():
    keys = [key("active"), key("active", ago=timedelta(days=1))]
    assert states(settled(keys, POLICY, NOW)) == ["active", "retired"]


class Replica:
    """A replica's rotation over a store, whose keys it has taken over last."""

    def __init__(self, store, policy=POLICY):
        self.keys = []
        self.told = 0
        self.made = 0
        self.rotation = KeyRotation(store, policy, make=self.make, changed=self.changed, tell=self.tell)

    async def make(self):
        self.made += 1
        return make_key(SEAL)

    async def changed(self, keys):
        self.keys = list(keys)

    async def tell(self):
        self.told += 1


async def test_replicas_that_look_at_once_make_one_key(store):
    replicas = [Replica(store.keys) for _ in range(5)]

    await asyncio.gather(*(replica.rotation.look() for replica in replicas))

    keys = await store.keys.all()
    assert states(keys) == ["active"]
    for replica in replicas:
        await replica.rotation.look()
        assert replica.keys == keys
    assert [entry.action for entry in await store.audit.page(AuditQuery())] == ["key.active"]


async def test_a_rotation_by_hand_waits_for_the_key_to_be_known(store):
    here, there = Replica(store.keys), Replica(store.keys)
    await here.rotation.look()

    assert states(await here.rotation.rotate(ADMIN)) == ["next", "active"]
    assert states(await there.rotation.rotate(ADMIN)) == ["next", "active"]
    assert states(await there.rotation.rotate(ADMIN, at_once=True)) == ["active", "retired"]

    assert here.told == 2
    await here.rotation.look()
    assert here.keys == there.keys == await here.rotation.all()
    entries = await store.audit.page(AuditQuery(actor_id=ADMIN.user_id))
    assert sorted(entry.action for entry in entries) == ["key.active", "key.next", "key.retired"]
    assert all(set(entry.after) == {"kid"} for entry in entries)


async def test_keys_turn_by_themselves(store):
    replica = Replica(store.keys, KeyPolicy(timedelta(0), timedelta(0), timedelta(0)))
    await replica.rotation.look()
    first = replica.keys[0].kid

    await replica.rotation.look()

    assert replica.keys[0].kid != first
    assert replica.keys[0].state == "active"


async def test_a_key_that_signs_is_not_taken_back_any_other_is(store):
    replica = Replica(store.keys)
    await replica.rotation.look()
    old = replica.keys[0].kid
    with pytest.raises(Conflict):
        await replica.rotation.retire(ADMIN, old)
    with pytest.raises(NotFound):
        await replica.rotation.retire(ADMIN, "none")
    assert len(await store.keys.all()) == 1

    await replica.rotation.rotate(ADMIN, at_once=True)
    await replica.rotation.retire(ADMIN, old)

    assert [item.kid for item in replica.keys] == [item.kid for item in await store.keys.all()]
    assert old not in [item.kid for item in replica.keys]
