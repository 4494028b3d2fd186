"""Checks servers that the caller brought along in NATS_URL, REDIS_URL or DATABASE_URL, with the real drivers."""

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from dev.board import Board, State
from dev.errors import CannotRun
from dev.fleet import Infrastructure

PROBE_TIMEOUT_S = 5.0
RETRY_EVERY_S = 0.5
# After this long it is reported as failed; trying goes on, for the server may come later.
FAILED_AFTER_S = 10.0
PORTS = {"NATS_URL": 4222, "REDIS_URL": 6379, "DATABASE_URL": 5432}
EXAMPLES = {
    "NATS_URL": "nats://user:password@host:4222",
    "REDIS_URL": "redis://:password@host:6379/0",
    "DATABASE_URL": "postgresql://user:password@host:5432/database",
}


def given_urls(infra: tuple[Infrastructure, ...], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the servers' URLs found in the environment, by variable; CannotRun when one is malformed."""
    found = {}
    for server in infra:
        url = environ.get(server.variable, "").strip()
        if not url:
            continue
        parts = _split(url)
        if parts is None or parts.scheme not in server.schemes or not parts.hostname:
            raise CannotRun(f"{server.variable} is malformed: write {EXAMPLES[server.variable]}, or unset it.")
        found[server.variable] = url
    return found


def address(variable: str, url: str) -> tuple[str, int]:
    """Return host and port of a URL without its credentials."""
    parts = _split(url)
    if parts is None or not parts.hostname:
        raise CannotRun(f"{variable} is malformed.")
    return parts.hostname, parts.port or PORTS[variable]


async def probe(variable: str, url: str) -> None:
    """Make one real round trip with log-in; OSError with a short reason when it fails."""
    check = {"NATS_URL": _probe_nats, "REDIS_URL": _probe_redis, "DATABASE_URL": _probe_postgres}[variable]
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await check(url)
    except TimeoutError as error:
        raise OSError(f"no answer within {PROBE_TIMEOUT_S:.0f} s") from error
    except Exception as error:
        # The drivers' own errors have no common parent, and their texts may hold the URL: name the type only.
        raise OSError(type(error).__name__) from error


async def _probe_nats(url: str) -> None:
    import nats

    connection = await nats.connect(
        url,
        allow_reconnect=False,
        # 0 would mean for ever: the first connection is tried again for as long as this allows.
        max_reconnect_attempts=1,
        reconnect_time_wait=0.05,
        connect_timeout=3,
        error_cb=_ignore,
    )
    try:
        await connection.flush(3)
    finally:
        await connection.close()


async def _ignore(_error: Exception) -> None:
    """The driver reports the failure twice: raised to us, and here."""


async def _probe_redis(url: str) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        await client.ping()
    finally:
        await client.aclose()


async def _probe_postgres(url: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url, timeout=3)
    try:
        await connection.fetchval("SELECT 1", timeout=3)
    finally:
        await connection.close(timeout=2)


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is no number
    except ValueError:
        return None
    return parts


class ExternalServer:
    """The row of a server that is not ours: ready after a real round trip, never started or stopped."""

    def __init__(self, server: Infrastructure, url: str, board: Board) -> None:
        self.name = server.name
        self.url = url
        self.state: State = "starting"
        self.note = f"given by {server.variable}"
        self.ready_s: float | None = None
        self.address = address(server.variable, url)
        self._variable = server.variable
        self._board = board

    async def run(self) -> None:
        """Try until the server answers; say meanwhile why it does not."""
        begun = time.monotonic()
        while True:
            try:
                await probe(self._variable, self.url)
            except OSError as error:
                self.note = f"{self._variable} does not answer ({error}): start that server, or unset the variable"
                self.state = "failed" if time.monotonic() - begun > FAILED_AFTER_S else "starting"
                self._board.change()
                await asyncio.sleep(RETRY_EVERY_S)
            else:
                break
        self.ready_s = round(time.monotonic() - begun, 3)
        self.state, self.note = "ready", f"given by {self._variable}"
        self._board.change()
