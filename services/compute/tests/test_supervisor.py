"""The process pool on real processes: what one job does to itself, it does to no other."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compute import tasks
from services.compute.pool import process
from services.compute.pool.base import Outcome, TaskFailed, WorkerDied, run_in_process_pool
from services.compute.pool.framing import FRAME_BYTES_MAX
from services.compute.pool.process import cause_of
from services.compute.pool.supervisor import ProcessPool
from services.compute.tests import faulty
from shared import context
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded, Unavailable

pytestmark = pytest.mark.slow  # real processes and their deaths

SLOTS = 2


class Seen:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.waits = 0

    def waited(self, seconds: float) -> None:
        assert seconds >= 0
        self.waits += 1

    def finished(self, result: str) -> None:
        self.results.append(result)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def pool(seen: Seen) -> AsyncIterator[ProcessPool]:
    found = ProcessPool(slots=SLOTS, queue_max=4, observer=seen)
    found.start()
    yield found
    await found.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def told(path: Path) -> int:
    """Return the process id that a task has written."""
    await until(path.exists)
    return int(path.read_text())


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def run(pool: ProcessPool, function: Callable[..., object], *arguments: object) -> Outcome[object]:
    return await pool.run(function, arguments, Deadline.after(10))


async def test_a_job_runs_in_another_process_and_tells_its_times(pool: ProcessPool, seen: Seen) -> None:
    done = await run_in_process_pool(tasks.count_primes, 20_000, pool=pool)

    assert done.value == 2262
    assert done.worker_pid != os.getpid()
    assert done.run_s > 0
    assert done.queue_s >= 0
    assert (seen.results, seen.waits) == (["ok"], 1)


async def test_jobs_run_at_the_same_time_one_per_slot(pool: ProcessPool, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        jobs = [
            group.create_task(run(pool, faulty.tell_and_wait, str(tmp_path / str(n)), str(tmp_path / "gate")))
            for n in range(SLOTS)
        ]
        pids = {await told(tmp_path / str(n)) for n in range(SLOTS)}
        assert len(pids) == SLOTS
        assert pool.busy == SLOTS
        (tmp_path / "gate").touch()
    assert {job.result().value for job in jobs} == pids
    assert pool.busy == 0


async def test_a_child_is_used_again(pool: ProcessPool) -> None:
    await until(lambda: pool.live == SLOTS)
    pids = {(await run(pool, faulty.pid)).value for _ in range(20)}
    assert len(pids) <= SLOTS


async def test_kill_9_of_a_running_child_ends_only_its_job(pool: ProcessPool, tmp_path: Path, seen: Seen) -> None:
    async with asyncio.TaskGroup() as group:
        victim = group.create_task(_died(run(pool, faulty.tell_and_spin, str(tmp_path / "victim"))))
        innocent = group.create_task(
            run(pool, faulty.tell_and_wait, str(tmp_path / "innocent"), str(tmp_path / "gate"))
        )
        victim_pid = await told(tmp_path / "victim")
        innocent_pid = await told(tmp_path / "innocent")
        queued = [group.create_task(run(pool, faulty.pid)) for _ in range(2)]
        await until(lambda: pool.queued == 2)

        os.kill(victim_pid, signal.SIGKILL)

        await victim
        replacements = [(await job).value for job in queued]
        (tmp_path / "gate").touch()
    assert innocent.result().value == innocent_pid
    assert victim_pid not in replacements
    assert sorted(seen.results) == ["died", "ok", "ok", "ok"]
    await until(lambda: pool.live == SLOTS)


async def _died(job: object) -> None:
    with pytest.raises(WorkerDied):
        await job  # type: ignore[misc]


async def test_kill_9_of_an_idle_child_is_not_noticed_by_the_next_job(pool: ProcessPool) -> None:
    await until(lambda: pool.live == SLOTS)
    for _ in range(10):
        first = (await run(pool, faulty.pid)).value
        assert isinstance(first, int)
        os.kill(first, signal.SIGKILL)
        # At once: the pool cannot know yet that its idle child is gone.
        assert (await run(pool, faulty.pid)).value != first


@pytest.mark.parametrize("code", [0, 1, 77])
async def test_a_task_that_leaves_its_process_is_a_death(pool: ProcessPool, code: int) -> None:
    with pytest.raises(WorkerDied):
        await run(pool, faulty.leave, code)
    assert (await run(pool, tasks.count_primes, 100)).value == 25


@pytest.mark.parametrize("task", [faulty.tell_and_spin, faulty.tell_and_spin_in_c, faulty.ignore_everything_and_spin])
async def test_the_deadline_kills_a_spinning_task_and_the_slot_comes_back(
    pool: ProcessPool, tmp_path: Path, seen: Seen, task: Callable[[str], None]
) -> None:
    await until(lambda: pool.live == SLOTS)

    with pytest.raises(DeadlineExceeded):
        await pool.run(task, (str(tmp_path / "pid"),), Deadline.after(0.3))

    assert seen.results == ["timed_out"]
    pid = await told(tmp_path / "pid")
    await until(lambda: not is_running(pid))
    await until(lambda: pool.live == SLOTS)
    assert (await run(pool, tasks.count_primes, 100)).value == 25


async def test_what_a_task_has_started_dies_with_it(pool: ProcessPool, tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as group:
        job = group.create_task(run(pool, faulty.start_a_process_and_spin, str(tmp_path / "pid")))
        grandchild = await told(tmp_path / "pid")
        assert is_running(grandchild)
        job.cancel()
    await until(lambda: not is_running(grandchild))


async def test_cancelling_kills_the_child_that_runs_the_job(pool: ProcessPool, tmp_path: Path, seen: Seen) -> None:
    async with asyncio.TaskGroup() as group:
        job = group.create_task(run(pool, faulty.tell_and_spin, str(tmp_path / "pid")))
        pid = await told(tmp_path / "pid")
        job.cancel()
    await until(lambda: not is_running(pid))
    assert seen.results == ["cancelled"]
    assert (await run(pool, tasks.count_primes, 100)).value == 25


async def test_a_full_pool_refuses_at_once_and_says_when_to_return(
    pool: ProcessPool, tmp_path: Path, seen: Seen
) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(4):
            group.create_task(run(pool, faulty.tell_and_wait, str(tmp_path / str(n)), str(tmp_path / "gate")))
        await until(lambda: pool.busy + pool.queued == 4)

        with pytest.raises(Unavailable) as refused:
            await run(pool, faulty.pid)

        assert refused.value.problem_code == "pool_full"
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert "refused" in seen.results
        (tmp_path / "gate").touch()
    assert (await run(pool, tasks.count_primes, 100)).value == 25


async def test_waiting_ends_at_the_deadline_and_frees_the_place(pool: ProcessPool, tmp_path: Path, seen: Seen) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(SLOTS):
            group.create_task(run(pool, faulty.tell_and_wait, str(tmp_path / str(n)), str(tmp_path / "gate")))
            await told(tmp_path / str(n))

        with pytest.raises(DeadlineExceeded):
            await pool.run(faulty.pid, (), Deadline.after(0.05))
        assert seen.results == ["expired"]
        assert pool.queued == 0

        waiting = group.create_task(run(pool, faulty.pid))
        await until(lambda: pool.queued == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert seen.results == ["expired", "cancelled"]
        assert pool.queued == 0
        (tmp_path / "gate").touch()
    assert seen.results.count("ok") == SLOTS


async def test_a_job_whose_deadline_has_passed_never_runs_and_costs_no_child(pool: ProcessPool, seen: Seen) -> None:
    await until(lambda: pool.live == SLOTS)
    with pytest.raises(DeadlineExceeded):
        await pool.run(faulty.pid, (), Deadline.after(-1))
    assert pool.live == SLOTS
    assert seen.results == ["expired"]


async def test_the_requests_deadline_holds_for_the_job(pool: ProcessPool, tmp_path: Path) -> None:
    token = context.enter(context.RequestContext("r", deadline=Deadline.after(0.1)))
    try:
        with pytest.raises(DeadlineExceeded):
            await run_in_process_pool(faulty.tell_and_spin, str(tmp_path / "pid"), pool=pool, timeout_s=60)
    finally:
        context.leave(token)


@pytest.mark.parametrize(
    ("task", "arguments", "kind"),
    [
        (faulty.fail, ("no",), "ValueError"),
        (faulty.fail_unpicklably, (), "Unpicklable"),
        (faulty.return_a_lock, (), "TypeError"),
        (faulty.return_what_fails_on_arrival, (), "ValueError"),
        (faulty.return_bytes, (FRAME_BYTES_MAX + 1,), "ValueError"),
        (faulty.leave_politely, (), "SystemExit"),
        (faulty.exhaust_the_stack, (), "RecursionError"),
    ],
)
async def test_a_task_that_fails_leaves_its_child_alive(
    pool: ProcessPool, task: Callable[..., object], arguments: tuple[object, ...], kind: str, seen: Seen
) -> None:
    await until(lambda: pool.live == SLOTS)
    before = {(await run(pool, faulty.pid)).value for _ in range(5)}

    with pytest.raises(TaskFailed) as failed:
        await run(pool, task, *arguments)

    assert failed.value.kind == kind
    assert kind not in str(failed.value), "what went wrong inside is for the log"
    assert (await run(pool, faulty.pid)).value in before
    assert seen.results[-2:] == ["failed", "ok"]


async def test_large_arguments_and_results_pass(pool: ProcessPool) -> None:
    size = FRAME_BYTES_MAX - 1000
    assert (await run(pool, bytes.count, bytes(size), b"\0")).value == size
    assert (await run(pool, faulty.return_bytes, size)).value == bytes(size)


async def test_what_cannot_be_sent_is_refused_before_it_takes_a_place(pool: ProcessPool) -> None:
    unsendable: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (lambda: 1, ()),
        (faulty.fail, (threading.Lock(),)),
        (len, (bytes(FRAME_BYTES_MAX),)),
    ]
    for function, arguments in unsendable:
        with pytest.raises(TypeError):
            await run(pool, function, *arguments)
    assert pool.busy + pool.queued == 0


async def test_a_task_that_writes_into_its_pipe_hurts_only_itself(pool: ProcessPool) -> None:
    with pytest.raises(WorkerDied):
        await run(pool, faulty.write_into_the_pipe)
    assert (await run(pool, tasks.count_primes, 100)).value == 25


async def test_what_a_task_prints_goes_nowhere(pool: ProcessPool, capfd: pytest.CaptureFixture[str]) -> None:
    assert (await run(pool, faulty.print_much)).value == 1
    assert capfd.readouterr() == ("", "")


async def test_a_child_has_no_secret_and_no_framework(pool: ProcessPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@127.0.0.1/x")
    await until(lambda: pool.live == SLOTS)
    for _ in range(SLOTS):
        with pytest.raises(WorkerDied):
            await run(pool, faulty.leave, 0)
    found = (await run(pool, faulty.environment)).value
    assert isinstance(found, dict)
    assert "DATABASE_URL" not in found
    loaded = (await run(pool, faulty.modules)).value
    assert isinstance(loaded, list)
    assert not {"fastapi", "pydantic", "asyncio", "structlog", "shared"} & set(loaded)


async def test_many_deaths_in_a_row_leave_a_whole_pool(pool: ProcessPool) -> None:
    for _ in range(10):
        with pytest.raises(WorkerDied):
            await run(pool, faulty.leave, 1)
    await until(lambda: pool.live == SLOTS)
    assert pool.busy + pool.queued == 0
    assert (await run(pool, tasks.count_primes, 100)).value == 25


async def test_a_pool_whose_children_do_not_start_heals_when_they_can(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ProcessPool(slots=1, queue_max=4, observer=seen)
    with monkeypatch.context() as patch:
        patch.setattr(process, "CHILD_MODULE", "services.compute.pool.no_such_module")
        pool.start()
        assert not await pool.started(timeout_s=0.2)
        assert pool.live == 0
        with pytest.raises(DeadlineExceeded):
            await pool.run(faulty.pid, (), Deadline.after(0.05))
    assert (await run(pool, tasks.count_primes, 100)).value == 25
    await pool.close()


async def test_close_ends_children_and_jobs_and_refuses_new_ones(seen: Seen, tmp_path: Path) -> None:
    pool = ProcessPool(slots=1, queue_max=4, observer=seen)
    pool.start()
    assert await pool.started(timeout_s=10)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_died(run(pool, faulty.tell_and_spin, str(tmp_path / "pid"))))
        pid = await told(tmp_path / "pid")
        waiting = group.create_task(_refused(run(pool, faulty.pid)))
        await until(lambda: pool.queued == 1)

        await pool.close()

        assert not is_running(pid)
    assert running.done()
    assert waiting.done()
    await _refused(run(pool, faulty.pid))
    await pool.close()


async def _refused(job: object) -> None:
    with pytest.raises(Unavailable):
        await job  # type: ignore[misc]


async def test_no_descriptor_is_lost_when_children_come_and_go(pool: ProcessPool) -> None:
    await until(lambda: pool.live == SLOTS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(WorkerDied):
            await run(pool, faulty.leave, 1)
    await until(lambda: pool.live == SLOTS)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


@given(st.integers(-300, 300))
def test_every_end_has_a_cause(code: int) -> None:
    assert cause_of(code)


def test_causes_read_well() -> None:
    assert (cause_of(-9), cause_of(3), cause_of(-99)) == ("SIGKILL", "exit 3", "signal 99")
