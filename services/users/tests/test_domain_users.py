"""UserService: who may do what, and how changes meet."""

import asyncio
import json
from dataclasses import replace

import pytest

from services.users.adapters.memory import MemoryOutbox
from services.users.adapters.memory_database import MemoryDatabase
from services.users.adapters.memory_users import MemoryUsers
from services.users.domain import users as users_module
from services.users.domain.events import event_of
from services.users.domain.ports import VersionChanged
from services.users.domain.users import Draft, UserService
from services.users.model.records import Actor, Match
from shared.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Unavailable,
)
from shared.ids import new_id


@pytest.fixture
def database():
    return MemoryDatabase()


@pytest.fixture
def repository(database):
    return MemoryUsers(database)


@pytest.fixture
def calls():
    return []


@pytest.fixture
def service(repository, passwords, tally, calls, endings):
    return UserService(repository, passwords, tally=tally, announce=lambda: calls.append("announced"), endings=endings)


@pytest.fixture
async def ada(service):
    return await service.register(Draft("Ada", "ada@example.com", "correct horse", "Ada L"))


def owner_of(user):
    return Actor(user.id, user.role, "session")


ADMIN = Actor(new_id(), "admin", "admin-session")
OTHER = Actor(new_id(), "user", "other-session")


async def test_a_registered_user_has_version_one_and_role_user(service, ada, tally, calls, database):
    assert (ada.version, ada.role, ada.full_name) == (1, "user", "Ada L")
    assert database.credentials.records[ada.id] == "hash of correct horse"
    assert tally.users_created == 1
    assert calls == ["announced"]


@pytest.mark.parametrize("password", ["ADA@example.com", "ada@example.com"])
async def test_a_password_equal_to_the_address_is_refused(service, password, database):
    with pytest.raises(InvalidInput) as caught:
        await service.register(Draft("ada", "ada@example.com", password))

    assert [error.field for error in caught.value.errors] == ["body.password"]
    assert not database.users.records


async def test_a_password_equal_to_the_username_is_refused(service):
    with pytest.raises(InvalidInput):
        await service.register(Draft("Lovelace-1815", "ada@example.com", "lovelace-1815"))


@pytest.mark.parametrize("name", ["admin", "ADMIN", "Admin"])
async def test_the_name_admin_is_taken_for_everybody(service, ada, name):
    with pytest.raises(Conflict):
        await service.register(Draft(name, "x@example.com", "correct horse"))
    with pytest.raises(Conflict):
        await service.change(owner_of(ada), ada.id, {"username": name}, None)


async def test_the_first_admin_is_made_once(service, repository):
    assert await service.ensure_admin(email="root@example.com", password="correct horse")
    assert not await service.ensure_admin(email="root@example.com", password="correct horse")

    found = await repository.find_login("admin")
    assert found.user.role == "admin"


async def test_of_replicas_that_start_together_one_makes_the_admin(repository, passwords, tally, endings):
    services = [
        UserService(repository, passwords, tally=tally, announce=lambda: None, endings=endings) for _ in range(5)
    ]

    made = await asyncio.gather(
        *(service.ensure_admin(email="root@example.com", password="correct horse") for service in services)
    )

    assert sorted(made) == [False] * 4 + [True]


async def test_an_admin_whose_address_is_taken_by_a_user_is_a_conflict(service, ada):
    with pytest.raises(Conflict):
        await service.ensure_admin(email="ada@example.com", password="correct horse")


async def test_a_record_is_read_by_owner_and_admin_only(service, ada):
    assert await service.read(owner_of(ada), ada.id) == ada
    assert await service.read(ADMIN, ada.id) == ada
    with pytest.raises(NotFound):
        await service.read(OTHER, ada.id)
    for text in ("", "x", "../x", ada.id.upper(), ada.id + " ", "0" * 36):
        with pytest.raises(NotFound):
            await service.read(ADMIN, text)


