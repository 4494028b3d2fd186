"""The contract of SessionRepository, held by memory and by PostgreSQL."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from services.users.domain.events import session_reused
from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
from services.users.model.records import AuditEntry, AuditQuery, Client, Exchange
from shared.errors import NotFound
from shared.ids import new_id


async def test_a_session_leads_to_its_user(store, add_user, make_session):
    user = await add_user()
    session = make_session(user)
    await store.sessions.open(session)

    assert await store.sessions.user_of(session.id, now=session.created_at) == user


async def test_an_expired_or_unknown_session_leads_nowhere(store, add_user, make_session):
    session = make_session(await add_user())
    await store.sessions.open(session)

    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=session.expires_at)
    with pytest.raises(NotFound):
        await store.sessions.user_of(new_id(), now=session.created_at)


async def test_a_session_of_nobody_is_not_opened(store, make_user, make_session):
    with pytest.raises(NotFound):
        await store.sessions.open(make_session(make_user()))


def exchange(session, used, following, *, now=None, grace_s=10, client=None):
    now = now or session.created_at
    return Exchange(
        family_hash=session.family_hash,
        used_hash=used,
        next_hash=following,
        now=now,
        grace_from=now - timedelta(seconds=grace_s),
        client=client or Client(),
    )


async def test_a_refresh_token_is_exchanged_and_then_old(store, add_user, make_session):
    user = await add_user()
    session = make_session(user, secret=b"one")
    await store.sessions.open(session)

    assert await store.sessions.rotate(exchange(session, b"one", b"two")) == (session.id, user)
    await store.sessions.rotate(exchange(session, b"two", b"three"))

    with pytest.raises(RefreshReused) as caught:
        await store.sessions.rotate(exchange(session, b"one", b"two"))
    assert (caught.value.session_id, caught.value.user_id) == (session.id, user.id)
    assert await store.sessions.rotate(exchange(session, b"three", b"four")) == (session.id, user)


async def test_the_last_exchange_can_be_made_again_for_a_while(store, add_user, make_session):
    user = await add_user()
    session = make_session(user, secret=b"one")
    await store.sessions.open(session)
    at = session.created_at + timedelta(seconds=1)
    await store.sessions.rotate(exchange(session, b"one", b"two", now=at))

    # Counted from the first exchange, not from the last time it was made.
    for after_s in (5, 10):
        again = exchange(session, b"one", b"two", now=at + timedelta(seconds=after_s))
        assert await store.sessions.rotate(again) == (session.id, user)
    for late in (
        exchange(session, b"one", b"two", now=at + timedelta(seconds=10, microseconds=1)),
        exchange(session, b"one", b"another successor", now=at),
        exchange(session, b"never given", b"two", now=at),
    ):
        with pytest.raises(RefreshReused):
            await store.sessions.rotate(late)
    assert await store.sessions.rotate(exchange(session, b"two", b"three", now=at)) == (session.id, user)


async def test_an_exchange_notes_when_and_by_whom(store, add_user, make_session):
    session = make_session(user := await add_user(), secret=b"one")
    await store.sessions.open(replace(session, used_at=session.created_at, address="192.0.2.1", user_agent="Firefox"))
    at = session.created_at + timedelta(seconds=1)

    before = (await store.sessions.of_user(user.id, now=at))[0]
    await store.sessions.rotate(exchange(session, b"one", b"two", now=at, client=Client("192.0.2.2", "curl")))
    (after,) = await store.sessions.of_user(user.id, now=at)

    assert (before.used_at, before.address, before.user_agent) == (session.created_at, "192.0.2.1", "Firefox")
    assert (before.previous_hash, before.rotated_at) == (None, None)
    assert (after.used_at, after.address, after.user_agent) == (at, "192.0.2.2", "curl")
    assert (after.refresh_hash, after.previous_hash, after.rotated_at) == (b"two", b"one", at)


async def test_an_unknown_family_or_an_expired_session_is_not_rotated(store, add_user, make_session):
    session = make_session(await add_user(), secret=b"one")
    await store.sessions.open(session)

    with pytest.raises(NotFound):
        await store.sessions.rotate(replace(exchange(session, b"one", b"two"), family_hash=b"other"))
    with pytest.raises(NotFound):
        await store.sessions.rotate(exchange(session, b"one", b"two", now=session.expires_at))


async def test_racing_exchanges_of_one_token_have_one_result(store, add_user, make_session):
    user = await add_user()
    session = make_session(user, secret=b"one")
    await store.sessions.open(session)

    results = await asyncio.gather(*(store.sessions.rotate(exchange(session, b"one", b"two")) for _ in range(20)))

    assert results == [(session.id, user)] * 20
    (found,) = await store.sessions.of_user(user.id, now=session.created_at)
    assert (found.refresh_hash, found.previous_hash) == (b"two", b"one")


async def test_opening_tells_how_many_sessions_the_user_has(store, add_user, make_session):
    user, other = await add_user(), await add_user()
    await store.sessions.open(make_session(other))
    short = make_session(user)
    await store.sessions.open(replace(short, expires_at=short.created_at + timedelta(microseconds=1)))

    assert [await store.sessions.open(make_session(user)) for _ in range(3)] == [1, 2, 3]
    assert await store.sessions.open(make_session(other)) == 2


async def test_no_more_than_twice_the_limit_are_listed_newest_first(store, add_user, make_session):
    user = await add_user()
    sessions = [make_session(user) for _ in range(2 * SESSIONS_PER_USER_MAX + 1)]
    for session in sessions:
        await store.sessions.open(session)

    found = await store.sessions.of_user(user.id, now=sessions[-1].created_at)

    assert [session.id for session in found] == [session.id for session in reversed(sessions[1:])]


async def test_expired_sessions_go_when_the_user_comes_back(store, add_user, make_session):
    user = await add_user()
    old = make_session(user)
    await store.sessions.open(replace(old, expires_at=old.created_at + timedelta(microseconds=1)))

    await store.sessions.open(make_session(user))

    with pytest.raises(NotFound):
        await store.sessions.user_of(old.id, now=old.created_at - timedelta(hours=1))


async def test_ending_a_session_stores_what_tells_of_it_once(store, add_user, make_session, waiting):
    session = make_session(user := await add_user())
    other = make_session(user)
    for item in (session, other):
        await store.sessions.open(item)
    events = [session_reused(user.id, session.id), session_reused(user.id, session.id)]
    audit = AuditEntry("session.ended", session.created_at, user_id=user.id)

    async def end(user_id=user.id):
        return await store.sessions.end(user_id, session_id=session.id, events=events, audit=audit)

    assert await end(new_id()) == 0
    assert [await end(), await end()] == [1, 0]

    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=session.created_at)
    assert await store.sessions.user_of(other.id, now=session.created_at) == user
    assert [event.id for event in await waiting()][1:] == [event.id for event in events]
    assert [entry.action for entry in await store.audit.page(AuditQuery(action="session.ended"))] == ["session.ended"]


async def test_all_sessions_of_a_user_but_one_are_ended(store, add_user, make_session):
    user, other = await add_user(), await add_user()
    kept, gone, bystander = make_session(user), make_session(user), make_session(other)
    for session in (kept, gone, bystander):
        await store.sessions.open(session)
    now = kept.created_at

    assert await store.sessions.end(user.id, keep=kept.id) == 1
    assert [s.id for s in await store.sessions.of_user(user.id, now=now)] == [kept.id]
    assert await store.sessions.end(user.id) == 1

    assert await store.sessions.of_user(user.id, now=now) == []
    assert len(await store.sessions.of_user(other.id, now=now)) == 1


async def test_opening_a_session_is_audited(store, add_user, make_session):
    session = make_session(user := await add_user())
    audit = AuditEntry("session.opened", session.created_at, user_id=user.id, after={"session_id": session.id})
    await store.sessions.open(session, audit=audit)

    (entry,) = await store.audit.page(AuditQuery(action="session.opened"))
    assert (entry.user_id, entry.after) == (user.id, {"session_id": session.id})
