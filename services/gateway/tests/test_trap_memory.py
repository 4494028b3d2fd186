"""Large bodies through a slow peer: the gateway holds a few buffers of them and no more, and not a byte is lost."""

import asyncio
import hashlib
import os

import pytest

from services.gateway.tests.process import Process, started
from services.gateway.tests.scripted import Wire, answer

pytestmark = pytest.mark.slow  # real processes, tens of megabytes

BYTES = 96_000_000
GROWTH_BYTES_MAX = 16 * 1024 * 1024
STEP = 262_144
BLOCK = os.urandom(STEP)


def block_at(position: int) -> bytes:
    """Bytes that are not the same everywhere, so that a part lost or swapped shows."""
    return position.to_bytes(8, "big") + BLOCK[8 : min(STEP, BYTES - position)]


def digest() -> bytes:
    found = hashlib.sha256()
    for position in range(0, BYTES, STEP):
        found.update(block_at(position))
    return found.digest()


async def send_all(wire: Wire) -> None:
    for position in range(0, BYTES, STEP):
        wire.writer.write(block_at(position))
        await wire.writer.drain()


async def read_slowly(wire: Wire) -> bytes:
    """Read nothing for a while, then in small steps with pauses, then the rest; return what it was, as a digest."""
    await asyncio.sleep(1)
    found, count = hashlib.sha256(), 0
    while count < BYTES:
        data = await wire.reader.read(STEP)
        assert data, f"it ended after {count} bytes"
        found.update(data)
        count += len(data)
        if count < BYTES // 8:
            await asyncio.sleep(0.005)
    return found.digest()


async def connect(process: Process) -> Wire:
    return Wire(*await asyncio.open_connection("127.0.0.1", process.public_port, limit=STEP))


@pytest.mark.timeout(60)
async def test_download_by_a_slow_client_is_not_held_in_memory(serve, tmp_path):
    async def script(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BYTES)
        await send_all(wire)

    async with started(tmp_path, await serve(script)) as process:
        before = process.reset_peak()
        client = await connect(process)
        await client.send(b"GET /large/x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.head()).status == 200
        assert await read_slowly(client) == digest()
        assert process.peak() - before < GROWTH_BYTES_MAX
        client.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_upload_to_a_slow_service_is_not_held_in_memory(serve, tmp_path, is_chunked):
    digests = []

    async def script(wire: Wire) -> None:
        head = await wire.head()
        if head.get("content-length"):
            digests.append(await read_slowly(wire))
        else:
            await asyncio.sleep(1)
            found = hashlib.sha256()
            while data := await wire.chunk():
                found.update(data)
            digests.append(found.digest())
        await wire.send(answer(b"got it"))

    async with started(tmp_path, await serve(script)) as process:
        before = process.reset_peak()
        client = await connect(process)
        if is_chunked:
            await client.send(b"POST /large/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for position in range(0, BYTES, STEP):
                data = block_at(position)
                client.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                await client.writer.drain()
            await client.send(b"0\r\n\r\n")
        else:
            await client.send(b"POST /large/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BYTES)
            await send_all(client)
        assert (await client.message()).body == b"got it"
        assert digests == [digest()]
        assert process.peak() - before < GROWTH_BYTES_MAX
        client.close()
