"""After any mixture of faults on both sides nothing stays counted, held or running."""

import asyncio
import random

from services.gateway.tests.rig import Rig, eventually
from services.gateway.tests.scripted import Wire, answer, echo_target

CLIENTS = 60
ROUNDS = 8


def unruly(dice: random.Random):
    """An upstream that answers well half of the time."""

    async def script(wire: Wire) -> None:
        while True:
            await wire.message()
            match dice.randrange(8):
                case 0:
                    return
                case 1:
                    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                    return
                case 2:
                    await wire.send(b"nonsense\r\n\r\n")
                case 3:
                    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
                    await asyncio.sleep(dice.random() / 20)
                    wire.abort()
                    return
                case _:
                    await asyncio.sleep(dice.random() / 100)
                    await wire.send(answer(b"x" * dice.randrange(100_000)))

    return script


async def misbehave(rig: Rig, dice: random.Random) -> None:
    """A client that leaves at every possible moment."""
    for _ in range(ROUNDS):
        client = await rig.connect()
        requests = [
            rig.get("/open/x"),
            rig.post("/open/x", b"a" * dice.randrange(100_000)),
            rig.get("/stream/x"),
            rig.get("/hasty/x", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n0\r\n\r\n",
        ]
        data = dice.choice(requests)
        try:
            await client.send(data[: dice.choice([len(data), len(data), len(data) // 2])])
            async with asyncio.timeout(dice.random() / 10):
                await client.some()
        except (TimeoutError, ConnectionError):
            pass
        client.abort()


async def test_nothing_is_left_after_faults_on_both_sides(serve, start):
    dice = random.Random(7)
    replicas = [await serve(unruly(dice)) for _ in range(2)]
    rig = await start(*replicas)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(misbehave(rig, dice))

    await eventually(lambda: rig.parts.sweeper.count == 0 and not rig.state.tasks)
    assert [replica.in_flight for replica in rig.parts.upstreams.of("open").replicas] == [0, 0]
    rig.parts.pool.close()
    await eventually(lambda: rig.parts.pool.connection_count == 0)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith("gateway-")}


async def test_an_idle_connection_keeps_nothing_of_the_request_it_had(serve, start):
    rig = await start(await serve(echo_target))
    clients = [await rig.connect() for _ in range(5)]

    for client in clients:
        assert (await client.ask(rig.get("/open/x"))).status == 200

    connections = rig.state.connections
    assert len(connections) == 5
    await eventually(lambda: all((each.newest, each.active, each.headers) == (None, None, []) for each in connections))
    for client in clients:
        assert (await client.ask(rig.get("/open/x"))).status == 200
