"""The relay: every event reaches the bus once, in order, whatever falls over."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from services.users.adapters.database import open_store
from services.users.domain import relay as relay_module
from services.users.domain.events import event_of
from services.users.domain.relay import LOG, OutboxRelay
from shared.bus.base import BusUnavailable
from shared.bus.connect import connect
from shared.bus.memory import Broker, MemoryBus
from shared.errors import Unavailable
from shared.tasks import Supervisor
from shared.testing.processes import NatsProcess

pytestmark = pytest.mark.slow  # outages take seconds

SUBJECTS = [f"evt.users.user.{verb}.v1" for verb in ("created", "updated", "deleted")]


async def until(condition):
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def on_bus(bus):
    """The events in the log, oldest first."""
    found = [message for subject in SUBJECTS for message in await bus.read("EVT", subject, after=0, limit=1000)]
    return [json.loads(message.data) for message in sorted(found, key=lambda message: message.offset)]


@asynccontextmanager
async def relaying(outbox, connect_bus, tally):
    relay = OutboxRelay(outbox, connect_bus, tally=tally, retry_s=0.01)
    async with Supervisor() as tasks:
        tasks.start("relay", relay.run)
        yield relay


@pytest.fixture
def is_drained(store):
    async def ask():
        async with store.outbox.line() as line:
            return await line.backlog() == 0

    return ask


@pytest.fixture
async def change(store):
    async def make(user, times):
        for version in range(user.version + 1, user.version + 1 + times):
            changed = replace(user, version=version)
            await store.users.replace(changed, event_of(changed, "updated"), expected_version=version - 1)

    return make


async def test_events_reach_the_bus_in_the_order_of_changes(store, add_user, change, is_drained, tally):
    broker = Broker()
    bus = MemoryBus(broker)
    users = [await add_user() for _ in range(3)]
    await asyncio.gather(*(change(user, 5) for user in users))

    async with relaying(store.outbox, lambda: connect_memory(broker), tally) as relay:
        await until(is_drained)
        await change(replace(users[0], version=6), 1)
        relay.wake()
        await until(is_drained)

    events = await on_bus(bus)
    assert len({event["id"] for event in events}) == len(events) == 19
    for user, last in zip(users, (7, 6, 6), strict=True):
        assert [e["data"]["version"] for e in events if e["subject"] == user.id] == list(range(1, last + 1))
    assert max(tally.backlogs) == 18
    assert tally.backlogs[-1] == 0


async def connect_memory(broker):
    return MemoryBus(broker)


async def test_a_backlog_larger_than_a_batch_is_drained(store, add_user, change, is_drained, tally, monkeypatch):
    monkeypatch.setattr(relay_module, "BATCH_MAX", 4)
    broker = Broker()
    await change(await add_user(), 10)

    async with relaying(store.outbox, lambda: connect_memory(broker), tally):
        await until(is_drained)

    assert [event["data"]["version"] for event in await on_bus(MemoryBus(broker))] == list(range(1, 12))


async def test_events_wait_while_the_bus_is_away_and_it_is_said_once(store, add_user, is_drained, tally):
    broker = Broker()
    broker.available = False
    with capture_logs() as lines:
        async with relaying(store.outbox, lambda: connect_memory(broker), tally):
            await add_user()
            await until(lambda: asyncio.sleep(0, result=len(tally.backlogs) > 5))
            assert not await is_drained()
            broker.available = True
            await until(is_drained)

    events = [line["event"] for line in lines if line["event"].startswith("relay")]
    assert events.count("relay_waits") == events.count("relay_goes_on") <= 1
    assert 1 in tally.backlogs
    assert len(await on_bus(MemoryBus(broker))) == 1


class Crash(Exception):
    pass


class ForgetfulOutbox:
    """An outbox whose relay dies after the bus took events and before they were removed, once."""

    def __init__(self, outbox):
        self._outbox = outbox
        self.crashes = 1

    @asynccontextmanager
    async def line(self):
        async with self._outbox.line() as line:
            real_done = line.done

            async def done(event_ids):
                if self.crashes:
                    self.crashes -= 1
                    raise Unavailable("the relay died here")
                await real_done(event_ids)

            line.done = done
            try:
                yield line
            finally:
                line.done = real_done


async def test_a_replay_after_a_crash_stores_nothing_twice(store, add_user, change, is_drained, tally):
    broker = Broker()
    await change(await add_user(), 9)
    outbox = ForgetfulOutbox(store.outbox)

    async with relaying(outbox, lambda: connect_memory(broker), tally):
        await until(is_drained)

    assert outbox.crashes == 0
    assert [event["data"]["version"] for event in await on_bus(MemoryBus(broker))] == list(range(1, 11))


async def test_a_batch_that_the_bus_refused_is_sent_again_whole(store, add_user, change, is_drained, tally):
    broker = Broker()
    sent = []

    class Stumbling(MemoryBus):
        async def append_all(self, messages, **values):
            sent.append([message.message_id for message in messages])
            if len(sent) == 1:
                raise BusUnavailable("it stumbled")
            return await super().append_all(messages, **values)

    await change(await add_user(), 5)

    async with relaying(store.outbox, lambda: as_awaitable(Stumbling(broker)), tally):
        await until(is_drained)

    assert sent[0] == sent[1]
    assert [event["data"]["version"] for event in await on_bus(MemoryBus(broker))] == list(range(1, 7))


async def test_what_is_on_the_bus_is_told_before_it_is_forgotten(store, add_user, change, is_drained, tally):
    broker, told = Broker(), []
    await change(await add_user(), 5)

    async def relayed(events):
        assert not await is_drained()
        told.extend(event.id for event in events)

    relay = OutboxRelay(store.outbox, lambda: connect_memory(broker), tally=tally, relayed=relayed)
    async with Supervisor() as tasks:
        tasks.start("relay", relay.run)
        await until(is_drained)

    assert told == [event["id"] for event in await on_bus(MemoryBus(broker))]


async def as_awaitable(value):
    return value


async def test_real_nats_down_then_up_loses_and_doubles_nothing(postgres_url, make_user, tally, tmp_path):
    server = NatsProcess(tmp_path)
    server.start()
    try:
        async with open_store(postgres_url, name="test") as store:
            user = make_user()
            await store.users.add(user, "hash", event_of(user, "created"))

            async def is_drained():
                async with store.outbox.line() as line:
                    return await line.backlog() == 0

            async def write(first, last):
                for version in range(first, last + 1):
                    changed = replace(user, version=version)
                    await store.users.replace(changed, event_of(changed, "updated"), expected_version=version - 1)

            async with relaying(store.outbox, lambda: connect(server.url, name="relay"), tally):
                await until(is_drained)
                server.kill()
                await write(2, 30)
                assert not await is_drained()
                server.start()
                await until(is_drained)
                await write(31, 32)
                await until(is_drained)

            bus = await connect(server.url, name="reader")
            events = await on_bus(bus)
            await bus.close()
            assert [event["data"]["version"] for event in events] == list(range(1, 33))
    finally:
        server.kill()


async def test_a_follower_takes_over_when_the_leader_ends(postgres_url, make_user, tally, monkeypatch):
    monkeypatch.setattr(relay_module, "LEAD_POLL_S", 0.02)
    broker = Broker()
    users = [make_user(), make_user()]
    async with open_store(postgres_url, name="a") as store, AsyncExitStack() as follower, AsyncExitStack() as leader:

        async def is_drained():
            async with store.outbox.line() as line:
                return await line.backlog() == 0

        await leader.enter_async_context(relaying(store.outbox, lambda: connect_memory(broker), tally))
        await store.users.add(users[0], "hash", event_of(users[0], "created"))
        await until(is_drained)
        await follower.enter_async_context(relaying(store.outbox, lambda: connect_memory(broker), tally))
        await leader.aclose()
        await store.users.add(users[1], "hash", event_of(users[1], "created"))
        await until(is_drained)

    assert [event["subject"] for event in await on_bus(MemoryBus(broker))] == [user.id for user in users]


def test_the_log_remembers_ids_longer_than_any_pause():
    assert LOG.duplicate_window_s >= 600
    assert LOG.duplicate_window_s <= LOG.age_max_s
