"""The contract of deleting, restoring and purging, held by memory and by PostgreSQL."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.domain.audit import entry_of
from services.users.domain.events import event_of
from services.users.model.records import AuditQuery, DeletedUser
from shared.errors import Conflict, NotFound
from shared.ids import new_id

NOW = datetime.now(UTC)


@pytest.fixture
def delete(store, add_user):
    """Delete a new user; return it."""

    async def delete(username="", *, deleted_at=NOW, **values):
        user = await add_user(username, **values)
        await store.users.remove(user.id, event_of(user, "deleted"), expected_version=1, deleted_at=deleted_at)
        return user

    return delete


def restored(user):
    return replace(user, version=user.version + 1, updated_at=NOW)


async def test_a_deleted_user_is_kept_with_all_it_had(store, delete):
    user = await delete("Ada", full_name="Ada L", role="admin", email_verified_at=NOW)

    assert await store.users.get_deleted(user.id) == DeletedUser(user, "hash", NOW)
    with pytest.raises(NotFound):
        await store.users.get(user.id)
    assert await store.users.read_json(user.id) is None
    assert not await store.users.has_admin()


async def test_a_user_removed_for_good_is_not_kept(store, delete):
    user = await delete(deleted_at=None)

    with pytest.raises(NotFound):
        await store.users.get_deleted(user.id)


async def test_a_restored_user_is_as_it_was_one_version_on(store, delete, waiting):
    user = restored(await delete("Ada", full_name="Ada L", email_verified_at=NOW))
    await store.users.restore(user, event_of(user, "restored"), audit=entry_of("user.restored", user_id=user.id))

    assert await store.users.get(user.id) == user
    login = await store.users.find_login("ada")
    assert (login.user, login.password_hash) == (user, "hash")
    assert [event.subject.split(".")[3] for event in await waiting()] == ["created", "deleted", "restored"]
    assert [entry.action for entry in await store.audit.page(AuditQuery(user_id=user.id))] == ["user.restored"]
    with pytest.raises(NotFound):
        await store.users.get_deleted(user.id)
    with pytest.raises(NotFound):
        await store.users.restore(restored(user), event_of(user, "restored"))


@pytest.mark.parametrize("field", ["username", "email"])
async def test_what_was_taken_meanwhile_refuses_the_restoring_whole(store, delete, add_user, waiting, field):
    user = await delete("ada")
    await add_user(
        "ADA" if field == "username" else "bob", email=f"{'new' if field == 'username' else 'ada'}@example.com"
    )
    before = await waiting()

    with pytest.raises(Conflict) as caught:
        await store.users.restore(restored(user), event_of(user, "restored"), audit=entry_of("user.restored"))

    assert caught.value.problem_code == f"{field}_taken"
    assert (await store.users.get_deleted(user.id)).user == user
    assert await waiting() == before
    assert await store.audit.page(AuditQuery()) == []


async def test_a_purged_user_is_gone(store, delete):
    user = await delete()
    await store.users.purge(user.id, audit=entry_of("user.purged", user_id=user.id))

    with pytest.raises(NotFound):
        await store.users.get_deleted(user.id)
    with pytest.raises(NotFound):
        await store.users.purge(user.id, audit=entry_of("user.purged", user_id=user.id))
    assert len(await store.audit.page(AuditQuery())) == 1


async def test_old_deletions_are_purged_in_bounded_batches_oldest_first(store, delete):
    users = [await delete(deleted_at=NOW - timedelta(days=days)) for days in (1, 40, 31, 50)]
    entry = entry_of("user.purged")

    async def purge():
        return await store.users.purge_deleted_before(NOW - timedelta(days=30), audit=entry, limit=2)

    assert [await purge(), await purge(), await purge()] == [2, 1, 0]
    assert (await store.users.get_deleted(users[0].id)).user == users[0]
    entries = await store.audit.page(AuditQuery())
    assert {entry.user_id for entry in entries} == {user.id for user in users[1:]}
    assert {(entry.action, entry.at) for entry in entries} == {("user.purged", entry.at)}


async def test_old_lines_of_the_audit_log_go_in_bounded_batches(store, add_user):
    user = await add_user()
    entries = [replace(entry_of("user.updated"), at=NOW - timedelta(days=days)) for days in (1, 400, 500, 600)]
    for number, entry in enumerate(entries, start=2):
        user = replace(user, version=number)
        await store.users.replace(user, event_of(user, "updated"), expected_version=number - 1, audit=entry)

    async def forget():
        return await store.audit.remove_before(NOW - timedelta(days=365), limit=2)

    assert [await forget(), await forget(), await forget()] == [2, 1, 0]
    assert [entry.at for entry in await store.audit.page(AuditQuery())] == [entries[0].at]


@pytest.mark.parametrize("microsecond", [0, 120_000, 999_999])
async def test_a_user_has_one_json_form_wherever_it_is_made(store, add_user, microsecond):
    moment = datetime(2026, 1, 2, 3, 4, 5, microsecond, tzinfo=UTC)
    name = 'Ada "\\/\u2028 é\U0001f680'
    user = await add_user("Ada", full_name=name, created_at=moment, updated_at=moment, email_verified_at=moment)
    expected = (
        f'{{"id":"{user.id}","username":"Ada","email":"ada@example.com","email_verified":true,'
        f'"full_name":"Ada \\"\\\\/\u2028 é\U0001f680","role":"user","created_at":"2026-01-02T03:04:05.{microsecond:06}Z",'
        f'"updated_at":"2026-01-02T03:04:05.{microsecond:06}Z","version":1}}'
    )

    assert await store.users.read_json(user.id) == (1, expected.encode())
    assert await store.users.read_json(new_id()) is None
