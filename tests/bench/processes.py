"""The processes of a benchmark: each on its core, tied to this one's life, ended by its pid."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.errors import BenchError

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "dev" / "infra" / "launch.py"
STOP_S = 5.0
ENDINGS = (signal.SIGINT, signal.SIGTERM)
READY_S = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """The CPU of what is measured and the CPU of all the rest; the same one where the machine gives only one."""

    subject: int
    load: int


@dataclass(slots=True)
class Running:
    """A process started here; it leads a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:].strip()


def take_cores() -> Cores:
    """Choose two of the CPUs this process may use and move it to the second."""
    usable = sorted(os.sched_getaffinity(0))
    cores = Cores(usable[0], usable[1] if len(usable) > 1 else usable[0])
    os.sched_setaffinity(0, {cores.load})
    return cores


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us have; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Stand:
    """Starts processes and ends every one of them when it closes."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        self.folder = folder
        self.cores = cores
        self._running: list[Running] = []

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        core: int | None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Running:
        """Start a program (by its full path) on a core, or on both. Its output goes to a file; it inherits no descriptor of ours."""
        log = self.folder / f"{name}.log"
        shim = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(signal.SIGTERM)), "plain"]
        cores = {self.cores.subject, self.cores.load} if core is None else {core}
        with log.open("ab") as output, _on_cores(cores):
            process = subprocess.Popen(
                [*shim, *(str(part) for part in argv)],
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **(env or {})},
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        found = Running(name, process, log)
        self._running.append(found)
        return found

    def wait_ready(self, running: Running, port: int) -> None:
        """Wait until something accepts connections on the port. Raises BenchError when the process ends before that."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if running.process.poll() is not None:
                raise BenchError(f"{running.name} ended {running.process.returncode} while starting: {running.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.02)
        raise BenchError(f"{running.name} did not listen within {READY_S:.0f} s: {running.tail()}")

    def stop(self, running: Running) -> None:
        """End one process and what is left of its group."""
        self._running.remove(running)
        running.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(STOP_S)
        # Its own session: nobody else is in this group. Killed also when the leader is gone but left children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.process.wait()

    def close(self) -> None:
        for running in reversed(self._running[:]):
            self.stop(running)


@contextlib.contextmanager
def _on_cores(cores: set[int]) -> Iterator[None]:
    """Children take the affinity of the thread that forks them."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextlib.contextmanager
def stand(folder: Path) -> Iterator[Stand]:
    """A stand whose processes end with the block, also on Ctrl-C and SIGTERM."""

    def end(number: int, _: object) -> None:
        # A second Ctrl-C must not leave half of them running.
        for each in ENDINGS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    # Set also for Ctrl-C: a shell's background job begins with it ignored.
    before = {number: signal.signal(number, end) for number in ENDINGS}
    raise_file_limit()
    own = os.sched_getaffinity(0)
    found = Stand(folder, take_cores())
    try:
        yield found
    finally:
        found.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        os.sched_setaffinity(0, own)
