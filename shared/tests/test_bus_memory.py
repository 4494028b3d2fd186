"""The memory bus keeps the contract; time is a clock of the test's own where it matters."""

from collections.abc import AsyncIterator

import pytest

from shared.bus.base import Bus, BusUnavailable, LogConfig
from shared.bus.memory import Broker, MemoryBus, broker_named
from shared.testing.bus_contract import BusContract
from shared.testing.bus_probe import Collector, log_config


@pytest.fixture
def broker() -> Broker:
    return Broker()


class TestMemoryBus(BusContract):
    @pytest.fixture
    async def bus(self, broker: Broker) -> AsyncIterator[Bus]:
        bus = MemoryBus(broker)
        yield bus
        await bus.close()

    @pytest.fixture
    async def other(self, broker: Broker) -> AsyncIterator[Bus]:
        bus = MemoryBus(broker)
        yield bus
        await bus.close()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_ages_and_windows_follow_the_clock() -> None:
    clock = Clock()
    bus = MemoryBus(Broker(clock=clock))
    await bus.ensure_log(log_config("w", age_max_s=100, duplicate_window_s=10))
    await bus.append("w.in.a", b"one", message_id="m")
    clock.now += 9.9
    assert (await bus.append("w.in.a", b"one", message_id="m")).duplicate
    clock.now += 0.2
    assert not (await bus.append("w.in.a", b"two", message_id="m")).duplicate
    clock.now += 95
    assert [m.offset for m in await bus.read("w", "w.in.a", after=0, limit=5)] == [2]
    clock.now += 10
    assert await bus.last_offset("w", "w.in.a") == 0
    assert (await bus.append("w.in.a", b"three")).offset == 3


async def test_a_log_over_its_bytes_loses_the_oldest_of_all_subjects() -> None:
    bus = MemoryBus()
    await bus.ensure_log(
        LogConfig(name="w", subjects=("w.>",), messages_per_subject_max=100, age_max_s=600, bytes_max=1000)
    )
    for n in range(10):
        await bus.append(f"w.{n}", bytes(300))
    kept = [n for n in range(10) if await bus.last_offset("w", f"w.{n}")]
    assert kept == [7, 8, 9]


async def test_a_planted_outage_is_seen_as_one_and_passes() -> None:
    broker = Broker()
    bus, collector = MemoryBus(broker), Collector()
    await bus.subscribe("a", collector)
    broker.available = False
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        await bus.publish("a", b"")
    with pytest.raises(BusUnavailable):
        await bus.ping(timeout_s=1)
    broker.available = True
    await bus.publish("a", b"back")
    await collector.wait(1)


async def test_a_named_broker_is_one_and_goes_with_its_last_user() -> None:
    bus = MemoryBus(broker_named("x"))
    assert broker_named("x") is bus.broker
    assert broker_named("y") is not bus.broker
    await bus.ensure_log(log_config("w"))
    del bus
    assert broker_named("x").logs == {}


async def test_every_outage_is_a_new_session(broker: Broker) -> None:
    bus = MemoryBus(broker)
    session = bus.session
    broker.available = False
    broker.available = False
    broker.available = True
    assert bus.session == session + 1
    assert bus.connected
