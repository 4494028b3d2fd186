"""An open-loop client: requests are due at random moments (Poisson) of a given rate, whatever the answers take.

wrk sends only when an answer came, so that a slow moment makes it ask less. Here the time of a request counts from the moment it was
due, also when all connections were busy then. One thread, non-blocking sockets and a timer of the kernel: an epoll timeout knows whole
milliseconds only, which is more than a fast gateway's whole answer takes.
"""

import ctypes
import gc
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from tests.bench.errors import BenchError

GRACE_S = 10.0
CLOCK_MONOTONIC = 1
TFD_NONBLOCK = os.O_NONBLOCK
TFD_CLOEXEC = os.O_CLOEXEC


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """A timerfd(2), which Python offers from 3.13 on; readable once its time has come."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _TimerSpec()

    def arm(self, wait_s: float) -> None:
        """Fire once, after `wait_s` and not before the next microsecond: zero would switch it off."""
        whole = int(wait_s)
        self._spec.value.seconds = whole
        self._spec.value.nanoseconds = max(1000, int((wait_s - whole) * 1e9))
        if self._libc.timerfd_settime(self.fd, 0, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def __enter__(self) -> "Timer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Paced:
    """What a paced run saw, times in ms from the moment a request was due. `late_p99_ms`: how late requests left this client."""

    offered_per_s: float
    answered_per_s: float
    answers: int
    p50_ms: float
    p99_ms: float
    late_p99_ms: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def pace(
    port: int, request: bytes, ending: bytes, *, per_s: float, seconds: float, connections: int, seed: int = 1
) -> Paced:
    """Send `request` at random moments, on average `per_s` a second, and time each answer, which is 200 and ends with `ending`.

    Raises BenchError for any other answer, a lost connection, or answers still missing `GRACE_S` after the last was due.
    """
    gc.collect()
    gc.disable()
    try:
        with Timer() as timer:
            return _Run(port, request, ending, connections, timer, seed).run(per_s, seconds)
    finally:
        gc.enable()


class _Run:
    def __init__(self, port: int, request: bytes, ending: bytes, connections: int, timer: Timer, seed: int) -> None:
        self._request = request
        self._ending = ending
        self._timer = timer
        self._random = random.Random(seed)
        self._epoll = select.epoll()
        self._epoll.register(timer.fd, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            found = socket.create_connection(("127.0.0.1", port), timeout=5)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.setblocking(False)
            self._sockets[found.fileno()] = found
            self._epoll.register(found.fileno(), select.EPOLLIN)
        self._idle = deque(self._sockets)
        self._due: deque[float] = deque()
        self._asked: dict[int, float] = {}
        self._partial: dict[int, bytes] = {}
        self.times: list[float] = []
        self._late: list[float] = []

    def run(self, per_s: float, seconds: float) -> Paced:
        began = time.perf_counter()
        end = began + seconds
        next_at = began + self._random.expovariate(per_s)
        try:
            while True:
                now = time.perf_counter()
                while next_at <= now and next_at < end:
                    self._due.append(next_at)
                    next_at += self._random.expovariate(per_s)
                if self._due and self._idle:
                    self._send(now)
                is_over = next_at >= end
                if is_over and not self._due and not self._asked:
                    break
                if now > end + GRACE_S:
                    raise BenchError(f"{len(self._due) + len(self._asked)} requests had no answer in {GRACE_S:.0f} s")
                self._timer.arm(1.0 if is_over else max(0.0, next_at - time.perf_counter()))
                for fd, _ in self._epoll.poll(1.0):
                    if fd == self._timer.fd:
                        os.read(fd, 8)
                    else:
                        self._receive(fd)
            took_s = max(time.perf_counter() - began, seconds)
        finally:
            self._epoll.close()
            for found in self._sockets.values():
                found.close()
        return Paced(
            offered_per_s=per_s,
            answered_per_s=len(self.times) / took_s,
            answers=len(self.times),
            p50_ms=percentile(self.times, 0.5) * 1e3,
            p99_ms=percentile(self.times, 0.99) * 1e3,
            late_p99_ms=percentile(self._late, 0.99) * 1e3,
        )

    def _send(self, now: float) -> None:
        while self._due and self._idle:
            fd, due = self._idle.popleft(), self._due.popleft()
            self._asked[fd] = due
            self._late.append(now - due)
            if self._sockets[fd].send(self._request) != len(self._request):
                raise BenchError("a request did not fit into an empty socket")

    def _receive(self, fd: int) -> None:
        try:
            data = self._sockets[fd].recv(65536)
        except OSError as error:
            raise BenchError(f"a connection broke: {error}") from error
        if not data:
            raise BenchError("a connection was closed")
        if fd in self._partial:
            data = self._partial.pop(fd) + data
        if data[9:12] != b"200"[: len(data[9:12])]:
            raise BenchError(f"an answer was not 200: {data[:60]!r}")
        if data.endswith(self._ending):
            self.times.append(time.perf_counter() - self._asked.pop(fd))
            self._idle.append(fd)
        else:
            self._partial[fd] = data
