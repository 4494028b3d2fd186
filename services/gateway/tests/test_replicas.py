"""Several replicas: spread, refused, gone, new."""

import asyncio
import json
import socket

import pytest

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Wire, answer


@pytest.fixture
def dead(unused_address) -> str:
    return f"127.0.0.1:{unused_address[1]}"


async def test_requests_spread_over_replicas(serve, start):
    replicas = [await serve() for _ in range(3)]
    rig = await start(*replicas)

    async def ask() -> None:
        client = await rig.connect()
        for _ in range(10):
            assert (await client.ask(rig.get("/open/x"))).status == 200

    await asyncio.gather(*(ask() for _ in range(6)))
    shares = [replica.received.count(b"GET ") for replica in replicas]
    assert sum(shares) == 60
    assert min(shares) >= 5


async def test_busy_replica_is_left_alone(serve, start):
    release = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.head()
        await release.wait()
        await wire.send(answer(b"slow"))

    busy, quick = await serve(slow), await serve()
    rig = await start(busy)
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await eventually(lambda: len(busy.wires) == 1)
    rig.point_at({"open": [busy.address, quick.address]})
    await rig.parts.endpoints.refresh()
    other = await rig.connect()
    for _ in range(10):
        assert (await other.ask(rig.get("/open/y"))).body == b"/open/y"
    assert len(busy.wires) == 1
    release.set()
    assert (await client.message()).body == b"slow"


async def test_refused_connection_tries_another_replica(serve, start, dead):
    alive = await serve()
    rig = await start(fleet={"open": [dead, alive.address]})
    client = await rig.connect()
    for _ in range(20):
        assert (await client.ask(rig.post("/open/x", b"body"))).status == 200


async def test_all_replicas_down_is_503_with_retry_after(start, dead):
    rig = await start(fleet={"open": [dead]})
    client = await rig.connect()
    reply = await client.ask(rig.get("/open/x"))
    assert (reply.status, reply.get("retry-after")) == (503, "1")
    document = json.loads(reply.body)
    assert document["code"] == "no_upstream"
    assert "127.0.0.1" not in reply.body.decode()
    assert (await client.ask(rig.get("/live"))).status == 200


async def test_service_without_replicas_is_503(serve, start):
    rig = await start(fleet={"open": [], "other": ["127.0.0.1:1"]})
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x"))).status == 503


async def test_changed_endpoints_move_the_traffic_and_drop_kept_connections(serve, start):
    old, new = await serve(), await serve()
    rig = await start(old)
    client = await rig.connect()
    assert (await client.ask(rig.get("/open/x"))).status == 200

    rig.point_at({"open": [new.address]})
    await eventually(lambda: rig.parts.endpoints.of("open")[0][1] == new.port)

    await eventually(lambda: rig.parts.pool.connection_count == 0 and old.wires[0].writer.is_closing())
    assert (await client.ask(rig.get("/open/x"))).status == 200
    assert len(new.wires) == 1


async def test_exchange_under_way_survives_the_removal_of_its_replica(serve, start):
    release = asyncio.Event()

    async def slow(wire: Wire) -> None:
        await wire.head()
        await release.wait()
        await wire.send(answer(b"still here"))

    old, new = await serve(slow), await serve()
    rig = await start(old)
    client = await rig.connect()
    await client.send(rig.get("/open/x"))
    await eventually(lambda: len(old.wires) == 1)
    rig.point_at({"open": [new.address]})
    await rig.parts.endpoints.refresh()
    release.set()
    assert (await client.message()).body == b"still here"
    await eventually(lambda: rig.parts.pool.connection_count == 0)


async def test_replica_that_comes_back_is_used_again(serve, start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        _, port = taken.getsockname()
        rig = await start(fleet={"open": [f"127.0.0.1:{port}"]})
        client = await rig.connect()
        assert (await client.ask(rig.get("/open/x"))).status == 503
    await serve(port=port)
    assert (await client.ask(rig.get("/open/x"))).status == 200


async def test_connections_are_reused(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    client = await rig.connect()
    for _ in range(5):
        await client.ask(rig.get("/open/x"))
    assert len(upstream.wires) == 1


async def test_idle_connection_is_closed_after_its_time(serve, start):
    upstream = await serve()
    rig = await start(upstream)
    client = await rig.connect()
    await client.ask(rig.get("/open/x"))
    rig.parts.pool.sweep(asyncio.get_running_loop().time() + 1e6)
    await eventually(lambda: rig.parts.pool.connection_count == 0 and upstream.wires[0].writer.is_closing())
