"""Long bodies between the service and a client, with nothing between them: what is checked can fail."""

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from tests.bench import payload, transfer
from tests.bench.errors import BenchError
from tests.bench.ours import Caller
from tests.bench.service import Service
from tests.bench.upstream import requests_got

TOTAL = 3 * payload.BLOCK_BYTES + 1234


@pytest.fixture
def port(monkeypatch) -> Iterator[int]:
    monkeypatch.setattr(transfer, "SLOW_S", 0.1)
    ready, found = threading.Event(), {}

    async def main() -> None:
        found["stop"], found["loop"] = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(Service({"*": '{"a":1}', "/named": "{}"}).serve, "127.0.0.1", 0)
        found["port"] = server.sockets[0].getsockname()[1]
        ready.set()
        await found["stop"].wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    yield found["port"]
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join()


def test_a_payload_is_as_long_as_asked_and_no_two_blocks_are_alike():
    parts = list(payload.blocks(TOTAL))
    assert sum(map(len, parts)) == TOTAL
    assert len(set(parts)) == len(parts)
    assert payload.digest(TOTAL) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert payload.digest(TOTAL) != hashlib.sha256(b"".join([parts[1], parts[0], *parts[2:]])).hexdigest()


@pytest.mark.slow  # it is slow on purpose
@pytest.mark.parametrize("move", [transfer.down, transfer.up])
def test_what_arrives_is_what_was_sent(move, port):
    assert move(port, Caller(), TOTAL) == payload.digest(TOTAL)


def test_an_answer_that_breaks_off_is_told(monkeypatch):
    monkeypatch.setattr(transfer, "SLOW_S", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(BenchError, match="97 bytes before its end"):
            transfer.down(server.getsockname()[1], Caller(), 100)
        thread.join()


async def test_other_paths_have_their_documents(port):
    for path, body in (("/named", {}), ("/other?x=1", {"a": 1})):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {path} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert json.loads(await reader.readexactly(transfer._length(head))) == body
        writer.close()
        await writer.wait_closed()


async def test_the_service_counts_what_it_got_before_it_is_asked(port):
    assert await asyncio.to_thread(requests_got, port) == 0
    for _ in range(3):
        await asyncio.to_thread(urlopen(f"http://127.0.0.1:{port}/x").close)
    assert await asyncio.to_thread(requests_got, port) == 4
