"""Clients that are slow on purpose: total deadlines on what they send, an end to what they do not read, room for everyone else."""

import asyncio
import json

import pytest

from services.gateway.lane.front import Limits
from services.gateway.tests.rig import Rig, eventually
from services.gateway.tests.scripted import WAIT_S, Wire, answer

pytestmark = pytest.mark.slow  # waits for deadlines


@pytest.fixture
async def limited(serve, start):
    """Start the gateway with short limits."""

    async def run(script=None, *, connections_max: int = 10_000, **limits: float) -> Rig:
        upstream = await (serve(script) if script else serve())
        rig = await start(upstream, connections_max=connections_max)
        rig.parts.clients.limits = Limits(**limits)
        rig.upstream = upstream
        return rig

    return run


async def dribble(client: Wire, data: bytes) -> int:
    """Send byte after byte, 20 a second, until the other side ends or answers; return how many were sent."""
    for count in range(len(data)):
        if client.reader.at_eof() or client.reader._buffer or client.writer.transport.is_closing():
            return count
        client.writer.write(data[count : count + 1])
        await asyncio.sleep(0.05)
    raise AssertionError("all of it could be sent")


async def test_head_that_dribbles_in_is_408_at_its_deadline(limited):
    rig = await limited(head_s=0.6)
    client = await rig.connect()
    # Each byte comes in time; only the head as a whole does not.
    sent = await dribble(client, rig.get("/open/x", "X-A: " + "a" * 1000))
    assert 5 < sent < 60
    reply = await client.message()
    assert (reply.status, json.loads(reply.body)["code"], reply.get("connection")) == (408, "request_timeout", "close")
    assert await client.closed() == b""
    assert not rig.upstream.wires


async def test_head_behind_an_answered_request_has_its_own_time(limited):
    rig = await limited(head_s=0.6)
    client = await rig.connect()
    await client.send(rig.get("/open/x") + b"GET /open/y HT")
    assert (await client.message()).body == b"/open/x"
    assert (await client.message()).status == 408
    assert await client.closed() == b""


async def test_body_that_dribbles_in_is_408_at_its_deadline(limited):
    rig = await limited(body_s=0.6)
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Content-Length: 1000", method="POST"))
    assert await dribble(client, b"a" * 1000) < 60
    reply = await client.message()
    assert (reply.status, json.loads(reply.body)["code"]) == (408, "request_timeout")
    assert await client.closed() == b""
    assert not rig.upstream.wires


