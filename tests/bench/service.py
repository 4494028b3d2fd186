"""A service in Python, run as `python -m tests.bench.service PORT FILE`: long bodies down and up, and documents as nginx serves them.

It stands behind the gateway where a long body goes through, and in place of nginx where that is missing. FILE is JSON: text by path;
the one of `*` is for every path that is not named.
"""

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.bench.payload import blocks

SLOW_PIECE_BYTES = 64 * 1024
PIECE_S = SLOW_PIECE_BYTES / 1e6
"""Between two pieces of a slow reader: a megabyte a second."""

DOWN, UP = "/bulk/down", "/bulk/up"
STATUS_PATH = "/upstream-status"
"""As nginx's `stub_status` tells it: the third number of the third line counts the requests."""


class Service:
    """HTTP/1.1 as far as a gateway needs it: lengths only, no chunks."""

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._documents = {path: text.encode() for path, text in documents.items()}
        self._requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head.decode("latin-1"), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done with this connection
        finally:
            writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._requests += 1
        lines = head.split("\r\n")
        target = urlsplit(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "transfer-encoding" in headers:
            writer.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            raise ConnectionResetError
        length = int(headers.get("content-length", "0"))
        query = {name: float(values[0]) for name, values in parse_qs(target.query).items() if target.path in (DOWN, UP)}
        if target.path == UP:
            await _take(length, query.get("slow_s", 0.0), reader, writer)
        elif target.path == DOWN:
            await _give(int(query["bytes"]), writer)
        elif target.path == STATUS_PATH:
            await _send(writer, f"\n\n0 0 {self._requests}\n".encode())
        else:
            await reader.readexactly(length)
            await _send(writer, self._documents.get(target.path, self._documents["*"]))


async def _send(writer: asyncio.StreamWriter, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _give(total: int, writer: asyncio.StreamWriter) -> None:
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {total}\r\n\r\n".encode()
    )
    for block in blocks(total):
        writer.write(block)
        await writer.drain()


async def _take(length: int, slow_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read a body, its first seconds slowly, and answer with what arrived."""
    found, left = hashlib.sha256(), length
    slow_until = time.monotonic() + slow_s
    while left:
        piece = await reader.read(min(left, SLOW_PIECE_BYTES))
        if not piece:
            raise ConnectionResetError
        found.update(piece)
        left -= len(piece)
        if time.monotonic() < slow_until:
            await asyncio.sleep(PIECE_S)
    await _send(writer, json.dumps({"sha256": found.hexdigest(), "bytes": length}).encode())


async def main(port: int, documents: Mapping[str, str]) -> None:
    service = Service(documents)
    # The reader's buffer is small, so that a slow reader is felt by the one who sends.
    server = await asyncio.start_server(service.serve, "127.0.0.1", port, backlog=4096, limit=SLOW_PIECE_BYTES)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
