"""The chain: CORS, gzip, log, metrics, sign-in, limits, deadline, route; whatever ends a request, those further out saw it.

A row is a situation, a column what must be seen of it.
"""

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.gateway.tests.rig import ROUTES, Rig, eventually
from services.gateway.tests.scripted import Message, Upstream, Wire, answer
from shared.log import add_request

PAGE = "http://localhost:3000"
REQUEST_ID = "chain-1"
SMALL_JSON = b'{"n": 1}'
LARGE_JSON = json.dumps([{"n": n, "text": "the same again"} for n in range(200)]).encode()

LIMITED_ROUTES = ROUTES.replace("[[routes]]", '[[routes]]\nlimits = ["all"]')

CONFIG = f"""
[[limits]]
name = "all"
by = "address"
quota = 100
window_s = 3600

[[limits]]
name = "one"
by = "address"
quota = 1
window_s = 3600

{LIMITED_ROUTES}

[[routes]]
path = "/once/*"
service = "open"
methods = ["GET"]
auth = "public"
limits = ["one"]
"""


async def service(wire: Wire) -> None:
    """Says what its address asks for; like many services, it has CORS headers of its own."""
    own = ["Content-Type: application/json", "Access-Control-Allow-Origin: *", "X-Content-Type-Options: nosniff"]
    while True:
        request = await wire.message()
        match request.target.split("/")[-1]:
            case "large":
                await wire.send(answer(LARGE_JSON, headers=own))
            case "broken":
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
            case "late":
                await wire.closed()
            case "stream":
                kind = ["Content-Type: text/event-stream", "Access-Control-Allow-Origin: *"]
                await wire.send(answer(b"data: 1\n\n" * 200, headers=kind))
            case _:
                await wire.send(answer(SMALL_JSON, headers=own))


@dataclass
class Seen:
    """What one request left behind."""

    reply: Message
    lines: list[dict[str, Any]]
    counted: float
    spent: int | None
    reached: bool


@dataclass
class Row:
    """A situation: its request (`first` is sent before it), its status, and what differs from most."""

    target: str
    status: int
    method: str = "GET"
    headers: list[str] = field(default_factory=list)
    body: bytes = b""
    first: str = ""
    gzip: bool = False
    varies: bool = False
    spends: int = 0
    reaches: bool = False

    def request(self, rig: Rig, *headers: str) -> bytes:
        if self.body:
            return rig.post(self.target, self.body, *self.headers, *headers, method=self.method)
        return rig.get(self.target, *self.headers, *headers, method=self.method)


ROWS = {
    "preflight": Row(
        "/private/x",
        204,
        method="OPTIONS",
        headers=["Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization"],
    ),
    "200": Row("/open/large", 200, gzip=True, varies=True, spends=1, reaches=True),
    "200 small": Row("/open/small", 200, spends=1, reaches=True),
    "200 own": Row("/metrics", 200, gzip=True, varies=True),
    "stream": Row("/stream/stream", 200, spends=1, reaches=True),
    "401": Row("/private/x", 401),
    "404": Row("/nowhere", 404),
    "405": Row("/open/x", 405, method="TRACE"),
    "413": Row("/small/x", 413, method="POST", body=b"a" * 1001, spends=1),
    "429": Row("/once/small", 429, first="/once/small"),
    "431": Row("/open/x", 431, headers=[f"X-Long: {'a' * 33_000}"]),
    "502": Row("/open/broken", 502, spends=1, reaches=True),
    "504": Row("/hasty/late", 504, spends=1, reaches=True),
}


def has_cors(row: Row, seen: Seen) -> None:
    assert seen.reply.get("access-control-allow-origin") == PAGE
    assert seen.reply.get("access-control-allow-credentials") == "true"
    assert "origin" in ", ".join(seen.reply.all("vary")).lower()
    if row.method == "OPTIONS":
        assert seen.reply.get("access-control-allow-methods") == "GET, POST"
        assert seen.reply.get("access-control-allow-headers") == "authorization"
    else:
        assert "X-Request-ID" in seen.reply.get("access-control-expose-headers")


