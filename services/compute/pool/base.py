"""The pool as its users see it: a function, its arguments and a deadline go in, a value or a problem comes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from shared import context
from shared.deadline import Deadline
from shared.errors import Problem

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R_co]):
    """What a job gave; `queue_s` is the wait for a child, `run_s` the time in the function as the child measured it."""

    value: R_co
    worker_pid: int
    queue_s: float
    run_s: float


class WorkerDied(Problem):
    """The child process ended in the middle of this job; no other job is touched."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "worker_died"
    title: ClassVar[str] = "The process that did this work ended before it was done"


class TaskFailed(Problem):
    """The function raised; `kind` and `text` are for the log, the client is told only that it failed."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "task_failed"
    title: ClassVar[str] = "The task failed"

    def __init__(self, kind: str, text: str) -> None:
        super().__init__()
        self.kind = kind
        self.text = text


class Pool(Protocol):
    async def run(self, function: Callable[..., R], arguments: tuple[object, ...], deadline: Deadline) -> Outcome[R]:
        """Run a module-level function in another process.

        Raises Unavailable (with Retry-After) when slots and queue are full, DeadlineExceeded when the deadline comes first,
        WorkerDied when the process ends, TaskFailed when the function raises or its result cannot be sent, TypeError when function
        or arguments cannot be. Cancelling gives up the place in the queue, or kills the process that runs the job.
        """

    async def close(self) -> None:
        """Refuse new jobs, kill every child, wait for their end. Idempotent."""


async def run_in_process_pool(
    function: Callable[..., R], *arguments: object, pool: Pool, timeout_s: float = 10.0
) -> Outcome[R]:
    """Run a CPU-bound function in the process pool until the request's deadline, at most `timeout_s`."""
    own = Deadline.after(timeout_s)
    asked = context.deadline()
    return await pool.run(function, arguments, own if asked is None or own.at < asked.at else asked)
