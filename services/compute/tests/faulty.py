"""Tasks that misbehave, for tests; children import them as they import any task."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def pid() -> int:
    return os.getpid()


def spin(_: int) -> None:
    while True:
        pass


def tell_and_spin(path: str) -> None:
    """Write this process's id, then burn CPU for ever."""
    _tell(path, os.getpid())
    while True:
        pass


def tell_and_spin_in_c(path: str) -> None:
    """The same in one C call that never lets go of the GIL."""
    _tell(path, os.getpid())
    sum(range(10**15))


def tell_and_wait(path: str, gate: str) -> int:
    """Write this process's id, return it once the file `gate` exists."""
    _tell(path, os.getpid())
    while not os.path.exists(gate):
        time.sleep(0.002)
    return os.getpid()


def start_a_process_and_spin(path: str) -> None:
    """Leave a process behind that outlives a plain kill of this one."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    _tell(path, child.pid)
    while True:
        pass


def ignore_everything_and_spin(path: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGIO, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    tell_and_spin(path)


def leave(code: int) -> None:
    os._exit(code)


def leave_politely() -> None:
    sys.exit(3)


def fail(text: str) -> None:
    raise ValueError(text)


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} {second}")
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("not even a text")


def fail_unpicklably() -> None:
    raise Unpicklable(1, 2)


class FailsOnArrival:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return fail, ("made anew",)


def return_what_fails_on_arrival() -> FailsOnArrival:
    return FailsOnArrival()


def return_a_lock() -> object:
    return threading.Lock()


def return_bytes(size: int) -> bytes:
    return bytes(size)


def print_much() -> int:
    for _ in range(100):
        print("x" * 1_000_000)  # noqa: T201
        sys.stderr.write("y" * 1_000_000)
    return 1


def exhaust_the_stack() -> None:
    exhaust_the_stack()


def write_into_the_pipe() -> None:
    """Write garbage to every descriptor that this process has."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"garbage" * 100)
        except OSError:
            continue


def environment() -> dict[str, str]:
    return dict(os.environ)


def modules() -> list[str]:
    return sorted(sys.modules)


def _tell(path: str, number: int) -> None:
    part = Path(f"{path}.part")
    part.write_text(str(number))
    part.rename(path)
