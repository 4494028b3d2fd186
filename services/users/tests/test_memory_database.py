"""The in-memory database: locks in name order, numbers given once, copies out, and transactions undone whole."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.users.adapters.memory_database import MemoryDatabase, Records
from services.users.domain.audit import entry_of


@pytest.fixture
def database():
    return MemoryDatabase()


async def test_a_transaction_that_fails_leaves_every_collection_as_it_was(database):
    db = database
    async with db.locked(db.credentials, db.logins):
        db.credentials.records["kept"] = "old"
        db.credentials.records["removed"] = "old"
        db.logins.records["name"] = "kept"

    async def fail():
        async with db.locked(db.credentials, db.logins):
            db.credentials.records["kept"] = "new"
            db.credentials.records["kept"] = "newer"
            del db.credentials.records["removed"]
            db.credentials.records["added"] = "new"
            db.credentials.records.pop("added")
            db.logins.records.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()

    assert dict(db.credentials.records) == {"kept": "old", "removed": "old"}
    assert dict(db.logins.records) == {"name": "kept"}


changes = st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 3).map(str)))


@given(kept=changes, undone=changes)
def test_whatever_was_changed_is_taken_back(kept, undone):
    records = Records()

    def apply(changes):
        for name, value in changes:
            if value is None:
                records.pop(name, None)
            else:
                records[name] = value

    apply(kept)
    records.keep()
    before = dict(records)
    apply(undone)
    records.undo()

    assert dict(records) == before
    records.undo()
    assert dict(records) == before


async def test_a_cancelled_transaction_is_undone_and_its_locks_are_free(database):
    entered = asyncio.Event()

    async def write():
        async with database.unit() as joined:
            joined.credentials.records["a"] = "x"
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(write())
    await entered.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert not database.credentials.records
    assert not any(collection.lock.locked() for collection in database.collections)


async def test_a_unit_takes_part_in_one_transaction_and_shuts_others_out(database):
    async with database.unit() as joined:
        async with joined.locked(joined.credentials):
            joined.credentials.records["a"] = "x"
        reader = asyncio.get_running_loop().create_task(_read(database))
        await asyncio.sleep(0)
        assert not reader.done()
        joined.credentials.records["b"] = "y"

    assert await reader == {"a": "x", "b": "y"}


async def _read(database):
    async with database.locked(database.credentials):
        return dict(database.credentials.records)


async def test_locks_are_taken_in_name_order_whatever_the_order_asked_for(database):
    db = database

    async def work(*collections):
        for _ in range(50):
            async with db.locked(*collections):
                await asyncio.sleep(0)

    async with asyncio.timeout(5):
        await asyncio.gather(work(db.users, db.audit, db.logins), work(db.logins, db.users), work(db.audit, db.users))


async def test_numbers_are_given_once(database):
    assert len({database.audit.next_number() for _ in range(1000)}) == 1000


async def test_what_is_read_is_a_copy_however_nested(database):
    given = {"list": [1]}
    async with database.locked(database.audit):
        database.record(entry_of("a", after=given), None)
        given["list"].append(2)
        database.audit.get("1").after["list"].append(3)
        database.audit.find()[0].after["list"].append(4)

        assert database.audit.get("1").after == {"list": [1]}


async def test_queries_filter_sort_and_limit(database):
    async with database.locked(database.credentials):
        database.credentials.records.update({"a": "3", "b": "1", "c": "2"})
        found = database.credentials

        assert found.find() == ["3", "1", "2"]
        assert found.find(lambda value: value > "1", key=str) == ["2", "3"]
        assert found.find(key=str, descending=True, limit=2) == ["3", "2"]
        assert found.find(descending=True) == ["2", "1", "3"]
        assert found.count(lambda value: value > "1") == 2
        assert found.get("x") is None
