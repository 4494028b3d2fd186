"""The hub on a memory bus: what is lost on the way is read from the log, and nothing grows without a bound."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from services.realtime import consumers
from services.realtime.domain.channels import LOG, PULSE, channel_of, stored_subject
from services.realtime.domain.conduct import Limits
from services.realtime.domain.events import EventBus
from services.realtime.domain.positions import Position
from services.realtime.domain.publications import to_stored
from services.realtime.hub.drain import send_away
from services.realtime.hub.hub import Hub, TooManyConnections
from services.realtime.hub.keeper import Keeper
from services.realtime.hub.metrics import HubMetrics
from services.realtime.hub.outbox import Outbox
from services.realtime.hub.peers import Connection, Stream
from services.realtime.hub.pulse import Pulse
from services.realtime.hub.resume import enter_stream
from services.realtime.hub.topics import Overloaded, Topic, Topics
from services.realtime.tests.conftest import eventually
from shared.bus.base import BusUnavailable, Message, NoResponder
from shared.bus.memory import Broker, MemoryBus

ROOM = channel_of("room")


@pytest.fixture
def broker() -> Broker:
    return Broker()


async def open_hub(broker: Broker, **limits: int) -> Hub:
    hub = Hub(MemoryBus(broker), limits=Limits(**limits), metrics=HubMetrics(CollectorRegistry()))
    await hub.open()
    return hub


@pytest.fixture
async def hub(broker: Broker) -> AsyncIterator[Hub]:
    hub = await open_hub(broker)
    yield hub
    await hub.bus.close()


def connection(hub: Hub, user: str = "ada") -> Connection:
    return Connection(user, limits=hub.limits, metrics=hub.metrics)


async def frames(peer: Connection, count: int) -> list[dict[str, object]]:
    found = []
    async with asyncio.timeout(5):
        for _ in range(count):
            frame = await peer.outbox.take()
            assert frame is not None
            found.append(json.loads(frame.text))
    return found


async def contents(peer: Connection, count: int) -> list[object]:
    return [frame.get("content", frame["type"]) for frame in await frames(peer, count)]


def lose(broker: Broker, content: str) -> None:
    """Store a publication whose live copy never arrives."""
    data = to_stored({"content": content}, user="ada", time="2026-01-01T00:00:00Z")
    broker.logs[LOG.name].append(stored_subject(ROOM), data, {}, "")


async def test_a_lost_message_is_read_from_the_log_before_the_next_one(hub: Hub, broker: Broker) -> None:
    peer = connection(hub)
    await hub.enter(ROOM, peer)
    await hub.publish(ROOM, {"content": "1"})
    lose(broker, "2")
    lose(broker, "3")
    await hub.publish(ROOM, {"content": "4"})
    assert await contents(peer, 4) == ["1", "2", "3", "4"]


async def test_a_message_that_comes_again_is_not_delivered_again(hub: Hub, broker: Broker) -> None:
    peer = connection(hub)
    channel = await hub.enter(ROOM, peer)
    await hub.publish(ROOM, {"content": "1"})
    assert await contents(peer, 1) == ["1"]
    stored = broker.logs[LOG.name].read(stored_subject(ROOM), after=0, limit=1)[0]
    broker.deliver(Message("rt.out.chat.room", stored.data, offset=stored.offset))
    await channel.catch_up()
    await hub.publish(ROOM, {"content": "2"})
    assert await contents(peer, 1) == ["2"]
    assert not len(peer.outbox)


async def test_after_an_outage_the_keeper_brings_what_was_missed(hub: Hub, broker: Broker) -> None:
    keeper, peer = Keeper(hub), connection(hub)
    await hub.enter(ROOM, peer)
    broker.available = False
    await keeper.look()
    with pytest.raises(BusUnavailable):
        await hub.publish(ROOM, {"content": "never"})
    lose(broker, "1")
    lose(broker, "2")
    broker.available = True
    await keeper.look()
    assert await contents(peer, 2) == ["1", "2"]


async def test_a_hole_that_could_not_be_read_is_read_later(hub: Hub, broker: Broker) -> None:
    keeper, peer = Keeper(hub), connection(hub)
    channel = await hub.enter(ROOM, peer)
    await hub.publish(ROOM, {"content": "1"})
    assert await contents(peer, 1) == ["1"]
    lose(broker, "2")
    lose(broker, "3")
    stored = broker.logs[LOG.name].read(stored_subject(ROOM), after=0, limit=3)[-1]
    broker.available = False
    # The live copy of 3 arrives as the last thing before the bus goes.
    broker.deliver(Message("rt.out.chat.room", stored.data, offset=stored.offset, previous_offset=stored.offset - 1))
    await eventually(lambda: channel.behind)
    broker.available = True
    await keeper.look()
    assert await contents(peer, 2) == ["2", "3"]


async def test_more_missed_than_the_log_keeps_is_told(hub: Hub, broker: Broker) -> None:
    peer = connection(hub)
    channel = await hub.enter(ROOM, peer)
    for number in range(LOG.messages_per_subject_max + 5):
        lose(broker, str(number))
    await channel.catch_up()
    assert await contents(peer, 3) == ["gap", "5", "6"]


async def test_a_new_life_of_the_log_is_told_and_gone_on_in(hub: Hub, broker: Broker) -> None:
    keeper, peer = Keeper(hub), connection(hub)
    await hub.enter(ROOM, peer)
    await hub.publish(ROOM, {"content": "old"})
    old = hub.epoch
    assert await contents(peer, 1) == ["old"]
    broker.available = False
    await keeper.look()
    del broker.logs[LOG.name]
    broker.available = True
    await keeper.look()
    await hub.publish(ROOM, {"content": "new"})
    gap, new = await frames(peer, 2)
    assert gap == {"type": "gap", "room": "room"}
    assert str(new["id"]).startswith(f"{hub.epoch}:")
    assert hub.epoch != old


async def test_a_renewal_that_fails_half_way_is_finished(hub: Hub, broker: Broker) -> None:
    keeper, peers = Keeper(hub), [connection(hub) for _ in range(2)]
    for number, peer in enumerate(peers):
        await hub.enter(channel_of(f"room{number}"), peer)
    broker.available = False
    await keeper.look()
    del broker.logs[LOG.name]
    broker.available = True
    first = hub.channels.opened()[0]
    await hub.bus.ensure_log(LOG)
    await first._flow.acquire()
    looking = asyncio.gather(keeper.look(), return_exceptions=True)
    await eventually(lambda: bool(first._flow._waiters))
    broker.available = False
    first._flow.release()
    assert await looking == [False]
    broker.available = True
    assert await keeper.look()
    for peer in peers:
        assert (await frames(peer, 1))[0]["type"] == "gap"
    assert {channel.epoch for channel in hub.channels.opened()} == {hub.epoch}


async def test_what_the_log_holds_that_is_no_publication_is_passed_over(hub: Hub) -> None:
    peer = connection(hub)
    await hub.enter(ROOM, peer)
    await hub.bus.append(stored_subject(ROOM), b"not ours")
    await hub.publish(ROOM, {"content": "ours"})
    assert await contents(peer, 1) == ["ours"]


async def test_entering_without_a_bus_leaves_nothing_behind(hub: Hub, broker: Broker) -> None:
    broker.available = False
    peer = connection(hub)
    with pytest.raises(BusUnavailable):
        await hub.enter(ROOM, peer)
    assert not peer.channels
    broker.available = True
    await hub.enter(ROOM, peer)
    await hub.publish(ROOM, {"content": "1"})
    assert await contents(peer, 1) == ["1"]


async def test_a_full_outbox_closes_its_peer_and_no_other(broker: Broker) -> None:
    hub = await open_hub(broker, outbox_frames_max=3)
    slow, quick = connection(hub), connection(hub, "bob")
    await hub.enter(ROOM, slow)
    await hub.enter(ROOM, quick)
    for number in range(5):
        await hub.publish(ROOM, {"content": str(number)})
        assert await contents(quick, 1) == [str(number)]
    assert slow.farewell.code == 4408
    assert not len(slow.outbox)
    assert not quick.closing.is_set()
    await hub.bus.close()


async def test_an_outbox_is_bounded_in_bytes_too() -> None:
    outbox: Outbox[str] = Outbox(items_max=100, bytes_max=10)
    assert outbox.put("a", size_bytes=6)
    assert not outbox.put("b", size_bytes=6)
    assert await outbox.take() == "a"
    assert outbox.put("b", size_bytes=6)


async def test_an_ended_outbox_gives_what_waits_and_then_none() -> None:
    outbox: Outbox[str] = Outbox(items_max=100, bytes_max=10)
    outbox.put("a", size_bytes=1)
    outbox.end(discard=False)
    assert outbox.put("late", size_bytes=1)
    assert [await outbox.take(), await outbox.take()] == ["a", None]


async def test_connections_of_a_user_are_bounded_even_when_they_come_together(broker: Broker) -> None:
    hub = await open_hub(broker, connections_per_user_max=2)
    results = await asyncio.gather(*(hub.admit(connection(hub)) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, TooManyConnections) for result in results) == 3
    assert len(hub.peers) == 2
    await hub.bus.close()


async def test_dismissing_is_idempotent(hub: Hub) -> None:
    peer = connection(hub)
    await hub.admit(peer)
    await hub.enter(ROOM, peer)
    assert hub.dismiss(peer) == [ROOM]
    assert hub.dismiss(peer) == []
    assert not hub.peers


async def test_who_has_just_gone_cannot_be_reached(hub: Hub) -> None:
    peer = connection(hub)
    await hub.admit(peer)
    await hub.send_direct("bob", "ada", "hi")
    hub.dismiss(peer)
    assert hub.inboxes.emptied.is_set()
    await hub.inboxes.sweep()
    with pytest.raises(NoResponder):
        await hub.send_direct("bob", "ada", "hi")


async def test_a_stream_whose_client_is_ahead_of_this_replica_gets_nothing_twice(hub: Hub, broker: Broker) -> None:
    channel = await hub.enter(ROOM, connection(hub))
    lose(broker, "1")
    lose(broker, "2")
    stream = Stream("ada", limits=hub.limits, metrics=hub.metrics)
    await enter_stream(hub, stream, ROOM, since=Position(hub.epoch, 2))
    await channel.catch_up()
    await hub.publish(ROOM, {"content": "3"})
    event = await stream.outbox.take()
    assert event is not None
    assert b'"content":"3"' in event
    assert not stream.backlog


class Thing(Topic):
    def __init__(self) -> None:
        super().__init__()
        self.opened = self.closed = 0

    async def open(self) -> None:
        await asyncio.sleep(0)
        self.opened += 1

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


async def test_a_topic_is_opened_once_for_all_and_closed_after_the_last_lingered(hub: Hub) -> None:
    now = 0.0
    things: Topics[Thing] = Topics(lambda _: Thing(), topics_max=2, linger_s=5, clock=lambda: now)
    peers = [connection(hub) for _ in range(3)]
    thing = (await asyncio.gather(*(things.enter("a", peer) for peer in peers)))[0]
    for peer in peers:
        things.leave("a", peer)
    await things.sweep()
    assert (thing.opened, thing.closed) == (1, 0)
    now = 6.0
    await things.sweep()
    assert (thing.opened, thing.closed) == (1, 1)
    assert things.get("a") is None


async def test_who_comes_while_a_topic_closes_finds_it_open(hub: Hub) -> None:
    now = 0.0
    things: Topics[Thing] = Topics(lambda _: Thing(), topics_max=2, linger_s=5, clock=lambda: now)
    first, second = connection(hub), connection(hub)
    thing = await things.enter("a", first)
    things.leave("a", first)
    now = 6.0
    _, again = await asyncio.gather(things.sweep(), things.enter("a", second))
    assert again is thing
    assert thing.is_open
    assert things.get("a") is thing


async def test_topics_are_bounded(hub: Hub) -> None:
    things: Topics[Thing] = Topics(lambda _: Thing(), topics_max=1)
    await things.enter("a", connection(hub))
    with pytest.raises(Overloaded):
        await things.enter("b", connection(hub))


async def test_a_tick_of_two_replicas_is_stored_once(hub: Hub, broker: Broker) -> None:
    other = await open_hub(broker)
    for number in (100, 101):
        await asyncio.gather(Pulse(hub).tick(number), Pulse(other).tick(number))
    stored = await hub.bus.read(LOG.name, stored_subject(PULSE), after=0, limit=10)
    ticks = [json.loads(message.data)["d"] for message in stored]
    assert ticks == [{"n": 100, "time": "1970-01-01T00:03:20Z"}, {"n": 101, "time": "1970-01-01T00:03:22Z"}]
    await other.bus.close()


async def test_a_tick_without_a_bus_is_lost_quietly(hub: Hub, broker: Broker) -> None:
    broker.available = False
    await Pulse(hub).tick(100)
    broker.available = True
    await Pulse(hub).tick(101)
    assert len(await hub.bus.read(LOG.name, stored_subject(PULSE), after=0, limit=10)) == 1


async def test_a_drain_reaches_those_who_come_late(hub: Hub) -> None:
    draining, early, late = asyncio.Event(), connection(hub), connection(hub, "bob")
    await hub.admit(early)
    async with asyncio.TaskGroup() as group:
        drain = group.create_task(send_away(hub, draining, within_s=0.1))
        draining.set()
        await early.closing.wait()
        await hub.admit(late)
        await late.closing.wait()
        drain.cancel()
    assert [(await frames(peer, 1))[0]["type"] for peer in (early, late)] == ["bye", "bye"]
    assert early.farewell.code == late.farewell.code == 1012


async def test_an_order_that_is_not_understood_harms_nobody(hub: Hub) -> None:
    peer = connection(hub)
    await hub.admit(peer)
    subscriptions = await consumers.subscribe(hub.bus, EventBus(hub.bus, source="/realtime"), hub)
    for order in (b"nonsense", b"[]", b'{"disconnect": 5}', b'{"disconnect": "bob"}'):
        await hub.bus.publish("ctl.realtime.all", order)
    await hub.bus.publish("ctl.realtime.all", b'{"disconnect": "ada"}')
    async with asyncio.timeout(5):
        await peer.closing.wait()
    assert peer.farewell.code == 4403
    for subscription in subscriptions:
        await subscription.stop()
