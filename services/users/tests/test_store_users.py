"""The contract of UserRepository, held by memory and by PostgreSQL."""

import asyncio
import json
from dataclasses import replace

import pytest

from services.users.domain.events import event_of, session_reused
from services.users.domain.ports import VersionChanged
from shared.errors import Conflict, NotFound
from shared.ids import new_id


def next_of(user, **values):
    return replace(user, version=user.version + 1, **values)


async def test_an_added_user_is_read_back(store, add_user):
    user = await add_user("Ada", full_name="Ada Lovelace")

    assert await store.users.get(user.id) == user


async def test_get_unknown_user_is_not_found(store):
    with pytest.raises(NotFound):
        await store.users.get(new_id())


async def test_a_username_is_taken_whatever_its_case(store, add_user, make_user, waiting):
    await add_user("Ada")
    other = make_user("aDA", email="other@example.com")

    with pytest.raises(Conflict) as caught:
        await store.users.add(other, "hash", event_of(other, "created"))

    assert caught.value.problem_code == "username_taken"
    assert [error.field for error in caught.value.errors] == ["body.username"]
    assert len(await waiting()) == 1
    with pytest.raises(NotFound):
        await store.users.get(other.id)


async def test_an_address_is_taken_once(store, add_user, make_user, waiting):
    await add_user(email="one@example.com")
    other = make_user(email="one@example.com")

    with pytest.raises(Conflict) as caught:
        await store.users.add(other, "hash", event_of(other, "created"))

    assert caught.value.problem_code == "email_taken"
    assert len(await waiting()) == 1


async def test_of_racing_registrations_one_wins(store, make_user, waiting):
    users = [make_user("same", email="same@example.com") for _ in range(20)]

    results = await asyncio.gather(
        *(store.users.add(user, "hash", event_of(user, "created")) for user in users), return_exceptions=True
    )

    assert results.count(None) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 19
    assert len(await waiting()) == 1


async def test_a_login_is_a_folded_username_or_an_address(store, add_user):
    user = await add_user("Ada")

    for login in ("ada", "ada@example.com"):
        found = await store.users.find_login(login)
        assert found is not None
        assert (found.user, found.password_hash) == (user, "hash")
    assert await store.users.find_login("Ada") is None
    assert await store.users.find_login("nobody") is None
    assert await store.users.find_login("nobody@example.com") is None
    assert await store.users.find_login("") is None


async def test_a_change_is_stored_with_its_event(store, add_user, waiting):
    user = await add_user("Ada")
    changed = next_of(user, username="Countess", email="c@example.com", full_name="A", role="admin")

    await store.users.replace(changed, event_of(changed, "updated", changed=["username"]), expected_version=1)

    assert await store.users.get(user.id) == changed
    assert await store.users.find_login("ada") is None
    assert (await store.users.find_login("countess")).user == changed
    assert [json.loads(event.payload)["type"] for event in await waiting()] == [
        "users.user.created",
        "users.user.updated",
    ]


async def test_a_change_of_another_version_is_refused(store, add_user, make_user, waiting):
    user = await add_user()
    unknown = make_user()

    for target, version in ((user, 2), (unknown, 1)):
        changed = next_of(target, full_name="x")
        with pytest.raises(VersionChanged):
            await store.users.replace(changed, event_of(changed, "updated"), expected_version=version)

    assert await store.users.get(user.id) == user
    assert len(await waiting()) == 1


async def test_of_fifty_changes_of_a_version_one_wins(store, add_user, waiting):
    user = await add_user()
    changes = [next_of(user, full_name=f"name {n}") for n in range(50)]

    results = await asyncio.gather(
        *(store.users.replace(c, event_of(c, "updated"), expected_version=1) for c in changes), return_exceptions=True
    )

    assert results.count(None) == 1
    assert sum(isinstance(result, VersionChanged) for result in results) == 49
    assert await store.users.get(user.id) == changes[results.index(None)]
    assert len(await waiting()) == 2


async def test_a_change_to_what_is_taken_is_refused_whole(store, add_user, waiting):
    await add_user("ada")
    user = await add_user("bob")
    before = await waiting()

    for values, field in (({"username": "ADA"}, "username"), ({"email": "ada@example.com"}, "email")):
        changed = next_of(user, **values)
        with pytest.raises(Conflict) as caught:
            await store.users.replace(changed, event_of(changed, "updated"), expected_version=1)
        assert caught.value.problem_code == f"{field}_taken"

    assert await store.users.get(user.id) == user
    assert await waiting() == before


async def test_a_user_may_change_the_case_of_its_name(store, add_user):
    user = await add_user("ada")
    changed = next_of(user, username="Ada")

    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1)

    assert (await store.users.get(user.id)).username == "Ada"
    assert (await store.users.find_login("ada")).user == changed


