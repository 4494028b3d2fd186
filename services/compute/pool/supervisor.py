"""The process pool: a fixed number of slots, one child and one pipe each, and a bounded queue in front of them."""

import asyncio
import pickle
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import structlog

from services.compute.pool.base import Outcome, TaskFailed, WorkerDied
from services.compute.pool.framing import Kind
from services.compute.pool.process import Child, ChildEnded, Reply, cause_of, packed
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, Unavailable
from shared.tasks import Supervisor

DELIVERIES_MAX = 3
"""How often a job is handed over when the child turns out to have ended before the job began."""

RETRY_AFTER_S_MAX = 60.0
DURATION_WEIGHT = 0.2
"""Of the newest duration in the moving average."""

R = TypeVar("R")


class Observer(Protocol):
    """Told what happens, for metrics."""

    def waited(self, seconds: float) -> None:
        """A job got its child after so long."""

    def finished(self, result: str) -> None:
        """A job ended: ok, failed, died, timed_out, expired (while waiting), cancelled or refused."""


class ProcessPool:
    """A Pool over child processes; each slot's task starts its child, waits for its end and starts the next.

    No lock and no queue is shared between the children, which is why the death of one is nothing to the others.
    """

    def __init__(self, *, slots: int, queue_max: int, observer: Observer) -> None:
        """`queue_max` bounds the jobs in the pool, running and waiting together."""
        self.slots = slots
        self.queue_max = max(queue_max, slots)
        self._observer = observer
        self._tasks = Supervisor()
        self._live: set[Child] = set()
        self._idle: list[Child] = []
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._admitted = 0
        self._busy = 0
        self._duration_s = 0.0
        self._closed = False
        self._has_child = asyncio.Event()
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Begin to start the children; jobs may come at once and wait for them."""
        for number in range(self.slots):
            self._tasks.start(f"pool-slot-{number}", self._keep_slot)

    async def started(self, *, timeout_s: float) -> bool:
        """Wait for the first child; False when there is none in time, which readiness then shows."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._has_child.wait()
        except TimeoutError:
            return False

    @property
    def live(self) -> int:
        """Children that take jobs or run one."""
        return len(self._live)

    @property
    def busy(self) -> int:
        return self._busy

    @property
    def queued(self) -> int:
        return self._admitted - self._busy

    async def run(self, function: Callable[..., R], arguments: tuple[object, ...], deadline: Deadline) -> Outcome[R]:
        """See Pool."""
        job = packed(function, arguments)
        if deadline.expired:
            self._observer.finished("expired")
            raise DeadlineExceeded("the deadline had passed before the work began")
        self._admit()
        started = time.monotonic()
        try:
            for _ in range(DELIVERIES_MAX):
                child = await self._acquire(deadline)
                queue_s = time.monotonic() - started
                self._observer.waited(queue_s)
                try:
                    reply = await self._deliver(child, job, deadline)
                except ChildEnded as error:
                    if error.started:
                        self._observer.finished("died")
                        raise WorkerDied() from error
                    continue
                return Outcome(cast(R, self._value(reply)), child.pid, queue_s, reply.run_s)
            self._observer.finished("died")
            raise WorkerDied()
        finally:
            self._admitted -= 1

    def _admit(self) -> None:
        if self._closed or self._admitted >= self.queue_max:
            self._observer.finished("refused")
            raise Unavailable(
                "all workers are busy and the queue is full", retry_after_s=self._wait_s(), code="pool_full"
            )
        self._admitted += 1

    def _learn(self, duration_s: float) -> None:
        self._duration_s += (duration_s - self._duration_s) * (DURATION_WEIGHT if self._duration_s else 1.0)

    def _wait_s(self) -> float:
        """Estimate when there will be room: what is in the pool, at the speed seen so far."""
        return min(RETRY_AFTER_S_MAX, self._duration_s * self._admitted / self.slots)

    async def _acquire(self, deadline: Deadline) -> Child:
        """Return an idle child, first come first served."""
        while self._idle:
            child = self._idle.pop()
            if child in self._live:
                return child
        place: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                return await place
        except BaseException as error:
            self._leave(place)
            if isinstance(error, TimeoutError) or deadline.expired:
                self._observer.finished("expired")
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded("no worker became free before the deadline") from error
            else:
                self._observer.finished("cancelled")
            raise

    def _leave(self, place: asyncio.Future[Child]) -> None:
        """Give up a place in the queue, and the child that may have been handed to it in the same moment."""
        if place.done() and not place.cancelled():
            if place.exception() is None:
                self._offer(place.result())
            return
        place.cancel()
        if place in self._waiting:
            self._waiting.remove(place)

    async def _deliver(self, child: Child, job: bytes, deadline: Deadline) -> Reply:
        """Have the child do the job; whatever ends this early kills the child, since its pipe is then in mid-sentence."""
        self._busy += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                reply = await child.run(job)
        except BaseException as error:
            self._withdraw(child)
            child.kill()
            if isinstance(error, ChildEnded):
                raise
            # The timer may run out a moment before the deadline's own clock says so.
            too_late = isinstance(error, TimeoutError) or deadline.expired
            self._observer.finished("timed_out" if too_late else "cancelled")
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the task was not done by the deadline and has been stopped") from error
            raise
        finally:
            self._busy -= 1
            self._learn(time.monotonic() - started)
        self._offer(child)
        return reply

    def _value(self, reply: Reply) -> object:
        """Return the value of a reply. Raises TaskFailed."""
        if reply.kind is Kind.ERROR:
            kind, _, text = reply.body.decode(errors="replace").partition("\n")
        else:
            try:
                value = pickle.loads(reply.body)  # noqa: S301 - from our own child, which runs our own code
            except Exception as error:  # noqa: BLE001 - a class of the task's may fail when it is made anew
                kind, text = type(error).__name__, f"the result cannot be read: {error}"
            else:
                self._observer.finished("ok")
                return value
        self._observer.finished("failed")
        self._log.warning("task_failed", error=kind, text=text[:500])
        raise TaskFailed(kind, text)

    def _offer(self, child: Child) -> None:
        """Hand a free child to who waits longest, or keep it."""
        if child not in self._live:
            return
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(child)
                return
        self._idle.append(child)

    def _withdraw(self, child: Child) -> None:
        self._live.discard(child)
        if child in self._idle:
            self._idle.remove(child)

    async def _keep_slot(self) -> None:
        """Keep one child alive for ever; a child that cannot be started raises, and the supervisor tries again after a pause."""
        while True:
            child = await Child.start()
            self._live.add(child)
            self._has_child.set()
            self._offer(child)
            try:
                code = await child.ended()
            except BaseException:
                # The pool closes: nobody else waits for this child's end.
                self._withdraw(child)
                child.kill()
                await child.ended()
                raise
            tell = self._log.warning if child in self._live else self._log.debug
            self._withdraw(child)
            tell("child_ended", pid=child.pid, cause=cause_of(code))

    async def close(self) -> None:
        """See Pool."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(Unavailable("this replica is stopping", code="pool_full"))
        await self._tasks.close()
