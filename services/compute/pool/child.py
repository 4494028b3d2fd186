"""The main program of a pool's child: takes one job after another from its pipe until the pipe or the service ends.

Runs as `python -m services.compute.pool.child CHANNEL LIFELINE` (descriptors). It imports little, because every child pays for
it in memory and in the time until a killed one is replaced.
"""

import fcntl
import os
import pickle
import signal
import sys
import time

from services.compute.pool.framing import ERROR_TEXT_CHARS_MAX, FRAME_BYTES_MAX, HEADER, Kind, frame

NICENESS = 5
"""Below the services on the same machine: a full pool must not make them slow."""


def main(channel: int, lifeline: int) -> None:
    """Serve jobs until the service closes the channel."""
    tie_to_service(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which drains first
    os.nice(NICENESS)
    os.set_inheritable(channel, False)
    os.set_inheritable(lifeline, False)
    send(channel, frame(Kind.READY))
    silence()
    while (job := receive(channel)) is not None:
        send(channel, frame(Kind.STARTED))
        send(channel, answer(job))


def tie_to_service(lifeline: int) -> None:
    """Have the kernel kill this process group when the lifeline's other end closes, as it does when the service is killed.

    A signal on end-of-file needs neither a thread (a task in C may hold the GIL) nor the parent-death signal (which follows the
    thread that started us), and reaches whatever a task has started in this group.
    """
    if hasattr(fcntl, "F_SETSIG"):
        # Where it cannot be set (macOS) the signal is SIGIO, which ends a process too unless a task ignores it.
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(lifeline, 1) == b""
    except BlockingIOError:
        return
    if gone:  # the service ended before the signal was set
        os._exit(1)


def silence() -> None:
    """Send what tasks print to nowhere: the service's output is a log of JSON lines, and a task may print without end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def answer(job: bytes) -> bytes:
    """Run one job and return the frame that tells its result or its error."""
    started = time.perf_counter()
    try:
        function, arguments = pickle.loads(job)  # noqa: S301 - comes from the service that started this process
        result = function(*arguments)
        run_s = time.perf_counter() - started
        body = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        if len(body) > FRAME_BYTES_MAX:
            raise ValueError(f"the result has {len(body)} bytes, at most {FRAME_BYTES_MAX} are allowed")
    except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever a task raises is its answer
        return frame(Kind.ERROR, described(error), run_s=time.perf_counter() - started)
    return frame(Kind.RESULT, body, run_s=run_s)


def described(error: BaseException) -> bytes:
    """Return `type\\ntext`: exceptions themselves do not travel, since one that cannot be unpickled would break the pool."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a task's own exception class may fail even here
        text = "(no text)"
    return f"{type(error).__name__}\n{text[:ERROR_TEXT_CHARS_MAX]}".encode(errors="replace")


def receive(channel: int) -> bytes | None:
    """Return the body of the next frame, None when the service has closed the channel."""
    header = read_exactly(channel, HEADER.size)
    return None if header is None else read_exactly(channel, HEADER.unpack(header)[2])


def read_exactly(channel: int, size: int) -> bytes | None:
    """Read so many bytes; None at the end of the channel."""
    parts = []
    while size:
        part = os.read(channel, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send(channel: int, data: bytes) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(channel, view) :]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