async def test_nobody_else_changes_or_deletes_a_record(service, ada, repository):
    with pytest.raises(NotFound):
        await service.change(OTHER, ada.id, {"full_name": "x"}, None)
    with pytest.raises(NotFound):
        await service.remove(OTHER, ada.id, None)
    assert await repository.get(ada.id) == ada


async def test_a_change_raises_the_version_and_tells_which_fields(service, ada, database):
    changed = await service.change(owner_of(ada), ada.id, {"full_name": None, "email": ada.email}, None)

    assert (changed.full_name, changed.version) == (None, 2)
    event = json.loads(list(database.outbox.records.values())[-1].payload)
    assert event["data"] == {"id": ada.id, "username": "Ada", "role": "user", "version": 2, "changed": ["full_name"]}


async def test_a_change_of_nothing_stores_nothing(service, ada, calls, database):
    calls.clear()

    assert await service.change(owner_of(ada), ada.id, {"full_name": "Ada L", "username": "Ada"}, None) == ada
    assert await service.change(owner_of(ada), ada.id, {}, None) == ada
    assert calls == []
    assert len(database.outbox.records) == 1


async def test_another_address_is_not_a_verified_one(service, ada, repository, database):
    verified = replace(ada, email_verified_at=ada.created_at)
    database.users.records[ada.id] = verified

    assert (await service.change(owner_of(ada), ada.id, {"full_name": "x"}, None)).email_verified_at
    changed = await service.change(owner_of(ada), ada.id, {"email": "new@example.com"}, None)

    assert changed.email_verified_at is None
    assert (await repository.get(ada.id)).email_verified_at is None


async def test_only_an_admin_changes_roles(service, ada):
    for role in ("admin", "user"):
        with pytest.raises(Forbidden):
            await service.change(owner_of(ada), ada.id, {"role": role}, None)

    assert (await service.change(ADMIN, ada.id, {"role": "admin"}, None)).role == "admin"


async def test_a_new_password_is_hashed_and_told_by_name_only(service, ada, database):
    changed = await service.change(owner_of(ada), ada.id, {"password": "battery staple"}, None)

    assert changed.version == 2
    assert database.credentials.records[ada.id] == "hash of battery staple"
    updated, ended = list(database.outbox.records.values())[-2:]
    assert json.loads(updated.payload)["data"]["changed"] == ["password"]
    assert b"staple" not in updated.payload + ended.payload


@pytest.mark.parametrize("by", ["owner", "admin"])
async def test_sessions_end_with_password_role_and_record_and_services_are_told(service, ada, database, told, by):
    actor = owner_of(ada) if by == "owner" else Actor(new_id(), "admin", new_id())

    await service.change(actor, ada.id, {"full_name": "Ada"}, None)
    await service.change(actor, ada.id, {"password": "battery staple"}, None)
    await service.change(Actor(ada.id, "admin", actor.session_id), ada.id, {"role": "admin"}, None)
    await service.remove(actor, ada.id, None)

    stored = [event for event in database.outbox.records.values() if event.subject == "evt.users.session.ended.v1"]
    assert told == stored
    found = [json.loads(event.payload)["data"] for event in stored]
    assert [data["reason"] for data in found] == ["password_changed", "role_changed", "user_deleted"]
    assert {data["user_id"] for data in found} == {ada.id}
    kept = actor.session_id if by == "owner" else None
    assert [data.get("kept_session_id") for data in found] == [kept, None, None]
    assert not any("session_id" in data for data in found)


async def test_a_new_password_is_compared_with_the_new_name(service, ada):
    with pytest.raises(InvalidInput):
        await service.change(owner_of(ada), ada.id, {"username": "Lovelace-1815", "password": "lovelace-1815"}, None)
    with pytest.raises(InvalidInput):
        await service.change(owner_of(ada), ada.id, {"password": "ADA@EXAMPLE.COM"}, None)


