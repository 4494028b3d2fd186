"""A gateway process in front of service processes that a test can spoil, stop, kill and start again."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from services.gateway.tests.process import ROOT, Process, started
from services.gateway.tests.scripted import WAIT_S
from shared.serve import listen
from tests.chaos.traffic import Caller


class Child:
    """A process on a port that it keeps over its restarts."""

    output: Path | None = None
    """Where it writes; who writes much and has nobody to read would stand still."""

    def __init__(self, *command: str, **environment: str) -> None:
        with listen("127.0.0.1", 0) as sock:
            self.port: int = sock.getsockname()[1]
        self._command = command
        self._environment = environment
        self._child: asyncio.subprocess.Process

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Return once it takes connections."""
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self.output.open("ab")) if self.output else asyncio.subprocess.PIPE
            await self._spawn(output)
        await self._until_listening()

    async def _spawn(self, output: Any) -> None:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *(part.format(port=self.port) for part in self._command),
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                **{name: value.format(port=self.port) for name, value in self._environment.items()},
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=output,
        )

    async def _until_listening(self) -> None:
        async with asyncio.timeout(15):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    assert self._child.returncode is None, f"{self._command} ended {self._child.returncode}"
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def stop(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send it a signal and return its exit code once it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)
        async with asyncio.timeout(WAIT_S * 2):
            await self._child.communicate()
        assert self._child.returncode is not None
        return self._child.returncode

    def stand_still(self) -> None:
        """Let it hang: the system takes its connections, nobody answers; it can still be killed."""
        self._child.send_signal(signal.SIGSTOP)

    async def _order(self, order: dict[str, Any]) -> int:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(WAIT_S):
            return int(await self._child.stdout.readline())


class Service(Child):
    """A service that a test may spoil, see tests/chaos/upstream.py."""

    def __init__(self, **behaviour: Any) -> None:
        super().__init__("tests.chaos.upstream", "{port}")
        self._behaviour = behaviour

    async def start(self) -> None:
        await super().start()
        await self.behave(**self._behaviour)

    async def behave(self, **behaviour: Any) -> None:
        """From now on; without arguments it answers 200 at once."""
        await self._order({"time_s": 0.0, **behaviour})

    async def arrived(self) -> int:
        """Return how many requests have come since it started."""
        return await self._order({})


@dataclass
class Rig:
    """What a test has at hand."""

    process: Process
    caller: Caller
    folder: Path

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        text = (await self.process.ask(self.process.private_port, "/metrics")).body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def until_metric(self, name: str, value: float, *, timeout_s: float = 15.0, **labels: str) -> None:
        """Wait until a metric has a value."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self.metric(name, **labels) != value:
                    await asyncio.sleep(0.02)  # the pace of looking
        except TimeoutError:
            raise AssertionError(f"{name} {labels} did not become {value} within {timeout_s} s") from None


@asynccontextmanager
async def standing(folder: Path, services: dict[str, list[Any]], config: str, **environment: str) -> AsyncIterator[Rig]:
    """The services and the gateway in front of them, all ready; none outlives the block."""
    everyone = [replica for replicas in services.values() for replica in replicas]
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as starts:
            for replica in everyone:
                starts.create_task(replica.start())
                stack.push_async_callback(replica.stop)
        fleet = {name: [replica.address for replica in replicas] for name, replicas in services.items()}
        process = await stack.enter_async_context(started(folder, fleet, config=config, **environment))
        caller = Caller(process.public_port)
        stack.push_async_callback(caller.close)
        yield Rig(process, caller, folder)
