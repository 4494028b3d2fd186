"""Gzip, the bytes: they come back whole however they were cut, at once, and other work has its turn."""

import asyncio
import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.lane.compress import STEP_BYTES, WHOLE_BYTES_MAX, Compression, Compressor, compressing
from services.gateway.lane.head import Headers

JSON = (b"content-type", b"application/json")


def compressor_of(headers: Headers) -> Compressor:
    found = Compression(lambda _: ()).for_answer(b"gzip", "GET", 200, headers, route=None, path="/x", asked=[])
    assert found is not None
    return found


def test_whole_body_comes_back_and_its_length_is_said():
    headers, data = [JSON], json.dumps([{"n": n} for n in range(500)]).encode()
    packed = compressor_of(headers).whole(data)
    assert gzip.decompress(packed) == data
    assert headers.count((b"content-length", str(len(packed)).encode())) == 1


def test_one_body_gives_one_sequence_of_bytes():
    assert len({compressor_of([JSON]).whole(b"abc" * 5000) for _ in range(2)}) == 1


@given(st.lists(st.binary(max_size=3 * STEP_BYTES), max_size=5), st.sampled_from([-1, 3000, 20_000, 10**6]))
def test_body_comes_back_whole_however_it_was_cut(pieces, size):
    compressor = compressor_of([JSON] if size < 0 else [JSON, (b"content-length", str(size).encode())])
    reader, read = zlib.decompressobj(31), b""
    for number, piece in enumerate(pieces):
        made = b"".join(compressor.parts(piece, is_last=False))
        read += reader.decompress(made)
        # Nothing is held back: all that went in can be read now.
        assert read == b"".join(pieces[: number + 1])
    read += reader.decompress(b"".join(compressor.parts(b"", is_last=True)))
    assert reader.eof
    assert read == b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES])
def test_last_piece_ends_the_body(size):
    compressor = compressor_of([JSON])
    parts = list(compressor.parts(b"a" * size, is_last=True))
    assert len(parts) == max(1, -(-size // STEP_BYTES))
    assert gzip.decompress(b"".join(parts)) == b"a" * size


async def run_app(*messages: dict, method: str = "GET", accept: bytes = b"gzip") -> list[dict]:
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    compression = Compression(lambda _: ())
    wrapped = compressing(
        send,
        lambda status, headers: compression.for_answer(
            accept, method, status, headers, route=None, path="/metrics", asked=[]
        ),
    )
    for message in messages:
        await wrapped(message)
    return sent


def started(*headers: tuple[bytes, bytes]) -> dict:
    return {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/plain"), *headers]}


def body(data: bytes, *, more: bool = False) -> dict:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_whole_answer_of_an_application_has_a_length():
    data = b"requests_total 1\n" * 1000
    head, found = await run_app(started((b"content-length", str(len(data)).encode())), body(data))
    assert gzip.decompress(found["body"]) == data
    assert dict(head["headers"])[b"content-length"] == str(len(found["body"])).encode()
    assert not found.get("more_body")


@pytest.mark.parametrize("pieces", [[b"a" * (WHOLE_BYTES_MAX + 1)], [b"a" * 10, b"b" * 100_000, b""], [b"", b""]])
async def test_answer_of_an_application_in_parts_comes_back_whole(pieces):
    messages = [body(piece, more=number < len(pieces) - 1) for number, piece in enumerate(pieces)]
    head, *parts = await run_app(started(), *messages)
    assert b"content-length" not in dict(head["headers"])
    assert gzip.decompress(b"".join(part["body"] for part in parts)) == b"".join(pieces)
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]


async def test_answer_of_an_application_goes_out_as_it_is_where_nobody_asked():
    data = b"a" * 2000
    head, found = await run_app(started(), body(data), accept=b"")
    assert found["body"] == data
    assert dict(head["headers"])[b"vary"] == b"Accept-Encoding"


async def test_other_work_has_its_turn_within_a_large_body():
    turns = 0

    async def send(_):
        # Never waits, as a server's `send` while its socket takes all.
        return

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    compressor = compressor_of([JSON])
    async with asyncio.TaskGroup() as group:
        other = group.create_task(count())
        await compressor.relay(b"a" * (10 * STEP_BYTES), send, is_last=True)
        other.cancel()
    assert turns >= 9