async def test_a_stale_match_is_refused(service, ada, repository):
    with pytest.raises(PreconditionFailed):
        await service.change(owner_of(ada), ada.id, {"full_name": "x"}, Match(frozenset({2, 7})))
    with pytest.raises(PreconditionFailed):
        await service.remove(owner_of(ada), ada.id, Match())
    assert await repository.get(ada.id) == ada

    assert (await service.change(owner_of(ada), ada.id, {"full_name": "x"}, Match(frozenset({1})))).version == 2
    assert (await service.change(owner_of(ada), ada.id, {"full_name": "y"}, Match(is_any=True))).version == 3


async def test_a_match_is_required_where_settings_say_so(repository, passwords, tally, ada, endings):
    strict = UserService(
        repository, passwords, tally=tally, announce=lambda: None, endings=endings, requires_match=True
    )

    with pytest.raises(PreconditionRequired):
        await strict.change(owner_of(ada), ada.id, {"full_name": "x"}, None)
    with pytest.raises(PreconditionRequired):
        await strict.remove(owner_of(ada), ada.id, None)
    with pytest.raises(NotFound):
        await strict.remove(OTHER, ada.id, None)
    await strict.remove(owner_of(ada), ada.id, Match(is_any=True))


class Rival(MemoryUsers):
    """Somebody else's change comes between each read and write, `times` times."""

    times = 0

    async def replace(self, user, event, **values):
        if self.times > 0:
            self.times -= 1
            current = await self.get(user.id)
            rival = replace(current, email=f"rival{self.times}@example.com", version=current.version + 1)
            await super().replace(rival, event_of(rival, "updated"), expected_version=current.version)
        await super().replace(user, event, **values)


async def test_a_change_is_made_again_on_what_came_between(database, passwords, tally, ada, endings):
    rival = Rival(database)
    service = UserService(rival, passwords, tally=tally, announce=lambda: None, endings=endings)
    rival.times = 3

    changed = await service.change(owner_of(ada), ada.id, {"full_name": "x"}, None)

    assert (changed.full_name, changed.email, changed.version) == ("x", "rival0@example.com", 5)


async def test_a_matched_change_is_not_made_on_what_came_between(database, passwords, tally, ada, endings):
    rival = Rival(database)
    service = UserService(rival, passwords, tally=tally, announce=lambda: None, endings=endings)
    rival.times = 1

    with pytest.raises(PreconditionFailed):
        await service.change(owner_of(ada), ada.id, {"full_name": "x"}, Match(frozenset({1})))
    assert (await rival.get(ada.id)).full_name == "Ada L"


async def test_a_change_that_never_gets_through_gives_up(database, passwords, tally, ada, endings):
    rival = Rival(database)
    service = UserService(rival, passwords, tally=tally, announce=lambda: None, endings=endings)
    rival.times = users_module.WRITE_TRIES_MAX

    with pytest.raises(Unavailable) as caught:
        await service.change(owner_of(ada), ada.id, {"full_name": "x"}, None)
    assert caught.value.headers["Retry-After"] == "1"


async def test_deleting_a_changed_record_is_tried_again(database, passwords, tally, ada, endings):
    class Slippery(MemoryUsers):
        times = 2

        async def remove(self, user_id, event, **values):
            self.times -= 1
            if self.times > 0:
                raise VersionChanged
            await super().remove(user_id, event, **values)

    service = UserService(Slippery(database), passwords, tally=tally, announce=lambda: None, endings=endings)

    await service.remove(owner_of(ada), ada.id, None)

    assert not database.users.records
    async with MemoryOutbox(database).line() as line:
        assert [event.subject.split(".")[3] for event in await line.waiting(9)] == ["created", "deleted", "ended"]


async def test_fifty_changes_at_once_are_all_counted(service, ada, repository):
    await asyncio.gather(*(service.change(owner_of(ada), ada.id, {"full_name": f"n{n}"}, None) for n in range(50)))

    assert (await repository.get(ada.id)).version == 51
