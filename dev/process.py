"""Starts operating-system processes tied to the runner's life, and knows them again by pid and start time."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Identity = Literal["plain", "namespace", "nobody"]
LAUNCH = Path(__file__).with_name("infra") / "launch.py"
# Marks every process of one run, in its environment, so that a later run can find what a killed runner left.
RUN_MARK = "ROUNDHOUSE_RUN"


class Child(Protocol):
    """A running process, whichever way it was made."""

    @property
    def pid(self) -> int: ...

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative signal number when a signal ended it."""

    async def wait(self) -> int:
        """Return the exit code once the process has ended; many may wait."""

    def send(self, number: signal.Signals) -> None:
        """Signal the process; nothing happens when it is already gone."""

    def sweep(self) -> None:
        """Kill whatever is left in the process's own group, for children that outlived it."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run and under which conditions."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path
    keep_fds: tuple[int, ...] = ()
    identity: Identity = "plain"
    death_signal: signal.Signals = field(default=signal.SIGKILL)


@dataclass(slots=True)
class ExecChild:
    """A child made by fork and exec."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        return self.process.returncode

    async def wait(self) -> int:
        return await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def sweep(self) -> None:
        sweep_group(self.pid)


def sweep_group(pid: int) -> None:
    """Kill what is left of the process group that `pid` led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def open_log(path: Path) -> int:
    """Open a process's log for appending, readable by the owner only; append mode lets the runner trim it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


async def spawn(command: Command) -> ExecChild:
    """Start the command in its own session through the launch shim.

    The kernel ties the child to the *thread* that forks it, so this must run on a thread that lives as long
    as the child should.
    """
    shim = [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), str(int(command.death_signal))]
    log_fd = open_log(command.log)
    try:
        process = await asyncio.create_subprocess_exec(
            *shim,
            command.identity,
            *command.argv,
            env=dict(command.env),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=command.keep_fds,
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    return ExecChild(process)


def start_time(pid: int) -> str | None:
    """Return a text that tells this process from a later one with the same pid; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_time_by_ps(pid)
    except ProcessLookupError:
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None  # ended, only not yet collected
    return fields[19]


def _start_time_by_ps(pid: int) -> str | None:
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def marked_pids(mark: str) -> list[int]:
    """Find this user's processes that carry the run mark (Linux; elsewhere none are found)."""
    needle = f"{RUN_MARK}={mark}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's
        if needle in environ.split(b"\0"):
            pids.append(int(entry.name))
    return pids
