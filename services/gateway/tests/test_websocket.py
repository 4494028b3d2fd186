"""The WebSocket proxy: messages, closes and refusals both ways, against the websockets library at either end."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response

from services.gateway.tests.rig import ROUTES, eventually
from services.gateway.tests.scripted import answer

Handler = Callable[[ServerConnection], Awaitable[None]]


class Service:
    """A WebSocket service that runs `handler` for each connection."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.connections: list[ServerConnection] = []

    async def run(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.requests.append(connection.request)
        self.connections.append(connection)
        await self.handler(connection)


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@pytest.fixture
def chat(stack, start):
    """Start a service and the gateway in front of it; returns a client factory."""

    async def run(handler: Handler = echo, **options):
        service = Service(handler)
        server = await stack.enter_async_context(
            serve(service.run, "127.0.0.1", 0, max_size=4 * 1024 * 1024, close_timeout=1, **options)
        )
        port = server.sockets[0].getsockname()[1]
        rig = await start(fleet={"open": [f"127.0.0.1:{port}"]})

        async def open_one(target: str = "/ws/chat", **kw) -> ClientConnection:
            return await stack.enter_async_context(
                connect(
                    f"ws://127.0.0.1:{rig.port}{target}", proxy=None, max_size=4 * 1024 * 1024, close_timeout=1, **kw
                )
            )

        return rig, service, open_one

    return run


async def test_text_and_binary_messages_go_both_ways(chat):
    _, _, open_one = await chat()
    client = await open_one()
    for message in ("hëllo", b"\x00\xff", "", "x" * 60_000):
        await client.send(message)
        assert await client.recv() == message


async def test_messages_of_a_burst_arrive_in_order(chat):
    _, _, open_one = await chat()
    client = await open_one()

    async def send() -> None:
        for number in range(200):
            await client.send(str(number))

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        assert [await client.recv() for _ in range(200)] == [str(number) for number in range(200)]


async def test_fragments_arrive_as_one_message(chat):
    _, _, open_one = await chat()
    client = await open_one()
    await client.send(["ab", "cd", "ef"])
    assert await client.recv() == "abcdef"


async def test_service_chooses_the_subprotocol(chat):
    _, service, open_one = await chat(subprotocols=["chat.v2"])
    client = await open_one(subprotocols=["chat.v1", "chat.v2"])
    assert client.subprotocol == "chat.v2"
    assert service.requests[0].headers["Sec-WebSocket-Protocol"] == "chat.v1, chat.v2"


async def test_head_is_forwarded_like_a_request(chat):
    _, service, open_one = await chat()
    await open_one(
        "/ws/chat?token=a.b.c&room=%2Fx",
        additional_headers={
            "Authorization": "Bearer abc",
            "X-User-Id": "1",
            "X-Forwarded-For": "9.9.9.9",
            "X-Request-ID": "mine",
        },
    )
    request = service.requests[0]
    assert request.path == "/ws/chat?token=a.b.c&room=%2Fx"
    assert request.headers["Authorization"] == "Bearer abc"
    assert "X-User-Id" not in request.headers
    assert request.headers["X-Forwarded-For"] == "127.0.0.1"
    assert request.headers["X-Request-ID"] == "mine"
    assert request.headers["Host"].startswith("127.0.0.1:")


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
async def test_close_of_the_service_reaches_the_client(chat, code):
    async def close(connection: ServerConnection) -> None:
        await connection.close(code, "for a reason")

    _, _, open_one = await chat(close)
    client = await open_one()
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "for a reason")


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_close_of_the_client_reaches_the_service(chat, code):
    _, service, open_one = await chat()
    client = await open_one()
    await client.close(code, "bye")
    await eventually(lambda: service.connections[0].close_code is not None)
    assert (service.connections[0].close_code, service.connections[0].close_reason) == (code, "bye")


async def test_lost_client_is_going_away_for_the_service(chat):
    rig, service, open_one = await chat()
    client = await open_one()
    client.transport.abort()
    await eventually(lambda: service.connections[0].close_code is not None)
    assert service.connections[0].close_code == 1001
    await eventually(lambda: not rig.state.tasks)


async def test_lost_service_is_a_bad_gateway_for_the_client(chat):
    async def vanish(connection: ServerConnection) -> None:
        connection.transport.abort()

    _, _, open_one = await chat(vanish)
    client = await open_one()
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    assert closed.value.rcvd.code == 1014


async def test_message_over_64_kib_is_1009_and_the_service_is_told(chat):
    _, service, open_one = await chat()
    client = await open_one()
    await client.send("x" * 65_537)
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    assert closed.value.rcvd.code == 1009
    await eventually(lambda: service.connections[0].close_code is not None)
    assert service.connections[0].close_code == 1009


async def test_message_of_the_service_over_1_mib_is_1009(chat):
    async def shout(connection: ServerConnection) -> None:
        await connection.send("x" * (1024 * 1024 + 1))
        await connection.wait_closed()

    _, _, open_one = await chat(shout)
    client = await open_one()
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    assert closed.value.rcvd.code == 1009


