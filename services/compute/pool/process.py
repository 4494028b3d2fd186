"""One child process of the pool, seen from the service: start, one job at a time, kill, cause of its end."""

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.compute.pool.framing import FRAME_BYTES_MAX, HEADER, Kind, frame

CHILD_MODULE = "services.compute.pool.child"
ROOT = Path(__file__).resolve().parents[3]
"""Where `services` can be imported from."""

ENVIRONMENT_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""The rest stays here: a task needs none of the service's addresses and secrets."""

START_TIMEOUT_S = 10.0


class ChildEnded(Exception):
    """The child's end of the pipe closed; `started` tells whether the job had begun."""

    def __init__(self, *, started: bool) -> None:
        super().__init__("the child ended")
        self.started = started


@dataclass(frozen=True, slots=True)
class Reply:
    """The last frame of a job: RESULT or ERROR."""

    kind: Kind
    body: bytes
    run_s: float


class Child:
    """A running child. A job that is not awaited to its end leaves it unusable: then kill it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: int) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer
        self._lifeline = line

    @classmethod
    async def start(cls) -> "Child":
        """Start a child and return once it takes jobs. Raises ChildEnded, TimeoutError or OSError."""
        ours, theirs = socket.socketpair()
        with contextlib.closing(theirs):
            ours.setblocking(False)
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
            their_line, our_line = os.pipe()
            try:
                process = await _spawn_whole(theirs.fileno(), their_line)
            except BaseException:
                writer.close()
                os.close(our_line)
                raise
            finally:
                os.close(their_line)
        child = cls(process, reader, writer, our_line)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await child._expect(Kind.READY, started=False)
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    async def run(self, job: bytes) -> Reply:
        """Send one pickled job and await its end. Raises ChildEnded."""
        with _as_ended(started=False):
            self._writer.write(frame(Kind.JOB, job))
            await self._writer.drain()
        await self._expect(Kind.STARTED, started=False)
        return await self._expect(Kind.RESULT, Kind.ERROR, started=True)

    async def _expect(self, *kinds: Kind, started: bool) -> Reply:
        with _as_ended(started=started):
            kind, run_s, size = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if kind not in kinds or size > FRAME_BYTES_MAX:
                # A task has written to our pipe; nothing that follows can be understood.
                raise ConnectionError("unexpected frame")
            return Reply(Kind(kind), await self._reader.readexactly(size), run_s)

    def kill(self) -> None:
        """Kill the child and whatever its task has started in its process group. Idempotent."""
        if self._lifeline < 0:
            return
        _kill_group(self.pid)
        os.close(self._lifeline)
        self._lifeline = -1
        self._writer.close()

    async def ended(self) -> int:
        """Wait for the end and return the exit code, a signal as its negative number."""
        code = await self._process.wait()
        self.kill()  # what a task has left behind in the group
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
        return code


@contextlib.contextmanager
def _as_ended(*, started: bool) -> Iterator[None]:
    try:
        yield
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ChildEnded(started=started) from error


async def _spawn_whole(channel: int, lifeline: int) -> Process:
    """Spawn; cancelled meanwhile, wait for the process and end it: both event loops lose one whose start is cut short."""
    starting = asyncio.get_running_loop().create_task(_spawn(channel, lifeline), name="spawn")
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            process = await starting
            _kill_group(process.pid)
            await process.wait()
        raise


async def _spawn(channel: int, lifeline: int) -> Process:
    # A new interpreter, never a fork of this one: a fork taken while another thread holds a lock hangs in the child.
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-E",
        "-s",
        "-m",
        CHILD_MODULE,
        str(channel),
        str(lifeline),
        cwd=ROOT,
        env={name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ},
        stdin=DEVNULL,
        stdout=DEVNULL,
        # Until it is ready the child may complain here; then it silences itself.
        stderr=None,
        pass_fds=(channel, lifeline),
        start_new_session=True,
    )


def _kill_group(pid: int) -> None:
    """Kill the process group that a child leads; it carries the child's id and outlives it while it has members.

    Not through the process object, which would reap the child itself and so take its exit code from who waits for it.
    """
    # PermissionError: only zombies are left (macOS).
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def cause_of(code: int) -> str:
    """Name the cause of an end, such as `exit 1` or `SIGKILL`."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def packed(function: object, arguments: tuple[object, ...]) -> bytes:
    """Return the body of a JOB frame. Raises TypeError when it cannot be sent: not a module-level function, or too large."""
    try:
        body = pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
        raise TypeError(f"this cannot be sent to another process: {error}") from error
    if len(body) > FRAME_BYTES_MAX:
        raise TypeError(f"the arguments have {len(body)} bytes, at most {FRAME_BYTES_MAX} can be sent")
    return body
