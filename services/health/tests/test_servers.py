"""Probes of NATS, Redis and PostgreSQL: on the real servers, on sockets that hang or lie, and through their loss and return."""

import asyncio
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import asyncpg
import pytest

from services.health.adapters.cache import CacheProbe
from services.health.adapters.nats import NatsProbe
from services.health.adapters.postgres import PostgresProbe
from services.health.model import ProbeFailed
from services.health.tests import servers
from services.health.tests.servers import Answer, serving
from shared.cache.connect import connect as connect_cache
from shared.testing.processes import NatsProcess, RedisProcess, ServerProcess

pytestmark = pytest.mark.slow  # servers are paused until they count as down


class Closable(Protocol):
    async def check(self) -> None: ...

    async def close(self) -> None: ...


def postgres(url: str) -> PostgresProbe:
    return PostgresProbe(url, timeout_s=0.5)


def redis(url: str) -> CacheProbe:
    return CacheProbe(connect_cache(url))


async def kind(probe: Closable, *, within_s: float = 1.0) -> str:
    """Ask once, bounded like a round does."""
    try:
        async with asyncio.timeout(within_s):
            await probe.check()
    except ProbeFailed as failed:
        return failed.kind
    except TimeoutError:
        return "timeout"
    return "up"


async def kind_becomes(probe: Closable, expected: str) -> None:
    async with asyncio.timeout(10):
        while await kind(probe) != expected:
            await asyncio.sleep(0.05)


async def test_nats_up(nats_url: str) -> None:
    probe = NatsProbe(nats_url)
    assert [await kind(probe) for _ in range(3)] == ["up"] * 3


async def test_redis_up(redis_url: str) -> None:
    probe = redis(redis_url)
    assert [await kind(probe) for _ in range(3)] == ["up"] * 3
    await probe.close()


async def test_postgres_up_on_one_connection(postgres_url: str) -> None:
    probe = postgres(postgres_url)
    assert [await kind(probe) for _ in range(3)] == ["up"] * 3
    watcher = await asyncpg.connect(postgres_url)
    try:
        count = await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'roundhouse-health' AND datname = current_database()"
        )
        assert count == 1
    finally:
        await watcher.close()
        await probe.close()


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username or ''}:{password}@{parts.hostname}:{parts.port}").geturl()


async def test_a_wrong_password_is_auth_at_nats_and_postgres(nats_url: str, postgres_url: str) -> None:
    assert await kind(NatsProbe(with_password(nats_url, "wrong"))) == "auth"
    probe = postgres(with_password(postgres_url, "wrong"))
    # A server that trusts local connections asks for none.
    assert await kind(probe) in ("auth", "up")
    await probe.close()


MAKERS: list[tuple[str, Callable[[str], Closable]]] = [
    ("nats://u:pw@", NatsProbe),
    ("redis://:pw@", redis),
    ("postgresql://u:pw@", postgres),
]


@pytest.mark.parametrize(("prefix", "make"), MAKERS)
async def test_nobody_listening_is_refused(prefix: str, make: Callable[[str], Closable]) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    probe = make(f"{prefix}{address}/")
    assert await kind(probe) == "refused"
    await probe.close()


@pytest.mark.parametrize(("prefix", "make"), MAKERS)
async def test_a_server_that_says_nothing_is_a_timeout(prefix: str, make: Callable[[str], Closable]) -> None:
    async with serving(servers.hang) as place:
        probe = make(f"{prefix}{place.address}/")
        assert await kind(probe, within_s=0.2) == "timeout"
        await probe.close()


@pytest.mark.parametrize(("prefix", "make"), MAKERS)
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 no\r\n\r\n", b"\x00" * 64, b"", b"INFO {}\r\nMSG a 1 9\r\n{}\r\n" * 3]
)
async def test_a_server_that_lies_is_not_up(prefix: str, make: Callable[[str], Closable], garbage: bytes) -> None:
    async with serving(servers.raw(garbage)) as place:
        probe = make(f"{prefix}{place.address}/")
        found = await kind(probe, within_s=0.2)
        assert found in ("garbage", "closed", "error", "timeout")
        await probe.close()


