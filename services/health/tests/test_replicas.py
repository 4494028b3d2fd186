"""Probes of replicas against real sockets that answer well, badly, slowly or not at all."""

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest

from services.health.adapters.replicas import ReplicaProbe, open_client, replica_probes
from services.health.model import ProbeFailed
from services.health.tests import servers
from services.health.tests.servers import Answer, serving
from shared.endpoints import Endpoints

pytestmark = pytest.mark.slow  # peers that answer slowly


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(timeout_s=0.3) as found:
        yield found


async def kind(client: httpx2.AsyncClient, port: int) -> str:
    try:
        async with asyncio.timeout(0.5):
            await ReplicaProbe(client, "users", "users-1", ("127.0.0.1", port)).check()
    except ProbeFailed as failed:
        return failed.kind
    except TimeoutError:
        return "cut off"
    return "up"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (servers.READY, "up"),
        (servers.NOT_READY, "not_ready"),
        (servers.DRAINING, "draining"),
        (servers.http(503, b"<html>"), "not_ready"),
        (servers.http(404, b"{}"), "status_404"),
        (servers.http(302, b"", "Location: http://127.0.0.1:1/"), "status_302"),
        (servers.http(200, b'{"state":"not_ready"}'), "garbage"),
        (servers.http(200, b'{"state":["ready"]}'), "garbage"),
        (servers.http(200, b'["ready"]'), "garbage"),
        (servers.http(200, b"all fine!"), "garbage"),
        (servers.http(200, b""), "garbage"),
        (servers.http(200, b"\x1f\x8b" + bytes(30), "Content-Encoding: gzip"), "garbage"),
        (servers.http(200, b"x" * 100_000), "garbage"),
        (servers.raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "garbage"),
        (servers.raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000), "garbage"),
        (servers.raw(b""), "garbage"),
        (servers.endless, "garbage"),
        (servers.hang, "timeout"),
        (servers.trickle, "cut off"),
    ],
)
async def test_every_answer_has_its_word(client: httpx2.AsyncClient, answer: Answer, expected: str) -> None:
    async with serving(answer) as place:
        assert await kind(client, place.port) == expected


async def test_a_closed_port_is_refused(client: httpx2.AsyncClient) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert await kind(client, port) == "refused"


async def test_a_name_that_nobody_knows_is_unresolved(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known: users.internal")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail)
    with pytest.raises(ProbeFailed) as failed:
        await ReplicaProbe(client, "users", "users-1", ("users.internal", 80)).check()
    assert failed.value.kind == "unresolved"


async def test_there_is_a_probe_for_each_address_named_by_its_place(client: httpx2.AsyncClient) -> None:
    endpoints = Endpoints("users=127.0.0.1:1,realtime=127.0.0.1:3,users=[::1]:2")
    await endpoints.refresh()
    found = {probe.target.label: probe.target.key for probe in replica_probes(endpoints, client)}
    assert found == {"users-1": "127.0.0.1:1", "users-2": "::1:2", "realtime-1": "127.0.0.1:3"}


async def test_no_connection_is_left_behind(client: httpx2.AsyncClient) -> None:
    open_now = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        await servers.READY(reader, writer)
        open_now -= 1

    async with serving(count) as place:
        for _ in range(5):
            assert await kind(client, place.port) == "up"
        async with asyncio.timeout(2):
            while open_now:
                await asyncio.sleep(0.002)
