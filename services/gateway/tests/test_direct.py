"""The protocol lane while it waits: no task until something is due, and one as soon as the answer comes slowly."""

import asyncio
import time

import pytest

from services.gateway.lane.attempt import Outcome
from services.gateway.lane.sweeper import TICK_S
from services.gateway.tests.rig import ONE_TRY, ROUTES, Rig, eventually
from services.gateway.tests.scripted import Wire, answer

TRIED = """
[[routes]]
path = "/tried/*"
service = "open"
methods = ["GET"]
auth = "public"
timeout_s = 5
try_timeout_s = 2
"""

NEVER_OPENS = """
[services.open]
retry_share = 1
breaker = {window = 1000, volume_min = 1000}
"""


@pytest.fixture
def lane() -> str:
    return "direct"


class Slow:
    """An upstream that answers the first request of a connection at once, and the next in two parts as it is told."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, wire: Wire) -> None:
        await wire.message()
        await wire.send(answer())
        await wire.message()
        self.asked.set()
        while True:
            await wire.send(await self.parts.get())


def tick(rig: Rig, after_s: float) -> None:
    """Let the time pass for what is under way."""
    for item in rig.parts.sweeper:
        item.on_tick(time.monotonic() + after_s)


async def waiting(rig: Rig, slow: Slow, target: str) -> Wire:
    """A client whose request waits for the service on a kept connection, which the protocol lane needs."""
    client = await rig.connect()
    await client.ask(rig.get("/open/first"))
    await eventually(lambda: not rig.state.tasks)
    await client.send(rig.get(target))
    await slow.asked.wait()
    return client


async def test_request_that_waits_for_its_service_has_no_task_until_its_time_is_nearly_over(serve, start):
    slow = Slow()
    rig = await start(await serve(slow))
    client = await waiting(rig, slow, "/open/x")
    tick(rig, 5 - 3 * TICK_S)
    assert not rig.state.tasks
    tick(rig, 5 - TICK_S)
    assert len(rig.state.tasks) == 1
    await slow.parts.put(answer(b"late"))
    assert (await client.message()).body == b"late"


async def test_time_of_one_try_counts_from_its_beginning(serve, start):
    slow = Slow()
    rig = await start(await serve(slow), config=ROUTES + TRIED + ONE_TRY)
    client = await waiting(rig, slow, "/tried/x")
    tick(rig, 2 - 3 * TICK_S)
    assert not rig.state.tasks
    [attempt] = [item._attempt for item in rig.parts.sweeper]
    attempt.began_at -= 1
    tick(rig, 2 - TICK_S)
    assert len(rig.state.tasks) == 1
    await asyncio.sleep(0)
    # One more second is left, not two from here on.
    tick(rig, 1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert rig.parts.upstreams.of("open").replicas[0].ended[Outcome.FAILED] == 1
    assert (await client.message()).status == 502


async def test_answer_that_comes_in_parts_is_passed_on_as_it_comes(serve, start):
    slow = Slow()
    rig = await start(await serve(slow))
    client = await waiting(rig, slow, "/open/x")
    await slow.parts.put(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
    await client.head()
    assert await client.exactly(4) == b"half"
    await slow.parts.put(b"half")
    assert await client.exactly(4) == b"half"


async def test_answer_that_breaks_off_before_the_client_saw_any_of_it_is_asked_for_again(serve, start):
    broken = 0

    async def break_off(wire: Wire) -> None:
        """What a killed service does now and then: the head is out, the body is not."""
        nonlocal broken
        await wire.message()
        await wire.send(answer(b"whole"))
        await wire.message()
        broken += 1
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")

    async def hold(wire: Wire) -> None:
        while True:
            await wire.message()
            await wire.send(answer(b"whole"))

    rig = await start(await serve(break_off), await serve(hold), config=ROUTES + NEVER_OPENS)
    client = await rig.connect()
    while broken < 5:
        reply = await client.ask(rig.get("/open/x"))
        assert (reply.status, reply.body) == (200, b"whole")


async def test_answer_that_breaks_off_and_must_not_be_asked_for_again_is_a_bad_gateway(serve, start):
    async def break_off(wire: Wire) -> None:
        await wire.message()
        await wire.send(answer(b"whole"))
        await wire.message()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")

    rig = await start(await serve(break_off), config=ROUTES + NEVER_OPENS)
    client = await rig.connect()
    assert (await client.ask(rig.post("/open/x", b"body"))).status == 200
    await eventually(lambda: not rig.state.tasks)
    assert (await client.ask(rig.post("/open/x", b"body"))).status == 502
