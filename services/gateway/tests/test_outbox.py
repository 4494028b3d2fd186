"""Held writes: several in a row, in their order, before whatever follows them."""

import asyncio
from typing import Any, cast

import pytest

from services.gateway.lane import direct
from services.gateway.lane.outbox import HELD_MAX, Outbox
from services.gateway.tests.rig import Rig
from services.gateway.tests.scripted import Wire


class Transport:
    """Notes what is written."""

    def __init__(self, log: list[bytes]) -> None:
        self.log = log
        self.is_closed = False

    def is_closing(self) -> bool:
        return self.is_closed

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.log.append(data)


def transport_to(log: list[bytes]) -> Any:
    return cast(asyncio.WriteTransport, Transport(log))


async def test_writes_go_out_in_their_order_in_the_next_turn_of_the_loop():
    log: list[bytes] = []
    outbox, one, other = Outbox(), transport_to(log), transport_to(log)
    outbox.write(one, b"1")
    outbox.write(other, b"2")
    outbox.write(one, b"3")
    assert log == []
    await asyncio.sleep(0)
    assert log == [b"1", b"2", b"3"]
    outbox.write(one, b"4")
    await asyncio.sleep(0)
    assert log == [b"1", b"2", b"3", b"4"]


async def test_full_outbox_writes_at_once():
    log: list[bytes] = []
    outbox, transport = Outbox(), transport_to(log)
    for _ in range(HELD_MAX + 1):
        outbox.write(transport, b"x")
    assert len(log) == HELD_MAX
    await asyncio.sleep(0)
    assert len(log) == HELD_MAX + 1


async def test_what_is_held_for_a_closed_transport_is_dropped_and_the_rest_goes_out():
    log: list[bytes] = []
    outbox, gone, here = Outbox(), transport_to(log), transport_to(log)
    outbox.write(gone, b"1")
    outbox.write(here, b"2")
    gone.is_closed = True
    outbox.flush()
    assert log == [b"2"]


@pytest.fixture
def always_held(monkeypatch):
    monkeypatch.setattr(direct, "CROWD_MIN", 0)


async def warm(rig: Rig) -> Wire:
    """A client, with a kept connection to the service, which the protocol lane needs."""
    client = await rig.connect()
    await client.ask(rig.get("/open/first"))
    return client


async def test_held_answer_comes_before_the_refusal_of_what_follows_it(serve, start, always_held):
    rig = await start(await serve())
    client = await warm(rig)
    await client.send(rig.get("/open/a") + b"no request\r\n\r\n")
    assert (await client.message()).status == 200
    assert (await client.message()).status == 400
    assert await client.closed() == b""


async def test_held_answer_arrives_whole_before_the_connection_ends(serve, start, always_held):
    rig = await start(await serve())
    client = await warm(rig)
    await client.send(rig.get("/open/a", "Connection: close"))
    answer = await client.message()
    assert (answer.status, answer.body) == (200, b"/open/a")
    assert await client.closed() == b""


async def test_held_answers_to_many_clients_each_reach_their_own(serve, start, always_held):
    rig = await start(await serve())
    clients = [await rig.connect() for _ in range(2 * HELD_MAX + 3)]
    # In the second round there are kept connections to the service, which the protocol lane needs.
    for name in ("first", "second"):
        for number, client in enumerate(clients):
            await client.send(rig.get(f"/open/{name}/{number}"))
        bodies = [(await client.message()).body for client in clients]
        assert bodies == [f"/open/{name}/{number}".encode() for number in range(len(clients))]