async def test_a_new_password_ends_the_other_sessions(store, add_user, make_session):
    user, other = await add_user(), await add_user()
    sessions = [make_session(user), make_session(user), make_session(other)]
    for session in sessions:
        await store.sessions.open(session)
    changed = next_of(user)

    await store.users.replace(
        changed, event_of(changed, "updated"), expected_version=1, password_hash="new", keep_session=sessions[0].id
    )

    now = sessions[0].created_at
    assert (await store.sessions.user_of(sessions[0].id, now=now)).id == user.id
    assert (await store.sessions.user_of(sessions[2].id, now=now)).id == other.id
    with pytest.raises(NotFound):
        await store.sessions.user_of(sessions[1].id, now=now)
    assert (await store.users.find_login(user.username)).password_hash == "new"


async def test_sessions_end_with_the_event_that_says_so(store, add_user, make_session, waiting):
    user = await add_user()
    session, later = make_session(user), make_session(user)
    await store.sessions.open(session)
    changed = replace(user, role="admin", version=2)
    ended = session_reused(user.id, session.id)
    with pytest.raises(VersionChanged):
        await store.users.replace(changed, event_of(changed, "updated"), expected_version=7, ended=ended)
    assert len(await store.sessions.of_user(user.id, now=session.created_at)) == 1

    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1, ended=ended)
    assert await store.sessions.of_user(user.id, now=session.created_at) == []
    await store.sessions.open(later)
    gone = session_reused(user.id, later.id)
    with pytest.raises(VersionChanged):
        await store.users.remove(user.id, event_of(changed, "deleted"), expected_version=7, ended=gone)
    await store.users.remove(user.id, event_of(changed, "deleted"), expected_version=2, ended=gone)

    subjects = [event.subject.split(".")[3] for event in await waiting()]
    assert subjects == ["created", "updated", "reused", "deleted", "reused"]


async def test_another_change_leaves_sessions_and_password(store, add_user, make_session):
    user = await add_user()
    session = make_session(user)
    await store.sessions.open(session)
    changed = next_of(user, full_name="x")

    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1)

    assert await store.sessions.user_of(session.id, now=session.created_at) == changed
    assert (await store.users.find_login(user.username)).password_hash == "hash"


async def test_a_removed_user_is_gone_with_its_sessions(store, add_user, make_session, make_user, waiting):
    user = await add_user("ada")
    session = make_session(user)
    await store.sessions.open(session)

    await store.users.remove(user.id, event_of(user, "deleted"), expected_version=1)

    with pytest.raises(NotFound):
        await store.users.get(user.id)
    with pytest.raises(NotFound):
        await store.sessions.user_of(session.id, now=session.created_at)
    assert await store.users.find_login("ada") is None
    assert [event.subject for event in await waiting()] == ["evt.users.user.created.v1", "evt.users.user.deleted.v1"]
    again = make_user("ada")
    await store.users.add(again, "hash", event_of(again, "created"))
    assert await store.users.get(again.id) == again


async def test_a_removal_of_another_version_is_refused(store, add_user, waiting):
    user = await add_user()

    for user_id, version in ((user.id, 2), (new_id(), 1)):
        with pytest.raises(VersionChanged):
            await store.users.remove(user_id, event_of(user, "deleted"), expected_version=version)

    assert await store.users.get(user.id) == user
    assert len(await waiting()) == 1


async def test_a_hash_is_renewed_only_when_it_is_still_the_same(store, add_user, waiting):
    user = await add_user()

    await store.users.rehash(user.id, old_hash="other", new_hash="lost")
    assert (await store.users.find_login(user.username)).password_hash == "hash"
    await store.users.rehash(user.id, old_hash="hash", new_hash="better")
    assert (await store.users.find_login(user.username)).password_hash == "better"
    assert await store.users.get(user.id) == user
    assert len(await waiting()) == 1


async def test_the_store_knows_whether_there_is_an_admin(store, add_user):
    await add_user()
    assert not await store.users.has_admin()
    await add_user(role="admin")
    assert await store.users.has_admin()


async def test_text_is_stored_as_text(store, add_user):
    name = "'; DROP TABLE users; -- \\ % _ \u00e9\U0001f9d1\u200d\U0001f680"
    user = await add_user(full_name=name)

    assert (await store.users.get(user.id)).full_name == name


async def test_cancelled_writes_leave_nothing_locked(store, add_user):
    user = await add_user()
    changed = next_of(user, full_name="x")
    tasks = [
        asyncio.get_running_loop().create_task(
            store.users.replace(changed, event_of(changed, "updated"), expected_version=1)
        )
        for _ in range(5)
    ]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    current = await store.users.get(user.id)
    last = next_of(current, full_name="last")
    await store.users.replace(last, event_of(last, "updated"), expected_version=current.version)
    assert (await store.users.get(user.id)).full_name == "last"