async def test_chunks_that_dribble_in_end_the_upload_that_has_begun(limited):
    gone = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.closed()
        gone.set()

    rig = await limited(script, body_s=0.6)
    client = await rig.connect()
    await client.send(rig.get("/open/x", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
    await dribble(client, b"1\r\na\r\n" * 100)
    assert (await client.message()).status == 408
    async with asyncio.timeout(1):
        await gone.wait()
    assert not rig.upstream.received.endswith(b"0\r\n\r\n")


async def test_body_that_no_route_reads_has_a_deadline_too(limited):
    rig = await limited(body_s=0.6)
    client = await rig.connect()
    await client.send(rig.get("/nowhere", "Content-Length: 1000", method="POST"))
    assert (await client.message()).status == 404
    await dribble(client, b"a" * 1000)
    assert await client.closed() == b""


async def test_large_upload_may_take_its_time_for_each_mebibyte(limited):
    async def script(wire: Wire) -> None:
        request = await wire.message()
        await wire.send(answer(b"%d" % len(request.body)))

    rig = await limited(script, body_s=0.5)
    client = await rig.connect()
    body = b"a" * (3 * 1024 * 1024)
    await client.send(rig.get("/large/x", f"Content-Length: {len(body)}", method="POST"))
    for start in range(0, len(body), 512 * 1024):
        await client.send(body[start : start + 512 * 1024])
        await asyncio.sleep(0.2)
    assert (await client.message()).body == b"%d" % len(body)


async def test_time_in_which_the_upstream_does_not_read_is_not_the_clients(limited):
    release = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await release.wait()
        await wire.exactly(20_000_000)
        await wire.send(answer(b"done"))

    rig = await limited(script, body_s=0.2)
    client = await rig.connect()
    head = rig.get("/large/x", "Content-Length: 20000000", method="POST")
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(head + b"a" * 20_000_000))
        await eventually(lambda: any(connection.is_read_paused for connection in rig.parts.clients.connections))
        connection = next(iter(rig.parts.clients.connections))
        # Longer than what has come so far would have had.
        await asyncio.sleep(0.2 * (2 + connection.body_bytes // 2**20) + 0.5)
        release.set()
        assert (await client.message()).body == b"done"


async def test_idle_connection_is_closed_without_a_word(limited):
    rig = await limited(idle_s=0.5)
    fresh, used = await rig.connect(), await rig.connect()
    assert (await used.ask(rig.get("/open/x"))).status == 200
    assert await fresh.closed() == b""
    assert await used.closed() == b""


async def test_line_ends_do_not_keep_a_connection(limited):
    rig = await limited(idle_s=0.5)
    client = await rig.connect()
    assert await dribble(client, b"\r\n" * 500) < 60
    assert await client.closed() == b""


async def test_waiting_for_an_answer_is_not_idling(limited):
    async def script(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(1)
        await wire.send(answer(b"late"))

    rig = await limited(script, idle_s=0.3, head_s=0.3, body_s=0.3)
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x"))).body == b"late"


async def test_connection_over_the_limit_is_503_and_the_others_go_on(limited):
    rig = await limited(connections_max=2)
    first, second, third = [await rig.connect() for _ in range(3)]
    assert (await first.ask(rig.get("/open/x"))).status == 200
    assert (await second.ask(rig.get("/open/x"))).status == 200
    reply = await third.ask(rig.get("/open/x", "X-Request-ID: mine"))
    assert (reply.status, json.loads(reply.body)["code"]) == (503, "too_many_connections")
    assert reply.get("content-type") == "application/problem+json"
    assert (reply.get("retry-after"), reply.get("connection")) == ("1", "close")
    assert reply.get("x-request-id") == "mine"
    assert await third.closed() == b""
    assert (await first.ask(rig.get("/open/x"))).status == 200
    first.close()
    await eventually(lambda: len(rig.state.connections) == 1)
    assert (await (await rig.connect()).ask(rig.get("/open/x"))).status == 200


async def test_idle_connection_over_the_limit_does_not_stay(limited):
    rig = await limited(connections_max=1, surplus_s=0.3)
    first, second = await rig.connect(), await rig.connect()
    assert await second.closed() == b""
    assert (await first.ask(rig.get("/open/x"))).status == 200


async def test_many_idle_sockets_do_not_stop_a_new_client(limited, descriptors):
    rig = await limited()
    idle = [await rig.connect() for _ in range(descriptors(2000))]
    for number, wire in enumerate(idle):
        if number % 2:
            # Half of them have begun a request.
            wire.writer.write(b"GET /op")
    client = await rig.connect()
    async with asyncio.timeout(1):
        assert (await client.ask(rig.get("/open/x"))).status == 200
    assert len(rig.parts.clients.connections) == len(idle) + 1


@pytest.fixture
def descriptors():
    """Raise the limit on open files as far as this process may and say how many sockets with two ends here fit."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def fit(wanted: int) -> int:
        if hard < 2 * wanted + 200:
            pytest.skip(f"this process may have {hard} open files only")
        return wanted

    yield fit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_client_that_does_not_read_its_answer_keeps_nothing(limited):
    async def script(wire: Wire) -> None:
        while True:
            await wire.head()
            # More than the sockets' own buffers take at their largest (4 MiB to send, 6 to receive).
            await wire.send(answer(b"a" * 32_000_000))

    rig = await limited(script, idle_s=0.6, linger_s=0.3)
    client = await rig.connect(receive_buffer_bytes=1024)
    client.writer.transport.pause_reading()
    client.writer.write(rig.get("/hasty/x"))
    await eventually(lambda: rig.parts.sweeper.count == 1)
    await eventually(lambda: rig.parts.sweeper.count == 0 and not rig.state.connections)


async def test_refusal_reaches_a_client_that_goes_on_sending(limited):
    rig = await limited()
    client = await rig.connect()
    data = b"NO GOOD\x00\r\n\r\n" + b"a" * 5_000_000
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(data))
        assert (await client.message()).status == 400
        assert await client.closed() == b""


async def test_refused_client_that_never_closes_is_closed(limited):
    rig = await limited(linger_s=0.3)
    client = await rig.connect()
    assert (await client.ask(b"NO GOOD\x00\r\n\r\n")).status == 400
    assert len(rig.state.connections) == 1
    async with asyncio.timeout(WAIT_S):
        await eventually(lambda: not rig.state.connections)


async def test_refused_client_that_sends_without_end_is_cut(limited):
    rig = await limited(linger_s=60)
    client = await rig.connect()
    await client.send(b"NO GOOD\x00\r\n\r\n")
    sent = 0
    try:
        while sent < 200_000_000:
            await client.send(b"a" * 1_000_000)
            sent += 1_000_000
    except ConnectionError:
        pass  # That is what is expected of it.
    assert sent < 100_000_000
