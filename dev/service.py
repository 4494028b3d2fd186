"""How to start and probe one process of a service: its environment, its port, its `/ready`."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dev.fleet import Service
from dev.infra.credentials import secret
from dev.infra.probes import NotReady
from dev.infra.servers import StopSteps
from dev.infra.site import Site
from dev.launcher import Launcher, Program
from dev.process import Child

PROBE_TIMEOUT_S = 2.0
HEAD_BYTES_MAX = 16 * 1024
GRACE_S = 10.0
# What the runner itself decides for each process; the caller's environment may set every other RH_ variable.
OWN_SETTINGS = ("HOST", "PORT", "REPLICA", "ENDPOINTS", "FD")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all service processes of one fleet share."""

    site: Site
    launcher: Launcher
    endpoints: Path
    # URLs by variable, known once the servers are up.
    urls: Callable[[], Mapping[str, str]]
    variables: Mapping[str, str]
    settings: Mapping[str, str]
    public_url: str = ""
    public_fd: int | None = None


@dataclass(slots=True)
class ServiceReplica:
    """One start of one replica."""

    service: Service
    replica: str
    log: Path
    around: Surroundings
    note: str = ""
    port: int = 0
    stop_steps: StopSteps = field(default=((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 5.0)))

    async def spawn(self) -> Child:
        self.port = self.around.site.ports.take(self.replica)
        is_public = self.service.public and self.around.public_fd is not None
        return await self.around.launcher.launch(
            Program(
                module=self.service.module,
                env=self._env(),
                log=self.log,
                shared_fd=self.around.public_fd if is_public else None,
                fd_variable=f"{self.service.prefix}FD" if is_public else None,
            )
        )

    async def probe(self) -> None:
        """Ask `/ready` on the replica's own port."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=HEAD_BYTES_MAX)
                try:
                    writer.write(
                        f"GET /ready HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nConnection: close\r\n\r\n".encode()
                    )
                    status = (await reader.readline()).split()
                finally:
                    writer.close()
        except ValueError as error:
            raise OSError("the answer to /ready has no end") from error
        if len(status) < 2:
            raise ConnectionResetError("closed without an answer")
        if status[1] != b"200":
            raise NotReady(f"/ready answers {status[1].decode(errors='replace')}")

    def _env(self) -> dict[str, str]:
        prefix, urls = self.service.prefix, self.around.urls()
        env = self.around.site.clean_env()
        env |= {"ENVIRONMENT": "development", "LOG_LEVEL": "INFO", **self.around.settings}
        given = {name: value for name, value in os.environ.items() if name.startswith(prefix)}
        # What the caller says of these, as a file too, comes first.
        env |= {name: value for name, value in self._usual().items() if f"{name}_FILE" not in given} | given
        env |= {self.around.variables[need]: urls[self.around.variables[need]] for need in self.service.needs}
        for setting, name in self.service.secret_files.items():
            secret(self.around.site.secrets, name, secret_bytes=32)
            env[prefix + setting] = str(self.around.site.secrets / name)
        return env | {
            f"{prefix}HOST": "127.0.0.1",
            f"{prefix}PORT": str(self.port),
            f"{prefix}REPLICA": self.replica,
            f"{prefix}ENDPOINTS": self.around.endpoints.as_uri(),
        }

    def _usual(self) -> dict[str, str]:
        """Return settings that the caller's environment may replace."""
        prefix, data = self.service.prefix, self.around.site.data
        found = {prefix + setting: (data / name).as_uri() for setting, name in self.service.folders.items()}
        if self.service.address_in and self.around.public_url:
            found[prefix + self.service.address_in] = self.around.public_url
        return found
