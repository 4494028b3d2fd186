"""A gateway of several processes, as a test starts, asks and kills it."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.gateway.tests.rig import eventually
from services.gateway.tests.scripted import Message, Wire
from shared.serve import listen

START_S = 15.0


@dataclass
class Group:
    """A running gateway of several processes."""

    child: subprocess.Popen[bytes]
    port: int
    folder: Path

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, target: str, *, method: str = "GET", host: str = "a") -> Message:
        """Ask on a connection of its own."""
        wire = await self.connect()
        try:
            return await wire.ask(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        finally:
            wire.abort()

    def workers(self) -> list[int]:
        """The pids of the parent's children, oldest first."""
        found = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return sorted(int(pid) for pid in found)

    def lines(self, event: str) -> list[dict[str, object]]:
        """What was logged under a name."""
        # What follows the last end of a line is still being written.
        whole, _, _ = (self.folder / "log").read_text().rpartition("\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if line["event"] == event]

    async def logged(self, event: str, times: int = 1) -> list[dict[str, object]]:
        await eventually(lambda: len(self.lines(event)) >= times)
        return self.lines(event)

    async def exit_code(self) -> int:
        async with asyncio.timeout(START_S):
            return await asyncio.to_thread(self.child.wait)


def environment(folder: Path, port: int, count: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "ENVIRONMENT": "test",
        "RH_GATEWAY_PORT": str(port),
        "RH_GATEWAY_WORKERS": str(count),
        "RH_GATEWAY_REPLICA": "gateway-1",
        "RH_GATEWAY_METRICS_ACCESS": "open",
        "RH_GATEWAY_DRAIN_WAIT_S": "1",
        "RH_GATEWAY_ENDPOINTS": (folder / "endpoints.json").as_uri(),
        "RH_GATEWAY_CONFIG_FILE": str(folder / "config.toml"),
    }


def free_port() -> int:
    with listen("127.0.0.1", 0) as sock:
        port: int = sock.getsockname()[1]
    return port


@asynccontextmanager
async def callers(group: Group, count: int, answers: list[bytes | str]) -> AsyncIterator[None]:
    """Callers that each ask again and again, on a new connection each time; `answers` are bodies, or names of errors."""
    is_over = False

    async def call() -> None:
        while not is_over:
            try:
                answers.append((await group.ask("/open/x")).body)
            except (OSError, asyncio.IncompleteReadError) as error:
                answers.append(type(error).__name__)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(count):
            tasks.create_task(call())
        try:
            yield
        finally:
            is_over = True
