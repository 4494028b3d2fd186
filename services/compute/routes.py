"""The routes: CPU work, a bounded gather and a blocking call, each answering with what it did and how long it took."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.types import Receive, Scope, Send

from services.compute import domain, model, tasks
from services.compute.model import AsyncDemo, BlockingDemo, CpuAnswer, CpuWork
from services.compute.pool.base import Pool, run_in_process_pool
from services.compute.pool.threads import ThreadPool, run_in_thread_pool
from shared.app import parts_of
from shared.identity import SignedIn, signed_in
from shared.tokens import TokenVerifier

T = TypeVar("T")
router = APIRouter()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with."""

    verifier: TokenVerifier
    pool: Pool
    threads: ThreadPool
    job_timeout_s: float


def parts(request: Request) -> Parts:
    found: Parts = parts_of(request)
    return found


WithParts = Annotated[Parts, Depends(parts)]


class ClientGone(Exception):
    """The client has disconnected: nobody waits for the answer."""


class NoAnswer(Response):
    """Sends nothing, for a client that is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it and raise ClientGone when the client disconnects first. The body must have been read."""
    loop = asyncio.get_running_loop()
    working = loop.create_task(work, name="work")
    leaving = loop.create_task(_disconnect(request), name="disconnect")
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        # Awaited, so that a cancelled job has given back its place or its child when this returns.
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait([working, leaving])


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


@router.post("/cpu-intensive", response_model=CpuAnswer)
async def cpu_intensive(work: CpuWork, request: Request, _: SignedIn, parts: WithParts) -> CpuAnswer | Response:
    """Count the primes below `n` in another process."""
    job = run_in_process_pool(tasks.count_primes, work.n, pool=parts.pool, timeout_s=parts.job_timeout_s)
    try:
        done = await while_connected(request, job)
    except ClientGone:
        return NoAnswer()
    return CpuAnswer(
        n=work.n,
        primes=done.value,
        duration_ms=round(done.run_s * 1000, 3),
        worker_pid=done.worker_pid,
        queue_ms=round(done.queue_s * 1000, 3),
    )


@router.get("/async-demo", dependencies=[Depends(signed_in)])
async def async_demo(
    number: Annotated[int, Query(alias="tasks", ge=1, le=model.TASKS_MAX)] = 10,
    limit: Annotated[int, Query(ge=1, le=model.LIMIT_MAX)] = 5,
) -> AsyncDemo:
    """Await so many tasks, `limit` at a time."""
    return await domain.demonstrate_overlap(number, limit)


def block(ms: int) -> str:
    """Block this thread for so long and return its name."""
    time.sleep(ms / 1000)
    return threading.current_thread().name


@router.get("/blocking-demo", dependencies=[Depends(signed_in)])
async def blocking_demo(
    parts: WithParts, ms: Annotated[int, Query(ge=1, le=model.BLOCKING_MS_MAX)] = 50
) -> BlockingDemo:
    """Block a thread for so long, and watch the event loop meanwhile."""
    started = time.perf_counter()
    async with domain.watched_loop() as lag:
        thread = await run_in_thread_pool(block, ms, pool=parts.threads)
    return BlockingDemo(
        ms=ms,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
        loop_lag_ms_max=round(lag.max_s * 1000, 3),
        thread=thread,
    )
