"""SIGHUP to real processes under load: the configuration changes again and again, and no answer is other than 200."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.gateway.tests.rig import ROUTES, eventually, write_endpoints
from services.gateway.tests.scripted import Upstream, Wire, answer
from services.gateway.tests.test_workers import ROOT, RUN, Group, environment, free_port

pytestmark = pytest.mark.slow  # real processes

CLIENTS = 8
SWAPS = 20
ANOTHER = '\n[[routes]]\npath = "/another/*"\nservice = "open"\nmethods = ["GET"]\nauth = "public"\n'


@dataclass
class Running(Group):
    """A gateway and how many processes serve."""

    count: int


async def unhurried(wire: Wire) -> None:
    """Answer after a moment, so that every swap meets requests under way."""
    while True:
        request = await wire.message()
        await asyncio.sleep(0.003)
        await wire.send(answer(request.target.encode()))


@pytest.fixture(params=[1, 2], ids=["one-process", "two-workers"])
async def group(
    request: pytest.FixtureRequest,
    serve: Callable[..., Awaitable[Upstream]],
    stack: AsyncExitStack,
    tmp_path: Path,
) -> Running:
    upstream = await serve(unhurried)
    write_endpoints(tmp_path / "endpoints.json", {"open": [upstream.address]})
    (tmp_path / "config.toml").write_text(ROUTES)
    port = free_port()
    with (tmp_path / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", RUN], cwd=ROOT, env=environment(tmp_path, port, request.param), stdout=log
        )
    stack.callback(child.wait)
    stack.callback(child.kill)
    found = Running(child, port, tmp_path, request.param)
    async with asyncio.timeout(15):
        while True:
            try:
                if (await found.ask("/ready")).status == 200:
                    break
            except OSError:
                await asyncio.sleep(0.05)
    return found


async def load(group: Group, statuses: Counter[int], stop: asyncio.Event) -> None:
    """Ask one kept connection again and again; a connection that the gateway closes fails the test."""
    wire = await group.connect()
    try:
        while not stop.is_set():
            statuses[(await wire.ask(b"GET /open/x HTTP/1.1\r\nHost: a\r\n\r\n")).status] += 1
    finally:
        wire.abort()


async def test_swaps_under_load_lose_no_request(group):
    file, statuses, stop = group.folder / "config.toml", Counter(), asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(load(group, statuses, stop))
        for number in range(1, SWAPS + 1):
            file.write_text(ROUTES + (ANOTHER if number % 2 else ""))
            before = statuses.total()
            group.child.send_signal(signal.SIGHUP)
            lines = await group.logged("config_reloaded", number * group.count)
            assert all(line["changes"] for line in lines)
            assert (await group.ask("/another/x")).status == (200 if number % 2 else 404)
            await eventually(lambda before=before: statuses.total() > before + CLIENTS)
        stop.set()
    assert set(statuses) == {200}
    assert group.lines("request_failed") == []


async def test_a_bad_file_under_load_changes_nothing(group):
    file, statuses, stop = group.folder / "config.toml", Counter(), asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(load(group, statuses, stop))
        file.write_text(ROUTES.replace("timeout_s", "timout_s", 1))
        group.child.send_signal(signal.SIGHUP)
        event = "config_refused" if group.count == 1 else "reload_refused"
        (line,) = await group.logged(event)
        assert f"{file}:7:1: route /open/*: timout_s: there is no such key; did you mean timeout_s?" in str(line)
        before = statuses.total()
        await eventually(lambda: statuses.total() > before + 50)
        stop.set()
    assert set(statuses) == {200}
