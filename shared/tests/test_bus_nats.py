"""The NATS bus keeps the contract, and comes through the death, the silence and the loss of its server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest

from shared.bus.base import MESSAGE_BYTES_MAX, Append, Bus, BusUnavailable
from shared.bus.connect import connect
from shared.bus.nats import NatsBus
from shared.bus.nats_log import changed_config, sent_headers, stream_config, takes_batches
from shared.testing.bus_contract import BusContract
from shared.testing.bus_probe import Collector, eventually, log_config
from shared.testing.processes import NatsProcess


class TestNatsBus(BusContract):
    @pytest.fixture
    async def bus(self, nats_url: str) -> AsyncIterator[Bus]:
        bus = await connect(nats_url, name="contract-1")
        yield bus
        await bus.close()

    @pytest.fixture
    async def other(self, nats_url: str) -> AsyncIterator[Bus]:
        bus = await connect(nats_url, name="contract-2")
        yield bus
        await bus.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsProcess]:
    server = NatsProcess(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bus(server: NatsProcess) -> AsyncIterator[Bus]:
    bus = await connect(server.url, name="faults-1")
    yield bus
    await bus.close()


async def test_subscriptions_and_the_log_come_through_a_crash_of_the_server(server: NatsProcess, bus: Bus) -> None:
    epoch = await bus.ensure_log(log_config("w"))
    out, plain, stopped = Collector(), Collector(), Collector()
    await bus.subscribe("w.out.a", out)
    await bus.subscribe("plain.*", plain, queue="q")
    await (await bus.subscribe("plain.*", stopped)).stop()
    for n in range(20):
        await bus.append("w.in.a", b"%d" % n, message_id=f"m{n}")
    session = bus.session
    server.kill()
    await eventually(lambda: not bus.connected)
    server.start()
    await eventually(lambda: bus.connected)
    assert bus.session == session + 1
    assert await bus.ensure_log(log_config("w")) == epoch
    assert (await bus.append("w.in.a", b"again", message_id="m19")).duplicate
    assert [int(m.data) for m in await bus.read("w", "w.in.a", after=0, limit=100)] == list(range(20))
    appended = await bus.append("w.in.a", b"new", message_id="new")
    assert appended.offset == 21
    messages = await out.wait(21)
    assert (messages[-1].data, messages[-1].offset, messages[-1].previous_offset) == (b"new", 21, 20)
    await bus.publish("plain.x", b"back")
    await plain.wait(1)
    await bus.ping(timeout_s=2)
    assert stopped.messages == []


async def test_every_call_fails_at_once_while_the_server_is_gone(server: NatsProcess, bus: Bus) -> None:
    server.kill()
    await eventually(lambda: not bus.connected)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: bus.publish("a", b""),
        lambda: bus.subscribe("a", Collector()),
        lambda: bus.request("a", b"", timeout_s=60),
        lambda: bus.append("a", b"", timeout_s=60),
        lambda: bus.read("w", "a", after=0, limit=1, timeout_s=60),
        lambda: bus.last_offset("w", "a", timeout_s=60),
        lambda: bus.ensure_log(log_config("w"), timeout_s=60),
        lambda: bus.ping(timeout_s=60),
    ]
    async with asyncio.timeout(5):
        for call in calls:
            with pytest.raises(BusUnavailable):
                await call()


async def test_what_awaits_an_answer_fails_when_the_connection_breaks(server: NatsProcess, bus: Bus) -> None:
    asked = Collector()
    await bus.subscribe("mute", asked)
    request = asyncio.get_running_loop().create_task(bus.request("mute", b"", timeout_s=60))
    await asked.wait(1)
    server.kill()
    async with asyncio.timeout(5):
        with pytest.raises(BusUnavailable):
            await request


@pytest.mark.slow
async def test_a_silent_server_is_given_up_and_taken_again(server: NatsProcess, bus: Bus) -> None:
    collector = Collector()
    await bus.subscribe("a", collector)
    server.pause()
    with pytest.raises(BusUnavailable):
        await bus.ping(timeout_s=0.2)
    # Unsent bytes in the socket must not keep the dead connection alive.
    publishing = asyncio.gather(*(bus.publish("a", bytes(MESSAGE_BYTES_MAX)) for _ in range(64)))
    with pytest.raises(BusUnavailable):
        await publishing
    await eventually(lambda: not bus.connected)
    server.resume()
    await eventually(lambda: bus.connected)
    await bus.publish("a", b"back")
    await eventually(lambda: bool(collector.messages) and collector.messages[-1].data == b"back")


async def test_a_ping_answered_late_does_no_harm(server: NatsProcess, bus: Bus) -> None:
    collector = Collector()
    await bus.subscribe("a", collector)
    server.pause()
    for _ in range(3):
        with pytest.raises(BusUnavailable):
            await bus.ping(timeout_s=0.05)
    server.resume()
    await bus.ping(timeout_s=5)
    await bus.publish("a", b"still here")
    await collector.wait(1)


async def test_the_epoch_changes_when_the_store_is_lost(server: NatsProcess, bus: Bus) -> None:
    before = await bus.ensure_log(log_config("w"))
    await bus.append("w.in.a", b"lost")
    server.kill()
    await eventually(lambda: not bus.connected)
    server.wipe()
    server.start()
    await eventually(lambda: bus.connected)
    with pytest.raises(BusUnavailable):
        await bus.append("w.in.a", b"")
    assert await bus.ensure_log(log_config("w")) != before
    assert (await bus.append("w.in.a", b"")).offset == 1


async def test_connecting_waits_for_a_server_that_comes_up(tmp_path: Path) -> None:
    server = NatsProcess(tmp_path)
    async with asyncio.TaskGroup() as group:
        connecting = group.create_task(connect(server.url, name="early"))
        # Let it fail at least once before there is a server.
        await asyncio.sleep(0.3)
        server.start()
    try:
        assert connecting.result().connected
    finally:
        await connecting.result().close()
        server.kill()


async def test_wrong_credentials_are_told_without_showing_them(
    server: NatsProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.nats.CONNECT_WAIT_S", 0.5)
    with pytest.raises(BusUnavailable, match="refused the credentials") as caught:
        await connect(server.url.replace(server.password, "hunter2"), name="a")
    assert "hunter2" not in str(caught.value)


async def test_a_password_with_special_characters_is_decoded(tmp_path: Path) -> None:
    server = NatsProcess(tmp_path)
    server.password = "p@ss:w/rd ü"
    server.start()
    try:
        url = f"nats://bus:{quote(server.password, safe='')}@127.0.0.1:{server.port}"
        bus = await connect(url, name="a")
        await bus.ping(timeout_s=2)
        await bus.close()
    finally:
        server.kill()


async def test_nothing_is_left_running_after_close(server: NatsProcess) -> None:
    before = asyncio.all_tasks()
    bus = await connect(server.url, name="a")
    await bus.subscribe("a", Collector())
    await bus.publish("a", b"")
    await bus.close()
    await eventually(lambda: asyncio.all_tasks() == before)


async def test_no_task_of_a_broken_connection_is_left_running(server: NatsProcess) -> None:
    before = asyncio.all_tasks()
    bus = await connect(server.url, name="a")
    await bus.subscribe("a", Collector())
    await bus.ensure_log(log_config("w"))
    running = len(asyncio.all_tasks())
    for _ in range(4):
        publishing = [asyncio.get_running_loop().create_task(append_until_it_fails(bus)) for _ in range(8)]
        await bus.ping(timeout_s=5)
        server.kill()
        await asyncio.wait(publishing)
        server.start()
        await eventually(lambda: bus.connected and len(asyncio.all_tasks()) == running)
    await bus.close()
    await eventually(lambda: asyncio.all_tasks() == before)


async def append_until_it_fails(bus: Bus) -> None:
    try:
        while True:
            await bus.append("w.in.a", b"")
    except BusUnavailable:
        return


async def test_an_operators_replicas_and_placement_survive_an_update() -> None:
    existing = {"num_replicas": 3, "placement": {"tags": ["ssd"]}, "max_age": 1, "republish": {"src": "a.>"}}
    changed = changed_config(existing, {"max_age": 2})
    assert changed == {"num_replicas": 3, "placement": {"tags": ["ssd"]}, "max_age": 2}


async def test_a_log_made_before_there_were_batches_takes_them_when_it_is_ensured(
    server: NatsProcess, bus: Bus
) -> None:
    assert isinstance(bus, NatsBus)
    config = log_config("w")
    old = {**stream_config(config), "allow_atomic": False}
    await bus._call("STREAM.CREATE.w", orjson.dumps(old), timeout_s=5)
    await bus.ensure_log(config)
    batch = [Append("w.in.a", b"%d" % n, f"id-{n}") for n in range(3)]
    assert (await bus.append_all(batch))[-1].offset == 3
    # A replica of the version before, whose configuration does not name them, leaves them on.
    before = {name: value for name, value in stream_config(config).items() if name != "allow_atomic"}
    existing = await bus._call("STREAM.INFO.w", b"", timeout_s=5)
    await bus._call("STREAM.UPDATE.w", orjson.dumps(changed_config(existing["config"], before)), timeout_s=5)
    assert [each.duplicate for each in await bus.append_all(batch)] == [True, True, True]


async def test_a_server_that_knows_no_batches_gets_the_messages_one_by_one(bus: Bus) -> None:
    assert isinstance(bus, NatsBus)
    await bus.ensure_log(log_config("w"))
    bus._takes_batches.clear()
    batch = [Append("w.in.a", b"%d" % n, f"id-{n}") for n in range(3)]
    assert [each.offset for each in await bus.append_all(batch)] == [1, 2, 3]
    assert not takes_batches({"config": {"name": "w"}})


async def test_a_batch_that_is_cut_off_stores_nothing(server: NatsProcess, bus: Bus) -> None:
    assert isinstance(bus, NatsBus)
    await bus.ensure_log(log_config("w"))
    await bus.publish("w.in.a", b"before")
    unfinished = sent_headers(Append("w.in.a", b"x", "id-0"), batch_id="b", place=1)
    await bus._session.publish("w.in.a", b"x", headers=unfinished)
    server.kill()
    await eventually(lambda: not bus.connected)
    server.start()
    await eventually(lambda: bus.connected)
    await bus.ensure_log(log_config("w"))
    batch = [Append("w.in.a", b"%d" % n, f"id-{n}") for n in range(3)]
    assert [each.duplicate for each in await bus.append_all(batch)] == [False, False, False]
