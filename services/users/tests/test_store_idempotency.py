"""The contract of idempotency keys and of the unit of work, held by memory and by PostgreSQL."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.domain.audit import entry_of
from services.users.domain.events import event_of
from services.users.domain.ports import ClaimLost, KeyReused, KeyRunning
from services.users.model.records import AddedUser, Answer, AuditQuery, Finished, IdempotencyClaim
from shared.errors import Conflict, NotFound

NOW = datetime.now(UTC)
LEASE = timedelta(seconds=60)
CLAIM = IdempotencyClaim(b"scope", b"body", NOW, NOW + timedelta(hours=24))
ANSWER = Answer(201, {"Location": "/users/1"}, b'{"x":"\xc3\xa9"}')


@pytest.fixture
def claim(store):
    async def claim(claim=CLAIM, **values):
        found = replace(claim, **values)
        return await store.idempotency.claim(found, died_before=found.started_at - LEASE)

    return claim


@pytest.fixture
def new(make_user):
    def new(*names, **values):
        users = [make_user(name, **values) for name in names]
        return [
            AddedUser(user, "hash", event_of(user, "created"), entry_of("user.created", user_id=user.id))
            for user in users
        ]

    return new


async def test_a_key_is_taken_once_and_then_answers(store, claim):
    assert await claim() is None
    with pytest.raises(KeyRunning):
        await claim(started_at=NOW + timedelta(seconds=1))
    await store.idempotency.finish(Finished(CLAIM, ANSWER))

    assert await claim(started_at=NOW + timedelta(hours=23)) == ANSWER


async def test_of_racing_requests_one_takes_the_key(store, claim):
    starts = [NOW + timedelta(microseconds=number) for number in range(20)]
    results = await asyncio.gather(*(claim(started_at=start) for start in starts), return_exceptions=True)

    assert results.count(None) == 1
    assert sum(isinstance(result, KeyRunning) for result in results) == 19


async def test_another_body_is_refused_while_it_runs_and_after(store, claim):
    await claim()
    with pytest.raises(KeyReused):
        await claim(body_hash=b"other")
    with pytest.raises(KeyReused):
        await claim(body_hash=b"other", started_at=NOW + timedelta(minutes=5))
    await store.idempotency.finish(Finished(CLAIM, ANSWER))
    with pytest.raises(KeyReused):
        await claim(body_hash=b"other", started_at=NOW + timedelta(minutes=5))


async def test_a_dead_request_is_taken_over_and_cannot_finish(store, claim, new, waiting):
    later = replace(CLAIM, started_at=NOW + LEASE)
    await claim()
    assert await claim(later) is None
    [ada] = new("ada")

    with pytest.raises(ClaimLost):
        await store.idempotency.finish(Finished(CLAIM, ANSWER))
    with pytest.raises(ClaimLost):
        await store.users.add(ada.user, "hash", ada.event, audit=ada.audit, finished=Finished(CLAIM, ANSWER))
    await store.idempotency.release(CLAIM)

    with pytest.raises(NotFound):
        await store.users.get(ada.user.id)
    assert await waiting() == []
    assert await store.audit.page(AuditQuery()) == []
    await store.users.add(ada.user, "hash", ada.event, audit=ada.audit, finished=Finished(later, ANSWER))
    assert await claim(started_at=NOW + timedelta(hours=1)) == ANSWER


async def test_the_answer_is_kept_with_the_user_or_neither(store, claim, new, add_user):
    await add_user("Ada")
    await claim()
    taken, free = new("ada", "bob", email="new@example.com")

    with pytest.raises(Conflict):
        await store.users.add(taken.user, "hash", taken.event, audit=taken.audit, finished=Finished(CLAIM, ANSWER))
    with pytest.raises(KeyRunning):
        await claim(started_at=NOW + timedelta(seconds=1))
    await store.users.add(free.user, "hash", free.event, audit=free.audit, finished=Finished(CLAIM, ANSWER))

    assert await store.users.get(free.user.id) == free.user
    assert (await store.users.find_login("bob")).password_hash == "hash"
    assert len(await store.audit.page(AuditQuery(user_id=free.user.id))) == 1
    assert await claim(started_at=NOW + timedelta(seconds=1)) == ANSWER


async def test_a_released_key_is_free_and_an_answer_is_not_released(store, claim):
    await claim()
    await store.idempotency.release(CLAIM)
    assert await claim(body_hash=b"other") is None
    other = replace(CLAIM, body_hash=b"other")
    await store.idempotency.finish(Finished(other, ANSWER))

    await store.idempotency.release(other)

    assert await claim(other) == ANSWER


async def test_a_key_that_is_over_is_free_and_forgotten_in_batches(store, claim):
    await claim()
    await store.idempotency.finish(Finished(CLAIM, ANSWER))
    later = CLAIM.expires_at
    assert await claim(body_hash=b"other", started_at=later, expires_at=later + timedelta(hours=24)) is None
    for number in range(3):
        await claim(scope_hash=b"%d" % number)

    async def forget():
        return await store.idempotency.remove_expired(CLAIM.expires_at, limit=2)

    assert [await forget(), await forget(), await forget()] == [2, 1, 0]
    with pytest.raises(KeyRunning):
        await claim(body_hash=b"other", started_at=later + timedelta(seconds=1))


async def test_many_are_stored_but_for_those_that_are_taken(store, new, add_user, waiting):
    await add_user("Ada", email="taken@example.com")
    given = [*new("bob", "ADA", "cleo"), *new("dora", email="taken@example.com"), *new("BOB", "eve")]
    given[4] = replace(given[4], user=replace(given[4].user, email="other@example.com"))

    assert await store.users.add_many(given) == ["", "username", "", "email", "username", ""]

    stored = [given[0], given[2], given[5]]
    for each in stored:
        assert await store.users.get(each.user.id) == each.user
        assert (await store.users.find_login(each.user.username)).password_hash == "hash"
    assert (await waiting())[1:] == [each.event for each in stored]
    assert {entry.user_id for entry in await store.audit.page(AuditQuery())} == {each.user.id for each in stored}
    assert await store.users.add_many([]) == []


async def test_a_unit_is_stored_whole_or_not_at_all(store, claim, new, waiting):
    await claim()
    given = new("ada", "bob")

    async def write(*, fails):
        async with store.unit() as unit:
            await unit.users.add_many(given)
            assert (await unit.users.get(given[0].user.id)) == given[0].user
            await unit.idempotency.finish(Finished(CLAIM, ANSWER))
            if fails:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        await write(fails=True)
    assert await store.users.find_login("ada") is None
    assert await waiting() == []
    assert await store.audit.page(AuditQuery()) == []
    with pytest.raises(KeyRunning):
        await claim(started_at=NOW + timedelta(seconds=1))

    await write(fails=False)
    assert (await store.users.find_login("bob")).user == given[1].user
    assert len(await waiting()) == 2
    assert await claim() == ANSWER


async def test_batches_that_want_the_same_names_end_and_share_them(store, new):
    names = [f"name{number}" for number in range(20)]
    batches = [new(*names), new(*reversed(names)), new(*names)]

    results = await asyncio.gather(*(store.users.add_many(batch) for batch in batches))

    assert sum(fields.count("") for fields in results) == 20
    assert {field for fields in results for field in fields} == {"", "username"}
