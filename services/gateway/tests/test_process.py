"""The process: as the runner starts it, with an inherited public socket, and its drain."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.gateway.tests.rig import ROUTES, write_endpoints
from services.gateway.tests.scripted import WAIT_S, Message, Wire, answer
from shared.serve import listen

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).parents[3]


@dataclass
class Process:
    child: subprocess.Popen[bytes]
    public_port: int
    private_port: int

    async def ask(self, port: int, target: str, *headers: str) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", *headers, "", ""])
            return await Wire(reader, writer).ask(lines.encode())
        finally:
            writer.close()

    async def exit_code(self) -> int:
        async with asyncio.timeout(15):
            return await asyncio.to_thread(self.child.wait)


@pytest.fixture
async def process(serve, tmp_path) -> AsyncIterator[Process]:
    async def slow(wire: Wire) -> None:
        await wire.head()
        await asyncio.sleep(0.5)
        await wire.send(answer(b"done"))

    upstream = await serve(slow)
    write_endpoints(tmp_path / "endpoints.json", {"open": [upstream.address]})
    (tmp_path / "routes.toml").write_text(ROUTES)
    public, private = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    ports = public.getsockname()[1], private.getsockname()[1]
    private.close()
    child = subprocess.Popen(
        [sys.executable, "-m", "services.gateway"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "ENVIRONMENT": "test",
            "RH_GATEWAY_FD": str(public.fileno()),
            "RH_GATEWAY_PORT": str(ports[1]),
            "RH_GATEWAY_REPLICA": "gateway-1",
            "RH_GATEWAY_ENDPOINTS": (tmp_path / "endpoints.json").as_uri(),
            "RH_GATEWAY_CONFIG_FILE": str(tmp_path / "routes.toml"),
        },
        pass_fds=[public.fileno()],
        stdout=subprocess.PIPE,
    )
    public.close()
    found = Process(child, *ports)
    async with asyncio.timeout(15):
        while True:
            try:
                if (await found.ask(ports[1], "/ready")).status == 200:
                    break
            except OSError:
                await asyncio.sleep(0.05)
    yield found
    child.kill()
    await asyncio.to_thread(child.communicate)


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
