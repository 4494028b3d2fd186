"""The contract of SessionRepository, held by memory and by PostgreSQL."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from services.users.domain.ports import SESSIONS_PER_USER_MAX, RefreshReused
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


async def test_a_refresh_token_is_exchanged_and_then_old(store, add_user, make_session):
    user = await add_user()
    session = make_session(user, family=b"family", secret=b"one")
    await store.sessions.open(session)
    now = session.created_at

    found = await store.sessions.rotate(family_hash=b"family", used_hash=b"one", next_hash=b"two", now=now)
    assert found == (session.id, user)
    await store.sessions.rotate(family_hash=b"family", used_hash=b"two", next_hash=b"three", now=now)

    with pytest.raises(RefreshReused):
        await store.sessions.rotate(family_hash=b"family", used_hash=b"one", next_hash=b"four", now=now)
    with pytest.raises(NotFound):
        await store.sessions.rotate(family_hash=b"family", used_hash=b"three", next_hash=b"four", now=now)
    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=now)


async def test_an_unknown_family_or_an_expired_session_is_not_rotated(store, add_user, make_session):
    session = make_session(await add_user(), family=b"family", secret=b"one")
    await store.sessions.open(session)

    with pytest.raises(NotFound):
        await store.sessions.rotate(family_hash=b"other", used_hash=b"one", next_hash=b"two", now=session.created_at)
    with pytest.raises(NotFound):
        await store.sessions.rotate(family_hash=b"family", used_hash=b"one", next_hash=b"two", now=session.expires_at)


async def test_of_racing_refreshes_one_wins_and_the_session_ends(store, add_user, make_session):
    session = make_session(await add_user(), family=b"family", secret=b"one")
    await store.sessions.open(session)

    results = await asyncio.gather(
        *(
            store.sessions.rotate(family_hash=b"family", used_hash=b"one", next_hash=b"%d" % n, now=session.created_at)
            for n in range(10)
        ),
        return_exceptions=True,
    )

    assert sum(isinstance(result, tuple) for result in results) == 1
    assert sum(isinstance(result, RefreshReused) for result in results) == 1
    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=session.created_at)


async def test_one_session_too_many_ends_the_oldest(store, add_user, make_session):
    user, other = await add_user(), await add_user()
    sessions = [make_session(user) for _ in range(SESSIONS_PER_USER_MAX)]
    bystander = make_session(other)
    for session in (bystander, *sessions):
        await store.sessions.open(session)
    now = sessions[-1].created_at

    await store.sessions.open(make_session(user))

    with pytest.raises(NotFound):
        await store.sessions.user_of(sessions[0].id, now=now)
    assert (await store.sessions.user_of(sessions[1].id, now=now)).id == user.id
    assert (await store.sessions.user_of(bystander.id, now=now)).id == other.id


async def test_expired_sessions_go_when_the_user_comes_back(store, add_user, make_session):
    user = await add_user()
    old = make_session(user)
    await store.sessions.open(replace(old, expires_at=old.created_at + timedelta(microseconds=1)))

    await store.sessions.open(make_session(user))

    with pytest.raises(NotFound):
        await store.sessions.user_of(old.id, now=old.created_at - timedelta(hours=1))


async def test_ending_a_session_twice_is_no_error(store, add_user, make_session):
    session = make_session(await add_user())
    await store.sessions.open(session)

    await store.sessions.end(session.id)
    await store.sessions.end(session.id)

    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=session.created_at)