def saying(*lines: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n")
        await reader.readuntil(b"PING\r\n")
        writer.write(b"\r\n".join(lines) + b"\r\n")
        await writer.drain()
        await asyncio.Event().wait()

    return answer


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"PING", b"PONG", b"MSG _INBOX.x 1 12", b'{"memory":0}'), "up"),
        ((b"MSG _INBOX.x 1 22", b'{"error":{"code":503}}'), "no_jetstream"),
        ((b"HMSG _INBOX.x 1 16 16", b"NATS/1.0 503", b"", b""), "no_jetstream"),
        ((b"-ERR 'Authorization Violation'",), "auth"),
        ((b"-ERR 'maximum connections exceeded'",), "error"),
        ((b"MSG _INBOX.x 1 999999999",), "garbage"),
        ((b"MSG _INBOX.x 1 many",), "garbage"),
        (tuple([b"PING"] * 30), "garbage"),
        ((b"x" * 100_000,), "garbage"),
    ],
)
async def test_what_nats_says_has_its_word(lines: tuple[bytes, ...], expected: str) -> None:
    async with serving(saying(*lines)) as place:
        assert await kind(NatsProbe(f"nats://u:pw@{place.address}")) == expected


async def test_nats_without_jetstream_is_not_up(tmp_path: Path) -> None:
    class Plain(NatsProcess):
        def command(self) -> list[str]:
            config = self.folder / "nats.conf"
            super().command()
            lines = [line for line in config.read_text().splitlines() if "jetstream" not in line]
            config.write_text("\n".join(lines))
            return [self._binary, "-c", str(config)]

    server = Plain(tmp_path)
    server.start()
    try:
        assert await kind(NatsProbe(server.url)) == "no_jetstream"
    finally:
        server.kill()


@pytest.mark.parametrize(("process", "make"), [(NatsProcess, NatsProbe), (RedisProcess, redis)])
async def test_a_paused_server_is_down_and_comes_back(
    process: type[ServerProcess], make: Callable[[str], Closable], tmp_path: Path
) -> None:
    server = process(tmp_path)
    server.start()
    probe = make(server.url)  # type: ignore[attr-defined]
    try:
        assert await kind(probe) == "up"
        server.pause()
        assert await kind(probe) == "timeout"
        server.resume()
        await kind_becomes(probe, "up")
        server.kill()
        assert await kind(probe) != "up"
        server.start()
        await kind_becomes(probe, "up")
    finally:
        server.kill()
        await probe.close()


async def test_a_lost_postgres_connection_is_made_anew(postgres_url: str) -> None:
    probe = postgres(postgres_url)
    assert await kind(probe) == "up"
    killer = await asyncpg.connect(postgres_url)
    try:
        await killer.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'roundhouse-health' AND datname = current_database()"
        )
    finally:
        await killer.close()
    await kind_becomes(probe, "up")
    await probe.close()


async def test_a_postgres_that_stops_answering_in_mid_connection_is_a_timeout(postgres_url: str) -> None:
    """Through a relay that goes deaf, as when the server is stopped or the network cut."""
    parts = urlsplit(postgres_url)
    deaf = asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                if deaf.is_set():
                    await asyncio.Event().wait()
                sink.write(data)

        try:
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        finally:
            up_writer.transport.abort()

    async with serving(relay) as place:
        probe = postgres(parts._replace(netloc=f"{parts.username}:{parts.password}@{place.address}").geturl())
        assert await kind(probe) == "up"
        deaf.set()
        assert await kind(probe) == "timeout"
        deaf.clear()
        assert await kind(probe) == "up"
        await probe.close()


def test_probes_never_show_their_address_in_an_error() -> None:
    with pytest.raises(ValueError, match="form nats") as refused:
        NatsProbe(f"nats://user:{secrets.token_hex(4)}@host:port")
    assert "user" not in str(refused.value).replace("user:password", "")
