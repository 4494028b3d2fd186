"""The open-loop client against a small server: its rate, its clock, and what it refuses."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.bench.errors import BenchError
from tests.bench.paced import pace, percentile

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nend"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.slow  # real time passes


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """A server in a thread of its own; the client under test blocks this one."""
    ready, ports = threading.Event(), []

    async def main() -> None:
        nonlocal stop
        stop = asyncio.Event()
        running = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.append(running.sockets[0].getsockname()[1])
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        running.close()

    stop: asyncio.Event | None = None
    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


def answering(*parts: bytes, after_s: float = 0.0, first_after_s: float = 0.0) -> Serve:
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                count += 1
                await asyncio.sleep(first_after_s if count == 1 else after_s)
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return serve


def test_as_many_requests_come_as_were_asked_for():
    with server(answering(OK)) as port:
        found = pace(port, b"GET / HTTP/1.1\r\n\r\n", b"end", per_s=300, seconds=1.0, connections=8)
    # Poisson: the count of a second spreads by its root, 17; five of these.
    assert abs(found.answers - 300) < 87
    assert found.p50_ms <= found.p99_ms


def test_a_request_that_waited_for_a_connection_counts_from_when_it_was_due():
    # One connection, the first answer takes 0.3 s: all that were due meanwhile waited, though the server answered them at once.
    with server(answering(OK, first_after_s=0.3)) as port:
        found = pace(port, b"GET / HTTP/1.1\r\n\r\n", b"end", per_s=200, seconds=0.5, connections=1)
    assert found.p99_ms > 200
    assert found.late_p99_ms > 200


def test_an_answer_in_pieces_is_one_answer():
    with server(answering(OK[:7], OK[7:20], OK[20:])) as port:
        found = pace(port, b"GET / HTTP/1.1\r\n\r\n", b"end", per_s=100, seconds=0.3, connections=4)
    assert found.answers > 0


def test_another_status_ends_the_run():
    with (
        server(answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nend")) as port,
        pytest.raises(BenchError, match="503"),
    ):
        pace(port, b"GET / HTTP/1.1\r\n\r\n", b"end", per_s=100, seconds=0.5, connections=2)


def test_a_closed_connection_ends_the_run():
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    with server(close) as port, pytest.raises(BenchError, match="closed"):
        pace(port, b"GET / HTTP/1.1\r\n\r\n", b"end", per_s=100, seconds=0.5, connections=2)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_by_nearest_rank(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_the_percentile_of_one_value_is_that_value():
    assert percentile([7.0], 0.99) == 7.0
