"""The contracts of Outbox and KeyStore, held by memory and by PostgreSQL."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from services.users.adapters.database import open_store
from services.users.adapters.keys import make_key
from services.users.domain.events import event_of


async def test_events_wait_in_the_order_of_changes(store, add_user):
    user = await add_user()
    for version in range(2, 6):
        changed = replace(user, version=version)
        await store.users.replace(changed, event_of(changed, "updated"), expected_version=version - 1)
    await store.users.remove(user.id, event_of(user, "deleted"), expected_version=5)

    async with store.outbox.line() as line:
        assert await line.lead()
        events = await line.waiting(100)
        assert await line.waiting(2) == events[:2]

    verbs = [event.subject.split(".")[3] for event in events]
    assert verbs == ["created", "updated", "updated", "updated", "updated", "deleted"]
    assert len({event.id for event in events}) == 6


async def test_done_events_are_gone(store, add_user):
    for _ in range(3):
        await add_user()

    async with store.outbox.line() as line:
        assert await line.lead()
        events = await line.waiting(100)
        assert await line.backlog() == 3
        await line.done([events[0].id, events[2].id])
        await line.done([events[0].id])
        assert await line.waiting(100) == [events[1]]
        assert await line.backlog() == 1


async def test_an_event_is_read_as_it_was_written(store, make_user, waiting):
    user = make_user("Ada")
    event = event_of(user, "created")

    await store.users.add(user, "hash", event)

    assert await waiting() == [event]


async def test_on_postgres_one_line_leads_until_it_closes(postgres_url):
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(open_store(postgres_url, name=name)) for name in "ab"]
        follower = await stack.enter_async_context(second.outbox.line())
        async with first.outbox.line() as leader:
            assert await leader.lead()
            assert await leader.lead()
            assert not await follower.lead()
        async with asyncio.timeout(5):
            while not await follower.lead():
                await asyncio.sleep(0.01)


async def test_the_first_key_stays_the_only_one(store):
    candidates = [make_key("a-seal-for-the-tests") for _ in range(3)]

    results = await asyncio.gather(
        *(store.keys.change(lambda keys, key=key: (keys or [key], [])) for key in candidates)
    )

    assert results[0] == results[1] == results[2] == await store.keys.all()
    assert len(results[0]) == 1
    assert results[0][0] in candidates
