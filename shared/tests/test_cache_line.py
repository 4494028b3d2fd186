"""Local tiers of several replicas over the bus: a change is heard at once, and what may have been missed is not trusted."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shared.bus.base import Bus, BusUnavailable
from shared.bus.connect import connect
from shared.bus.memory import Broker, MemoryBus
from shared.cache import line as line_module
from shared.cache.entries import Loaded
from shared.cache.line import UNTOLD_MAX, VOUCHED_MAX_S, Change
from shared.cache.tiered import UNVOUCHED_S, TieredCache
from shared.tasks import Supervisor
from shared.testing.bus_probe import eventually
from shared.testing.processes import NatsProcess


class Truth:
    def __init__(self) -> None:
        self.value, self.version, self.asked = b"one", 1, 0

    async def load(self) -> Loaded:
        self.asked += 1
        return Loaded(self.value, self.version)

    def change(self) -> int:
        self.version += 1
        self.value = b"value %d" % self.version
        return self.version


@pytest.fixture
def truth() -> Truth:
    return Truth()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture(params=["memory", "nats"])
def bus_url(request: pytest.FixtureRequest, broker: Broker) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("nats_url"))


@asynccontextmanager
async def replicas(bus_url: str, broker: Broker, count: int = 2) -> AsyncIterator[list[TieredCache]]:
    """Caches of so many replicas of one service, whose lines are up."""
    name = f"t{os.getpid()}x{os.urandom(6).hex()}"

    async def open_bus() -> Bus:
        return MemoryBus(broker) if bus_url == "memory://" else await connect(bus_url, name="test")

    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(Supervisor())
        caches = [TieredCache(name, connect=open_bus) for _ in range(count)]
        for n, cache in enumerate(caches):
            tasks.start(f"cache-{n}", cache.run)
            stack.callback(cache.close)
        await eventually(lambda: all(vouches(cache) for cache in caches))
        yield caches


def vouches(cache: TieredCache) -> bool:
    assert cache._line is not None
    return cache._line.vouches(cache._clock())


async def test_a_change_on_one_replica_is_heard_by_the_others(bus_url: str, broker: Broker, truth: Truth) -> None:
    async with replicas(bus_url, broker, 3) as caches:
        for cache in caches:
            assert (await cache.get("a", truth.load)).value == b"one"
        await caches[0].changed("a", truth.change())
        assert caches[0].peek("a") is None
        await eventually(lambda: all(cache.peek("a") is None for cache in caches))
        for cache in caches:
            assert (await cache.get("a", truth.load)).value == b"value 2"
        assert [cache.statistics.changes for cache in caches] == [0, 1, 1]


async def test_tags_patterns_and_many_keys_are_heard_too(bus_url: str, broker: Broker, truth: Truth) -> None:
    async with replicas(bus_url, broker) as (one, two):
        keys = [f"k{n}" for n in range(450)]
        for key in ("a", "list:1", *keys):
            await two.get(key, truth.load, tags=["t"] if key == "a" else [])
        await one.invalidate(tags=["t"])
        await eventually(lambda: two.peek("a") is None)
        assert two.peek("list:1") is not None
        await one.invalidate(pattern="list:*")
        await eventually(lambda: two.peek("list:1") is None)
        await one.changed_all(dict.fromkeys(keys, 2))
        await eventually(lambda: not any(two.peek(key) for key in keys))


async def test_what_was_changed_while_the_bus_was_away_is_told_when_it_is_back(broker: Broker, truth: Truth) -> None:
    async with replicas("memory://", broker) as (one, two):
        await two.get("a", truth.load)
        broker.available = False
        await one.changed("a", truth.change())
        broker.available = True
        await eventually(lambda: two.statistics.changes == 1)
        assert (await two.get("a", truth.load)).value == b"value 2"


async def test_a_lost_connection_empties_the_local_tier(broker: Broker, truth: Truth) -> None:
    async with replicas("memory://", broker) as (one, _):
        await one.get("a", truth.load)
        flushes = one.statistics.flushes
        broker.available = False
        broker.available = True
        await eventually(lambda: one.statistics.flushes == flushes + 1)
        assert one.peek("a") is None


async def test_entries_are_taken_for_a_second_while_the_bus_is_away(broker: Broker, truth: Truth) -> None:
    name, now = "test", [1000.0]
    cache = TieredCache(name, connect=lambda: open_memory(broker), clock=lambda: now[0])
    async with Supervisor() as tasks:
        tasks.start("cache", cache.run)
        await eventually(lambda: vouches(cache))
        now[0] += 0.001
        await cache.get("a", truth.load)
        broker.available = False
        now[0] += UNVOUCHED_S - 0.01
        assert not vouches(cache)
        assert cache.peek("a") is not None
        now[0] += 0.02
        assert cache.peek("a") is None
        await cache.get("a", truth.load)
        assert cache.peek("a") is not None
    cache.close()


async def test_while_it_is_vouched_for_an_entry_lives_its_whole_time(broker: Broker, truth: Truth) -> None:
    now = [1000.0]
    cache = TieredCache("test", connect=lambda: open_memory(broker), clock=lambda: now[0])
    async with Supervisor() as tasks:
        tasks.start("cache", cache.run)
        await eventually(lambda: vouches(cache))
        now[0] += 0.001
        await cache.get("a", truth.load)
        now[0] += 20
        assert cache.peek("a") is None
        await eventually(lambda: vouches(cache))
        assert cache.peek("a") is not None
    cache.close()


async def open_memory(broker: Broker) -> MemoryBus:
    return MemoryBus(broker)


async def test_nobody_vouches_before_there_is_a_bus(truth: Truth) -> None:
    async def never() -> Bus:
        raise BusUnavailable("it is away")

    cache = TieredCache("test", connect=never)
    async with Supervisor() as tasks:
        tasks.start("cache", cache.run)
        assert (await cache.get("a", truth.load)).value == b"one"
        await cache.changed("a", truth.change())
        assert (await cache.get("a", truth.load)).value == b"value 2"
        assert not vouches(cache)
    cache.close()


async def test_what_is_not_understood_empties_the_local_tier(broker: Broker, truth: Truth) -> None:
    async with replicas("memory://", broker) as (one, _):
        bus = MemoryBus(broker)
        for garbage in (b"", b"[]", b"{}", b'{"from":"x","keys":{"a":"b"},"tags":[],"everything":false}'):
            await one.get("a", truth.load)
            flushes = one.statistics.flushes
            await bus.publish(f"ctl.{one.name}.cache", garbage)
            await eventually(lambda flushes=flushes: one.statistics.flushes > flushes)  # type: ignore[misc]
            assert one.peek("a") is None


async def test_a_dropped_message_empties_the_local_tier(
    broker: Broker, truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas("memory://", broker) as (one, two):
        await one.get("a", truth.load)
        flushes = one.statistics.flushes
        for _ in range(3000):
            # Not awaited in between, so that the handler has no turn.
            broker.deliver(message_of(two.name))
        await eventually(lambda: one.statistics.flushes == flushes + 1)
        assert one.peek("a") is None


def message_of(name: str):  # type: ignore[no-untyped-def]
    from shared.bus.base import Message

    return Message(f"ctl.{name}.cache", b'{"from":"x","keys":{},"tags":[],"everything":false}')


def test_changes_that_cannot_be_told_are_bounded() -> None:
    change = Change()
    for n in range(UNTOLD_MAX + 10):
        change.add(Change(keys={f"k{n}": 1}))
    assert change.is_everything
    assert not change.keys
    change.add(Change(keys={"one": 1}, tags={"t"}))
    assert change == Change(is_everything=True)


def test_of_two_changes_of_a_key_the_newer_is_told() -> None:
    change = Change(keys={"a": 5})
    change.add(Change(keys={"a": 4, "b": 1}, tags={"t"}))
    assert change == Change(keys={"a": 5, "b": 1}, tags={"t"})
    assert not Change()


def test_an_entry_is_never_wrong_for_longer_than_a_second() -> None:
    """Heard within 0.8 s, or loaded within 1 s."""
    assert VOUCHED_MAX_S < 1.0
    assert UNVOUCHED_S <= 1.0
    assert 2 * line_module.CHECK_INTERVAL_S < VOUCHED_MAX_S


@pytest.mark.slow
async def test_killed_nats_costs_freshness_for_a_second_and_no_change_is_missed(tmp_path: Path, truth: Truth) -> None:
    server = NatsProcess(tmp_path)
    server.start()
    try:
        async with replicas(server.url, Broker()) as (one, two):
            await two.get("a", truth.load)
            server.kill()
            await eventually(lambda: not vouches(two))
            await one.changed("a", truth.change())
            await eventually(lambda: two.peek("a") is None)
            assert (await two.get("a", truth.load)).value == b"value 2"
            await asyncio.to_thread(server.start)
            await eventually(lambda: vouches(one) and vouches(two))
            await one.changed("a", truth.change())
            await eventually(lambda: two.statistics.changes >= 1)
            assert (await two.get("a", truth.load)).value == b"value 3"
    finally:
        server.kill()
