"""The gateway as a process of its own, started as the runner does it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.gateway.tests.rig import ROUTES, Fleet, write_endpoints
from services.gateway.tests.scripted import Message, Upstream, Wire
from shared.serve import listen

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

    def reset_peak(self) -> int:
        """Forget the highest use of memory so far and return the present one, in bytes."""
        Path(f"/proc/{self.child.pid}/clear_refs").write_text("5")
        return self._status("VmRSS")

    def peak(self) -> int:
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


@asynccontextmanager
async def started(
    folder: Path, behind: Upstream | Fleet, *, config: str = ROUTES, **environment: str
) -> AsyncIterator[Process]:
    """A gateway in front of one upstream (service `open`) or many, ready, with a public socket that it inherits and a private port.

    Its log is in the folder.
    """
    write_endpoints(folder / "endpoints.json", {"open": [behind.address]} if isinstance(behind, Upstream) else behind)
    (folder / "routes.toml").write_text(config)
    public, private = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    ports = public.getsockname()[1], private.getsockname()[1]
    private.close()
    # A pipe that nobody reads would hold it up under load.
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "ENVIRONMENT": "test",
                "RH_GATEWAY_FD": str(public.fileno()),
                "RH_GATEWAY_PORT": str(ports[1]),
                "RH_GATEWAY_REPLICA": "gateway-1",
                "RH_GATEWAY_ENDPOINTS": (folder / "endpoints.json").as_uri(),
                "RH_GATEWAY_CONFIG_FILE": str(folder / "routes.toml"),
                **environment,
            },
            pass_fds=[public.fileno()],
            stdout=log,
        )
    public.close()
    found = Process(child, *ports)
    try:
        async with asyncio.timeout(15):
            while True:
                try:
                    if (await found.ask(ports[1], "/ready")).status == 200:
                        break
                except OSError:
                    await asyncio.sleep(0.05)
        yield found
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)
