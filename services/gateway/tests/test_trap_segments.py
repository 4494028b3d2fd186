"""However a client's bytes are cut into segments, the same requests are read of them and the same answers given."""

import asyncio
import re
from typing import Any

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from services.gateway.lane.front import Front, Limits
from services.gateway.lane.server import protocol_of

GET = b"GET /a?b=1 HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nX-One: 2\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = b"PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Late: 1\r\n\r\n"
UPGRADE = b"POST /d HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello"
UPGRADE_CHUNKED = UPGRADE.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked").replace(
    b"\r\n\r\nhello", b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
UPGRADE_EMPTY = b"GET /e HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
ABSOLUTE = b"GET http://a/f?g HTTP/1.1\r\nHost: a\r\n\r\n"
GOOD = (GET, POST, CHUNKED, UPGRADE, UPGRADE_CHUNKED, UPGRADE_EMPTY, ABSOLUTE, b"\r\n" + GET)
LAST = (
    b"",
    b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /behind HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /old HTTP/1.0\r\n\r\nGET /behind HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n" + GET,
    b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n" + GET,
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n" + GET,
    b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nBad Trailer: 1\r\n\r\n" + GET,
)

Found = tuple[list[tuple[Any, ...]], list[int], bool]


class Transport:
    """What the protocol needs of one, kept in memory."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: bytes) -> None:
        assert not self.is_ended
        self.written += data

    def is_closing(self) -> bool:
        return self.is_ended

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.is_ended
        self.is_ended = True

    close = abort = write_eof

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def exchange(segments: list[bytes]) -> Found:
    """Return the requests that reached the application, the statuses the client got, and whether the connection ended."""
    requests: list[tuple[Any, ...]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, is_whole = b"", False
        headers = list(scope["headers"])
        while not is_whole:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            is_whole = not message["more_body"]
        assert scope["headers"] == headers, "a header came after the head"
        requests.append((scope["method"], scope["raw_path"], scope["query_string"], headers, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = Config(app, log_config=None, proxy_headers=False, lifespan="off", ws="none")
    config.load()
    config.loaded_app = app
    state = ServerState()
    protocol = protocol_of(Front(10, limits=Limits(pipelined=100)))(config, state, {})
    transport = Transport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for segment in segments:
        if not transport.is_ended:
            protocol.data_received(segment)
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    is_ended = transport.is_ended
    transport.is_ended = True
    protocol.connection_lost(None)
    # A request that broke off in its body ends by a fault that the application here does not answer.
    await asyncio.gather(*state.tasks, return_exceptions=True)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", bytes(transport.written))]
    return requests, statuses, is_ended


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    starts = [0, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=True) if start < end]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from(GOOD), max_size=4),
    last=st.sampled_from(LAST),
    places=st.lists(st.integers(min_value=0, max_value=10_000), max_size=12),
)
def test_segments_make_no_difference(parts: list[bytes], last: bytes, places: list[int]) -> None:
    data = b"".join(parts) + last
    whole = uvloop.run(exchange([data] if data else []))
    assert uvloop.run(exchange(cut(data, places))) == whole
    assert not any(path == b"/behind" for _, path, *_ in whole[0])
    assert [status for status in whole[1] if status == 200] == [200] * len(whole[0])
    assert len(whole[0]) >= len(parts)


def test_byte_by_byte_is_the_same_too() -> None:
    for last in LAST:
        data = b"".join(GOOD) + last
        whole = uvloop.run(exchange([data]))
        assert uvloop.run(exchange([data[index : index + 1] for index in range(len(data))])) == whole
        assert [body for *_, body in whole[0]][: len(GOOD)] == [
            b"",
            b"hello world",
            b"hello world",
            b"hello",
            b"hello",
            b"",
            b"",
            b"",
        ]
