"""The process: as the runner starts it, with an inherited public socket, and its drain."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from services.gateway.tests.process import ROOT, Process, started
from services.gateway.tests.scripted import WAIT_S, Wire, answer

pytestmark = pytest.mark.slow  # real processes


@pytest.fixture
async def process(serve, tmp_path) -> AsyncIterator[Process]:
    async def slow(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(0.5)
        await wire.send(answer(b"done"))

    async with started(tmp_path, await serve(slow)) as found:
        yield found


async def test_both_sockets_serve_and_metrics_are_open_on_the_private_one(process):
    assert (await process.ask(process.public_port, "/open/x")).body == b"done"
    assert (await process.ask(process.private_port, "/open/x")).body == b"done"
    assert (await process.ask(process.private_port, "/metrics")).status == 200
    assert (await process.ask(process.public_port, "/metrics")).status == 401


async def test_drain_finishes_what_is_under_way_and_exits_0(process):
    async with asyncio.TaskGroup() as group:
        under_way = group.create_task(process.ask(process.public_port, "/open/x"))
        async with asyncio.timeout(WAIT_S):
            while (
                b'active_connections{kind="http"} 2.0' not in (await process.ask(process.private_port, "/metrics")).body
            ):
                await asyncio.sleep(0.01)
        process.child.send_signal(signal.SIGTERM)
    assert under_way.result().body == b"done"
    assert await process.exit_code() == 0


async def test_bad_setting_is_one_sentence_and_exit_78():
    found = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.gateway"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "RH_GATEWAY_ENDPOINTS": "users"},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 78
    assert found.stderr.decode().strip() == ("gateway: RH_GATEWAY_ENDPOINTS: 'users' is not name=host:port")
