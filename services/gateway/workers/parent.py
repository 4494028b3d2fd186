"""The parent of a group: it holds the listening sockets, keeps a worker in every seat, and passes on what it is told.

Worker i always serves socket i, which the parent keeps open: what is queued there outlives the worker and is served by its
successor. The parent runs no event loop and no thread, so it may fork at any time; it waits for signals and reads no request.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Generic, TypeVar

import structlog

from services.gateway.workers.seat import BEAT, HEEDED, RELOADED, TELLS_PARENT, Seat
from services.gateway.workers.siblings import Siblings, open_channels
from shared.serve import EXIT_CONFIG
from shared.settings import Settings, SettingsError

PR_SET_PDEATHSIG = 1

TICK_S = 1.0
HANG_TICKS = 15
"""A worker that did not beat in so many ticks is killed. Without it a hanging worker of several would not be noticed: most probes
reach another. Ticks, not time: after a pause of the whole machine nobody is late."""

STEADY_S = 30.0
"""A worker that lived so long has proven that workers can."""
FAILURES_MAX = 8
BACKOFF_S = 0.1
BACKOFF_S_MAX = 5.0
SLACK_S = 3.0
"""Over the time of a drain, until a worker is killed. Whoever stops the gateway allows 5 s."""
FORCED_S = 2.0

S = TypeVar("S", bound=Settings)
log = structlog.get_logger()


@dataclass(slots=True)
class _Worker:
    pid: int
    started_at: float
    gone_by: float = float("inf")


@dataclass(slots=True)
class _Place:
    """What the parent knows of one seat: who fills it, who leaves it, and how it went."""

    number: int
    listener: socket.socket
    channel: socket.socket
    worker: _Worker | None = None
    leaving: list[_Worker] = field(default_factory=list)
    start_at: float = 0.0
    failures: int = 0
    beat: int = 0
    silent_ticks: int = 0

    @property
    def workers(self) -> list[_Worker]:
        return [*self.leaving, *((self.worker,) if self.worker else ())]

    def close(self) -> None:
        self.listener.close()
        self.channel.close()


class Parent(Generic[S]):
    """Runs a worker for each of `listeners` (Linux).

    `settings` are the last that were read well: a new worker starts with them. `shared` are sockets that all workers serve.
    """

    def __init__(
        self,
        settings: S,
        read: Callable[[], S],
        listeners: Sequence[socket.socket],
        shared: Sequence[socket.socket] = (),
    ) -> None:
        self.settings = settings
        self._read = read
        self._shared = shared
        channels = open_channels(len(listeners))
        self._addresses = tuple(channels)
        self._places = [
            _Place(number, listener, channel)
            for number, (listener, channel) in enumerate(zip(listeners, channels.values(), strict=True), start=1)
        ]
        self._beats = mmap(-1, BEAT.size * len(listeners))
        self._pid = os.getpid()
        self._stops_by = float("inf")
        self._is_stopping = False
        self._exit_code = 0
        self._ticked_at = 0.0

    def staff(self) -> Seat:
        """Keep every seat filled until told to stop. Returns in each worker with its seat; the parent leaves by SystemExit.

        Signals: SIGTERM and SIGINT drain all workers, a second one stops them at once; SIGHUP reads the settings again and, when
        they are good, goes to all workers. A worker that is sent SIGTERM alone is replaced while it drains. Exit codes: 0 drained,
        78 a worker refused to start, 1 workers kept failing or had to be killed.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)
        gc.collect()
        gc.freeze()  # keeps the collector from touching, and so copying, what all workers share
        log.info("workers", count=len(self._places))
        while True:
            seat = self._start_due()
            if seat is not None:
                return seat
            if self._is_stopping and not any(place.workers for place in self._places):
                log.info("workers_stopped", exit_code=self._exit_code)
                sys.exit(self._exit_code)
            told = signal.sigtimedwait(HEEDED, self._wait_s())
            if told is not None:
                self._on_signal(told)
            self._reap()
            self._watch()

    def _wait_s(self) -> float:
        due = [place.start_at for place in self._places if place.worker is None and not self._is_stopping]
        return max(0.0, min([TICK_S, *(at - time.monotonic() for at in due)]))

    def _start_due(self) -> Seat | None:
        for place in self._places:
            if place.worker is None and not self._is_stopping and time.monotonic() >= place.start_at:
                place.silent_ticks = 0
                pid = os.fork()
                if pid == 0:
                    return self._become(place)
                place.worker = _Worker(pid, time.monotonic())
        return None

    def _become(self, place: _Place) -> Seat:
        """Turn the forked copy into the worker of a seat."""
        _die_with(self._pid)
        # A terminal's Ctrl-C is for the parent, who passes it on; from the terminal too it would be the second, which forces.
        os.setpgid(0, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for other in self._places:
            if other is not place:
                other.close()
        return Seat(Siblings(place.number, self._addresses, place.channel), self._pid, self._beats)

    def _on_signal(self, told: signal.struct_siginfo) -> None:
        if told.si_signo in (signal.SIGTERM, signal.SIGINT):
            if self._is_stopping:
                self._stops_by = min(self._stops_by, time.monotonic() + FORCED_S)
                self._send(signal.SIGTERM)
            else:
                self._stop(0)
        elif told.si_signo == signal.SIGHUP:
            if self._read_again():
                self._send(signal.SIGHUP)
        elif told.si_signo == RELOADED:
            self._read_again()
        elif told.si_signo == TELLS_PARENT and not self._is_stopping:
            self._let_go(told.si_pid)

    def _stop(self, exit_code: int) -> None:
        log.info("workers_draining")
        self._is_stopping = True
        self._exit_code = exit_code
        self._stops_by = time.monotonic() + self._drain_s + SLACK_S
        # The workers have their own copies. With these open, connections would go on being queued for workers that have ended.
        for place in self._places:
            place.close()
        for each in self._shared:
            each.close()
        self._send(signal.SIGTERM)

    @property
    def _drain_s(self) -> float:
        return self.settings.drain_wait_s + self.settings.drain_grace_s

    def _send(self, number: signal.Signals) -> None:
        for place in self._places:
            _kill(place.workers, number)

    def _read_again(self) -> bool:
        """Read the settings that new workers start with; say whether they are good."""
        try:
            self.settings = self._read()
        except SettingsError as error:
            log.warning("reload_refused", reason=str(error))
            return False
        return True

    def _let_go(self, pid: int) -> None:
        """Let a worker that drains leave its seat, which is filled at once: both serve the socket until the old one stops."""
        for place in self._places:
            if place.worker is not None and place.worker.pid == pid:
                log.info("worker_leaving", worker=place.number, pid=pid)
                place.worker.gone_by = time.monotonic() + self._drain_s + SLACK_S
                place.leaving.append(place.worker)
                place.worker = None
                place.start_at = time.monotonic()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._on_end(pid, os.waitstatus_to_exitcode(status))

    def _on_end(self, pid: int, code: int) -> None:
        for place in self._places:
            if place.worker is not None and place.worker.pid == pid:
                lived_s = time.monotonic() - place.worker.started_at
                place.worker = None
                if self._is_stopping:
                    self._on_stopped(place, code)
                else:
                    self._on_failure(place, pid, code, lived_s)
            place.leaving = [worker for worker in place.leaving if worker.pid != pid]

    def _on_stopped(self, place: _Place, code: int) -> None:
        if code != 0 and self._exit_code == 0:
            log.error("worker_not_drained", worker=place.number, ended=_ended(code))
            self._exit_code = 1

    def _on_failure(self, place: _Place, pid: int, code: int, lived_s: float) -> None:
        place.failures = 1 if lived_s >= STEADY_S else place.failures + 1
        if code == EXIT_CONFIG:
            log.error("workers_refuse", reason="a worker refused to start; its own line says why", worker=place.number)
            self._stop(EXIT_CONFIG)
        elif place.failures >= FAILURES_MAX:
            reason = f"{FAILURES_MAX} times in a row it ended within {STEADY_S:.0f} s; the last time: {_ended(code)}"
            log.error("workers_fail", reason=reason, worker=place.number)
            self._stop(1)
        else:
            # The first time at once: its socket takes connections all the while.
            wait_s = 0.0 if place.failures == 1 else min(BACKOFF_S * 2.0 ** (place.failures - 2), BACKOFF_S_MAX)
            log.error("worker_ended", worker=place.number, pid=pid, ended=_ended(code), again_in_s=wait_s)
            place.start_at = time.monotonic() + wait_s

    def _watch(self) -> None:
        """Once a tick, kill who hangs or is not gone in time."""
        now = time.monotonic()
        if now < self._ticked_at + TICK_S:
            return
        self._ticked_at = now
        for place in self._places:
            late = [worker for worker in place.workers if now >= min(worker.gone_by, self._stops_by)]
            if late:
                log.error("worker_late", worker=place.number, pids=[worker.pid for worker in late])
                _kill(late, signal.SIGKILL)
            (beat,) = BEAT.unpack_from(self._beats, (place.number - 1) * BEAT.size)
            is_silent = place.worker is not None and not self._is_stopping and beat == place.beat
            place.beat = beat
            place.silent_ticks = place.silent_ticks + 1 if is_silent else 0
            if place.worker is not None and place.silent_ticks >= HANG_TICKS:
                log.error("worker_hangs", worker=place.number, pid=place.worker.pid)
                _kill([place.worker], signal.SIGKILL)
                place.silent_ticks = 0


def _kill(workers: Iterable[_Worker], number: signal.Signals) -> None:
    # Children that were not yet waited for: their ids cannot be others' by now.
    for worker in workers:
        os.kill(worker.pid, number)


def _ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; leave at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)