def is_compressed_or_not(row: Row, seen: Seen) -> None:
    assert seen.reply.get("content-encoding") == ("gzip" if row.gzip else "")
    assert ("accept-encoding" in ", ".join(seen.reply.all("vary")).lower()) is row.varies


def is_logged(row: Row, seen: Seen) -> None:
    assert [(line["status"], line["request_id"]) for line in seen.lines] == [(row.status, REQUEST_ID)]


def is_counted(row: Row, seen: Seen) -> None:
    assert seen.counted == 1


def spends_quota(row: Row, seen: Seen) -> None:
    assert seen.spent == row.spends


def is_safe(row: Row, seen: Seen) -> None:
    assert seen.reply.get("x-content-type-options") == "nosniff"
    assert not seen.reply.get("server")
    if row.status >= 400:
        assert seen.reply.get("content-type") == "application/problem+json"
        assert seen.reply.get("cache-control") == "no-store"


def is_named(row: Row, seen: Seen) -> None:
    assert seen.reply.get("x-request-id") == REQUEST_ID


def reaches_the_service(row: Row, seen: Seen) -> None:
    assert seen.reached is row.reaches


COLUMNS: dict[str, Callable[[Row, Seen], None]] = {
    "cors": has_cors,
    "gzip": is_compressed_or_not,
    "log": is_logged,
    "metrics": is_counted,
    "quota": spends_quota,
    "headers": is_safe,
    "id": is_named,
    "service": reaches_the_service,
}


class Bench:
    """One gateway before one service, and what can be measured of both."""

    def __init__(self, rig: Rig, upstream: Upstream) -> None:
        self.rig = rig
        self.upstream = upstream

    async def left(self) -> int | None:
        """What is left of the quota that all routes share; asking spends one."""
        reply = await self.ask("/open/small")
        found = re.search(r'"all";r=(\d+)', reply.get("ratelimit"))
        return int(found[1]) if found else None

    async def ask(self, target: str) -> Message:
        """Ask, and wait until that is over for the gateway too: its line and its count may come after the answer's last byte."""
        count = self.counted()
        reply = await (await self.rig.connect()).ask(self.rig.get(target))
        await eventually(lambda: self.counted() > count)
        return reply

    def counted(self, status: int | str = r"\d+") -> float:
        text = self.rig.app.runtime.metrics.exposition().decode()
        return sum(float(n) for n in re.findall(rf'^requests_total{{.*status="{status}"}} (\S+)$', text, re.MULTILINE))

    async def observe(self, row: Row) -> Seen:
        rig = self.rig
        if row.first:
            await self.ask(row.first)
        before, count, size = await self.left(), self.counted(row.status), len(self.upstream.received)
        with capture_logs(processors=[add_request]) as logs:
            client = await rig.connect()
            request = row.request(rig, f"Origin: {PAGE}", "Accept-Encoding: gzip", f"X-Request-ID: {REQUEST_ID}")
            reply = await client.ask(request, has_body=False)
            assert reply.status == row.status
            # The line and the count come after the answer's last byte.
            await eventually(lambda: self.counted(row.status) > count and bool(_lines(logs)))
        reached, count = len(self.upstream.received) > size, self.counted(row.status) - count
        after = await self.left()
        spent = None if before is None or after is None else before - after - 1
        return Seen(reply, _lines(logs), count, spent, reached)


def _lines(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "request"]


@pytest.fixture
def observe(serve, start, lane) -> Callable[[str], Awaitable[Seen]]:
    """Look at a row's situation, each only once: all of its cells are about the same request."""

    async def look(name: str) -> Seen:
        key = (name, lane)
        if key not in _SEEN:
            upstream = await serve(service)
            rig = await start(upstream, config=CONFIG, metrics_access="open")
            _SEEN[key] = await Bench(rig, upstream).observe(ROWS[name])
        return _SEEN[key]

    return look


_SEEN: dict[tuple[str, str], Seen] = {}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ROWS)
async def test_chain(observe: Callable[[str], Awaitable[Seen]], row: str, column: str) -> None:
    COLUMNS[column](ROWS[row], await observe(row))
