"""What is on disk about the one fleet of a checkout: its folders, its record, its locks, and what a killed runner left."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dev.errors import CannotRun
from dev.infra.credentials import make_private_dir, write_private
from dev.process import marked_pids, start_time

LOCK_WAIT_S = 3.0
REAP_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Home:
    """The folder `.roundhouse` of a checkout (elsewhere when ROUNDHOUSE_STATE_DIR says so)."""

    root: Path

    @classmethod
    def of(cls, checkout: Path) -> "Home":
        """Return the home of this checkout without creating it."""
        given = os.environ.get("ROUNDHOUSE_STATE_DIR", "")
        return cls(Path(given).absolute() if given else checkout / ".roundhouse")

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def record(self) -> Path:
        return self.run / "fleet.json"


@dataclass(slots=True)
class Record:
    """Everything another process must know to find, command, or clean up a fleet."""

    runner_pid: int
    runner_start: str | None
    mark: str
    arguments: dict[str, Any]
    control_port: int = 0
    control_token: str = ""
    gateway: str | None = None
    secrets: str = ""
    # Folders that go away with the fleet.
    temporary: list[str] = field(default_factory=list)
    # Start times by pid, of everything the runner started.
    processes: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether the runner itself still runs."""
        return self.runner_start is not None and start_time(self.runner_pid) == self.runner_start


def read_record(home: Home) -> Record | None:
    """Return the record of the last fleet, None when there is none; CannotRun when it cannot be read."""
    try:
        text = home.record.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CannotRun(f"Cannot read {home.record} ({error.strerror}): make it readable for this user.") from error
    try:
        return Record(**json.loads(text))
    except (ValueError, TypeError):
        return None  # of another version: nothing in it can be trusted, so nothing is killed by it


def write_record(home: Home, record: Record) -> None:
    """Put the record on disk, readable by the owner only since it holds the control token."""
    write_private(home.record, json.dumps(asdict(record)))


def live_record(home: Home) -> Record:
    """Return the record of the running fleet; CannotRun when none runs."""
    record = read_record(home)
    if record is None or not record.is_alive:
        raise CannotRun("No fleet runs here: start one with `python3 dev up`.", exit_code=3)
    return record


def reap(home: Home, record: Record) -> int:
    """Clean up after a runner that was killed: its processes, temporary folders and record; return how many it ended."""
    left = leftovers(record)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in leftovers(record):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + REAP_WAIT_S
        while leftovers(record) and time.monotonic() < until:
            time.sleep(0.02)
    remove_folders(record)
    home.record.unlink(missing_ok=True)
    return len(left)


def leftovers(record: Record) -> list[int]:
    """Return the live processes of a run: the recorded ones by pid and start time, and all that carry its mark."""
    known = [int(pid) for pid, started in record.processes.items() if started and start_time(int(pid)) == started]
    marked = [pid for pid in marked_pids(record.mark) if pid != record.runner_pid and start_time(pid)]
    return sorted({*known, *marked})


def remove_folders(record: Record) -> None:
    """Remove the folders that were to go away with the fleet."""
    for folder in record.temporary:
        shutil.rmtree(folder, ignore_errors=True)


def take_lock(folder: Path, what: str, *, fix: str) -> int:
    """Lock the folder for this runner and return the descriptor that holds the lock; CannotRun names who has it.

    Servers inherit the data folder's descriptor, so a server that outlives its runner keeps its data locked.
    """
    make_private_dir(folder)
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise CannotRun(f"The {what} {folder} is in use by another runner (process {holder}): {fix}.") from None
            time.sleep(0.05)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
