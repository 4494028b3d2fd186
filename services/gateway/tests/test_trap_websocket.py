"""WebSockets at the level of bytes: handshakes that are none, frames that are wrong, and what no library would send."""

import asyncio
import json
import os
import struct

import pytest
from websockets.asyncio.server import ServerConnection, serve

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Message, Wire

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to that key (RFC 6455, section 1.3)."""

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, data: bytes = b"", *, is_last: bool = True, mask: bytes | None = b"\x01\x02\x03\x04") -> bytes:
    """A client's frame (RFC 6455, section 5.2)."""
    length = len(data)
    bit = 0x80 if mask is not None else 0
    head = bytes([opcode | (0x80 if is_last else 0)])
    if length < 126:
        head += bytes([bit | length])
    elif length < 65_536:
        head += bytes([bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", length)
    if mask is None:
        return head + data
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))


async def next_frame(client: Wire) -> tuple[int, bytes]:
    first, second = await client.exactly(2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", await client.exactly(2))
    elif length == 127:
        (length,) = struct.unpack("!Q", await client.exactly(8))
    return first & 0x0F, await client.exactly(length)


async def close_code(client: Wire) -> int:
    while True:
        opcode, data = await next_frame(client)
        if opcode == CLOSE:
            return struct.unpack("!H", data[:2])[0] if data else 1005


class Service:
    def __init__(self) -> None:
        self.received: list[str | bytes] = []
        self.connections: list[ServerConnection] = []
        self.script = self.collect

    async def collect(self, connection: ServerConnection) -> None:
        async for message in connection:
            self.received.append(message)

    async def run(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        await self.script(connection)


@pytest.fixture
async def chat(stack, start):
    """A service, the gateway in front of it, and bytes to open a WebSocket with."""
    service = Service()
    server = await stack.enter_async_context(
        serve(service.run, "127.0.0.1", 0, max_size=None, close_timeout=1, ping_interval=None, compression="deflate")
    )
    rig = await start(fleet={"open": [f"127.0.0.1:{server.sockets[0].getsockname()[1]}"]})
    return rig, service


def handshake(rig, *headers: str, line: str = "GET /ws/chat HTTP/1.1", without: str = "") -> bytes:
    lines = [
        f"Host: gateway:{rig.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
    ]
    kept = [each for each in lines if not without or not each.startswith(without)]
    return "\r\n".join([line, *kept, *headers, "", ""]).encode("latin-1")


async def opened(rig, *headers: str) -> tuple[Wire, Message]:
    client = await rig.connect()
    head = await client.ask(handshake(rig, *headers), has_body=False)
    assert head.status == 101, head
    return client, head


async def test_handshake_is_answered_as_the_standard_says(chat):
    rig, _ = chat
    _, head = await opened(rig)
    assert head.get("sec-websocket-accept") == ACCEPT
    assert (head.get("upgrade"), head.get("connection")) == ("websocket", "Upgrade")
    assert head.get("x-request-id")
    assert "server" not in head.names


async def test_compression_is_not_agreed_on_and_frames_come_plain(chat):
    rig, service = chat

    async def speak(connection: ServerConnection) -> None:
        await connection.send("a" * 1000)
        await connection.wait_closed()

    service.script = speak
    client, head = await opened(rig, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    assert "sec-websocket-extensions" not in head.names
    assert await next_frame(client) == (TEXT, b"a" * 1000)
    assert "Sec-WebSocket-Extensions" not in service.connections[0].request.headers


BAD = {
    "no key": ({"without": "Sec-WebSocket-Key"}, (), 400, "bad_handshake"),
    "two keys": ({}, (f"Sec-WebSocket-Key: {KEY}",), 400, "bad_handshake"),
    "short key": ({"without": "Sec-WebSocket-Key"}, ("Sec-WebSocket-Key: YWJj",), 400, "bad_handshake"),
    "no version": ({"without": "Sec-WebSocket-Version"}, (), 426, "bad_handshake"),
    "old version": ({"without": "Sec-WebSocket-Version"}, ("Sec-WebSocket-Version: 8",), 426, "bad_handshake"),
    "two versions": ({}, ("Sec-WebSocket-Version: 8",), 426, "bad_handshake"),
    "a body": ({}, ("Content-Length: 3",), 400, "ambiguous_framing"),
    "chunks": ({}, ("Transfer-Encoding: chunked",), 400, "ambiguous_framing"),
    "a line over 8 KiB": ({}, ("X-A: " + "a" * 8200,), 431, "head_too_large"),
    "over 100 fields": ({}, tuple(f"X-{number}: 1" for number in range(100)), 431, "head_too_large"),
    "an address over 8 KiB": ({"line": f"GET /ws/{'a' * 8180} HTTP/1.1"}, (), 414, "uri_too_long"),
    "a fragment": ({"line": "GET /ws/x#y HTTP/1.1"}, (), 400, "bad_target"),
    "another server's address": ({"line": "GET http://elsewhere/ws/x HTTP/1.1"}, (), 421, "misdirected_request"),
    "no host": ({"without": "Host"}, (), 400, "bad_host"),
    "two hosts": ({}, ("Host: b",), 400, "bad_host"),
    "an encoded slash": ({"line": "GET /ws/a%2Fb HTTP/1.1"}, (), 400, "ambiguous_target"),
}


@pytest.mark.parametrize(("options", "headers", "status", "code"), BAD.values(), ids=BAD.keys())
async def test_bad_handshake_is_a_problem_and_the_end(chat, options, headers, status, code):
    rig, service = chat
    client = await rig.connect()
    reply = await client.ask(handshake(rig, *headers, **options) + b"abcGET /open/smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
    assert json.loads(reply.body)["code"] == code
    assert json.loads(reply.body)["request_id"] == reply.get("x-request-id")
    if status == 426:
        assert reply.get("sec-websocket-version") == "13"
    assert await client.closed() == b""
    assert not service.connections


@pytest.mark.parametrize(
    ("line", "upgrade", "status"),
    [
        ("POST /ws/chat HTTP/1.1", "websocket", 405),
        ("GET /ws/chat HTTP/1.0", "websocket", 426),
        ("GET /ws/chat HTTP/1.1", "h2c", 426),
        ("GET /ws/chat HTTP/1.1", "websocket, h2c", 426),
    ],
)
async def test_what_cannot_become_a_websocket_is_a_plain_request(chat, line, upgrade, status):
    rig, service = chat
    client = await rig.connect()
    reply = await client.ask(handshake(rig, f"Upgrade: {upgrade}", line=line, without="Upgrade"))
    assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
    assert not service.connections


async def test_handshake_in_absolute_form_opens(chat):
    rig, service = chat
    client = await rig.connect()
    line = f"GET http://gateway:{rig.port}/ws/chat?a=1 HTTP/1.1"
    assert (await client.ask(handshake(rig, line=line), has_body=False)).status == 101
    assert service.connections[0].request.path == "/ws/chat?a=1"


async def test_handshake_behind_an_unanswered_request_does_not_take_over_its_connection(serve, start):
    release = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.head()
        await release.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")

    upstream = await serve(script)
    rig = await start(upstream)
    client = await rig.connect()
    await client.send(rig.get("/open/x") + handshake(rig))
    await eventually(lambda: bool(upstream.wires))
    release.set()
    assert (await client.message()).body == b"first"
    assert (await client.message()).status == 400
    assert await client.closed() == b""
    assert len(upstream.wires) == 1


async def test_handshake_behind_an_answered_request_opens(chat):
    rig, _ = chat
    client = await rig.connect()
    assert (await client.ask(rig.get("/live"))).status == 200
    assert (await client.ask(handshake(rig), has_body=False)).status == 101


async def test_frames_right_behind_the_handshake_are_not_lost(chat):
    rig, service = chat
    client = await rig.connect()
    head = await client.ask(handshake(rig) + frame(TEXT, b"early") + frame(TEXT, b"bird"), has_body=False)
    assert head.status == 101
    await eventually(lambda: service.received == ["early", "bird"])


WRONG = {
    "text that is no UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "text cut inside a character, then no more of it": (
        frame(TEXT, b"\xe2\x82", is_last=False) + frame(0, b"x"),
        1007,
    ),
    "frame without a mask": (frame(TEXT, b"a", mask=None), 1002),
    "reserved opcode": (frame(3, b"a"), 1002),
    "reserved bit": (bytes([0xC1]) + frame(TEXT, b"a")[1:], 1002),
    "continuation of nothing": (frame(0, b"a"), 1002),
    "message inside a message": (frame(TEXT, b"a", is_last=False) + frame(TEXT, b"b"), 1002),
    "ping over 125 bytes": (frame(PING, b"a" * 126), 1002),
    "ping in parts": (frame(PING, b"a", is_last=False), 1002),
    "close code that does not exist": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "close with half a code": (frame(CLOSE, b"\x03"), 1002),
    "message over 64 KiB": (frame(BINARY, b"a" * 65_537), 1009),
    "message over 64 KiB in parts": (
        frame(BINARY, b"a" * 40_000, is_last=False) + frame(0, b"a" * 40_000),
        1009,
    ),
}


@pytest.mark.parametrize(("data", "code"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_frame_closes_both_sides_and_none_of_it_passes(chat, data, code):
    rig, service = chat
    client, _ = await opened(rig)
    await eventually(lambda: bool(service.connections))
    await client.send(data)
    assert await close_code(client) == code
    await client.closed()
    await eventually(lambda: service.connections[0].close_code is not None)
    assert service.connections[0].close_code in (code, 1001)
    assert service.received == []
    await eventually(lambda: not rig.state.tasks)


async def test_wrong_frame_is_no_error_of_ours(chat, caplog):
    rig, _ = chat
    client, _ = await opened(rig)
    await client.send(frame(TEXT, b"\xff\xfe"))
    assert await close_code(client) == 1007
    await eventually(lambda: not rig.state.tasks)
    assert not [record for record in caplog.records if record.name.startswith(("uvicorn", "asyncio"))]


async def test_client_in_the_middle_of_a_large_message_is_told_that_it_is_too_large(chat):
    rig, _ = chat
    client, _ = await opened(rig)
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(frame(BINARY, b"a" * 4_000_000)))
        assert await close_code(client) == 1009
        assert await client.closed() == b""
    await eventually(lambda: not rig.state.connections)


async def test_large_fragmented_message_of_the_service_arrives_whole(chat):
    rig, service = chat
    part = os.urandom(65_536)

    async def speak(connection: ServerConnection) -> None:
        await connection.send(part for _ in range(16))
        await connection.wait_closed()

    service.script = speak
    client, _ = await opened(rig)
    parts = []
    while sum(map(len, parts)) < 16 * len(part):
        opcode, data = await next_frame(client)
        assert opcode in (BINARY, 0)
        parts.append(data)
    assert b"".join(parts) == part * 16


async def test_fragments_with_a_ping_between_them_arrive_as_one(chat):
    rig, service = chat
    client, _ = await opened(rig)
    await client.send(frame(TEXT, b"ab", is_last=False) + frame(PING, b"now") + frame(0, b"cd"))
    assert await next_frame(client) == (PONG, b"now")
    await eventually(lambda: service.received == ["abcd"])


async def test_unasked_pong_is_ignored(chat):
    rig, service = chat
    client, _ = await opened(rig)
    await client.send(frame(PONG, b"why") + frame(TEXT, b"after"))
    await eventually(lambda: service.received == ["after"])


async def test_close_without_a_code_is_answered_and_told(chat):
    rig, service = chat
    client, _ = await opened(rig)
    await client.send(frame(CLOSE))
    assert await next_frame(client) == (CLOSE, b"")
    assert await client.closed() == b""
    await eventually(lambda: service.connections[0].close_code is not None)
    # 1005 is what a receiver is told, never what is sent.
    assert service.connections[0].close_code in (1001, 1000)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1008, 1011, 1013, 3000, 4000, 4999])
async def test_close_codes_and_reasons_pass_both_ways(chat, code):
    rig, service = chat
    client, _ = await opened(rig)
    await client.send(frame(CLOSE, struct.pack("!H", code) + "ça va".encode()))
    await eventually(lambda: bool(service.connections) and service.connections[0].close_code is not None)
    assert (service.connections[0].close_code, service.connections[0].close_reason) == (code, "ça va")

    async def leave(connection: ServerConnection) -> None:
        await connection.close(code, "à bientôt")

    service.script = leave
    client, _ = await opened(rig)
    assert await next_frame(client) == (CLOSE, struct.pack("!H", code) + "à bientôt".encode())


@pytest.mark.parametrize("text", ["no UTF-8", "reserved opcode"])
async def test_wrong_frame_of_the_service_is_never_passed_on(serve, start, text):
    wrong = {"no UTF-8": frame(TEXT, b"\xff\xfe", mask=None), "reserved opcode": frame(5, b"a", mask=None)}[text]

    async def script(wire: Wire) -> None:
        request = await wire.head()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Connection: Upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Accept: {accept_of(request.get('sec-websocket-key'))}",
        ]
        await wire.send("\r\n".join([*lines, "", ""]).encode() + wrong)
        # The gateway says why it closes; a service that has heard that ends the connection.
        await wire.exactly(6)

    rig = await start(await serve(script))
    client = await rig.connect()
    assert (await client.ask(handshake(rig), has_body=False)).status == 101
    code = await close_code(client)
    assert code == 1014
    assert b"\xff\xfe" not in bytes(client.received)


def accept_of(key: str) -> str:
    from websockets.utils import accept_key

    return accept_key(key)


async def test_client_that_sends_faster_than_the_service_reads_is_held_back(chat):
    rig, service = chat

    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await connection.wait_closed()

    service.script = deaf
    client, _ = await opened(rig)
    await eventually(lambda: bool(service.connections))
    message = frame(BINARY, b"a" * 60_000)
    sent, is_held = 0, False
    while not is_held:
        client.writer.write(message)
        sent += len(message)
        assert sent < 60_000_000
        try:
            async with asyncio.timeout(0.3):
                await client.writer.drain()
        except TimeoutError:
            is_held = True
    service.connections[0].transport.abort()


async def test_upgraded_connection_counts_among_the_clients(chat):
    rig, _ = chat
    client, _ = await opened(rig)
    assert len(rig.state.connections) == 1
    client.close()
    await eventually(lambda: not rig.state.connections)


async def test_websocket_over_the_number_of_connections_is_503(stack, serve, start):
    rig = await start(await serve(), connections_max=1)
    first, second = await rig.connect(), await rig.connect()
    assert (await first.ask(rig.get("/live"))).status == 200
    reply = await second.ask(handshake(rig))
    assert (reply.status, reply.get("retry-after")) == (503, "1")