async def test_ping_is_answered(chat):
    _, _, open_one = await chat()
    client = await open_one()
    async with asyncio.timeout(2):
        await (await client.ping(b"are you there"))


async def test_client_that_reads_nothing_holds_the_service_back(chat):
    held = asyncio.Event()

    async def flood(connection: ServerConnection) -> None:
        for _ in range(3000):
            try:
                async with asyncio.timeout(0.3):
                    await connection.send("x" * 32_000)
            except TimeoutError:
                held.set()
                break
        await connection.wait_closed()

    _, service, open_one = await chat(flood)
    await open_one(max_queue=1)
    async with asyncio.timeout(10):
        await held.wait()
    service.connections[0].transport.abort()


async def refusal(open_one, **kw) -> Response:
    with pytest.raises(InvalidStatus) as refused:
        await open_one(**kw)
    return refused.value.response


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
async def test_refused_handshake_keeps_its_status_and_body(chat, status):
    def refuse(connection: ServerConnection, request: Request) -> Response:
        reply = connection.respond(status, '{"code": "because"}')
        reply.headers["X-Reason"] = "because"
        return reply

    _, _, open_one = await chat(process_request=refuse)
    reply = await refusal(open_one)
    assert reply.status_code == status
    assert reply.headers["X-Reason"] == "because"
    assert json.loads(reply.body) == {"code": "because"}


async def test_redirected_handshake_is_502_and_not_followed(chat):
    def redirect(connection: ServerConnection, request: Request) -> Response:
        reply = connection.respond(302, "")
        reply.headers["Location"] = "ws://127.0.0.1:1/elsewhere"
        return reply

    _, _, open_one = await chat(process_request=redirect)
    assert (await refusal(open_one)).status_code == 502


async def test_plain_answer_to_a_handshake_is_502(serve, start):
    async def script(wire) -> None:
        await wire.head()
        await wire.send(answer(b"hello"))

    rig = await start(await serve(script))
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{rig.port}/ws/x", proxy=None)
    assert refused.value.response.status_code == 502


async def test_service_away_is_503_with_retry_after(start):
    rig = await start(fleet={"open": []})
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{rig.port}/ws/x", proxy=None)
    reply = refused.value.response
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert json.loads(reply.body)["code"] == "no_upstream"


async def test_refusing_replica_is_passed_over(chat):
    rig, _, open_one = await chat()
    alive = rig.parts.endpoints.of("open")[0]
    rig.point_at({"open": ["127.0.0.1:1", f"127.0.0.1:{alive[1]}"]})
    await rig.parts.endpoints.refresh()
    for _ in range(5):
        client = await open_one()
        await client.send("a")
        assert await client.recv() == "a"


async def test_unknown_address_is_404(chat):
    _, _, open_one = await chat()
    assert (await refusal(open_one, target="/nowhere")).status_code == 404
    assert (await refusal(open_one, target="/open/x")).status_code == 404


async def test_foreign_origin_is_403(chat, caplog):
    rig, service, open_one = await chat()
    reply = await refusal(open_one, origin="http://evil.example")
    assert (reply.status_code, json.loads(reply.body)["code"]) == (403, "origin_not_allowed")
    assert not service.requests
    await eventually(lambda: not rig.state.tasks)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("origin", [None, "http://localhost:3000", "http://127.0.0.1:{port}"])
async def test_own_origin_listed_origin_and_none_are_fine(chat, origin):
    rig, _, open_one = await chat()
    client = await open_one(origin=origin.format(port=rig.port) if origin else None)
    await client.send("a")
    assert await client.recv() == "a"


async def test_open_websocket_counts_as_work_of_its_replica(chat):
    rig, _, open_one = await chat()
    client = await open_one()
    assert rig.parts.upstreams.of("open").replicas[0].in_flight == 1
    await client.close()
    await eventually(lambda: rig.parts.upstreams.of("open").replicas[0].in_flight == 0)


async def test_server_that_stops_closes_with_1012(chat):
    rig, service, open_one = await chat()
    client = await open_one()
    await client.send("a")
    assert await client.recv() == "a"
    for connection in list(rig.state.connections):
        connection.shutdown()
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    assert closed.value.rcvd.code == 1012
    await eventually(lambda: service.connections[0].close_code is not None)


@pytest.mark.slow  # waits for the handshake's time
async def test_the_time_to_connect_is_that_of_the_services_policy(start):
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        # Its queue is full, so that a further connection neither comes about nor is refused.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        config = ROUTES + "[services.open]\nconnect_timeout_s = {}\n"
        for connect_timeout_s, status in ((0.2, 503), (30, 504)):
            rig = await start(fleet={"open": [f"127.0.0.1:{port}"]}, config=config.format(connect_timeout_s))
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{rig.port}/ws/chat", proxy=None)
            assert refused.value.response.status_code == status
