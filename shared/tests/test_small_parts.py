"""Deadlines, ids, checks and supervised tasks."""

import asyncio
import re
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import checks, context, deadline, ids, tasks
from shared.checks import Readiness
from shared.deadline import Deadline
from shared.errors import DeadlineExceeded
from shared.middleware import DeadlineLimit
from shared.serve import allow_open_files


def test_new_ids_are_uuid7_and_sort_by_time() -> None:
    made = [ids.new_id() for _ in range(1000)]
    assert all(ids.is_id(text) for text in made)
    assert made == sorted(made)
    assert len(set(made)) == 1000


@given(st.text(max_size=50))
def test_no_other_text_is_an_id(text: str) -> None:
    assert not ids.is_id(text)


def test_request_ids_are_unique_and_pass_their_own_check() -> None:
    made = [ids.new_request_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(ids.is_request_id(text) for text in made)


def test_trace_contexts_are_of_the_w3c_form_and_differ():
    made = [ids.new_traceparent() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", text) for text in made)


@pytest.mark.parametrize("text", ["", "a\n", "a b", "ä", "x" * 129, "a/b"])
def test_a_bad_request_id_is_refused(text: str) -> None:
    assert not ids.is_request_id(text)


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3", "--1", "9" * 12, "²"])
def test_an_unreadable_deadline_is_none(text: str) -> None:
    assert Deadline.from_header(text) is None


def test_a_deadline_counts_down_and_over() -> None:
    left = Deadline.after(10)
    assert 9 < left.remaining_s() <= 10
    assert not left.expired
    over = Deadline.from_header("-5")
    assert over is not None
    assert over.expired
    assert over.remaining_s() == 0.0


def test_a_huge_deadline_is_cut() -> None:
    found = Deadline.from_header("999999999")
    assert found is not None
    assert found.remaining_s() <= deadline.HEADER_MS_MAX / 1000


async def test_limit_raises_at_the_earlier_of_both_bounds() -> None:
    with pytest.raises(DeadlineExceeded, match="the query"):
        async with deadline.limit(Deadline.after(0.01), 60, "the query"):
            await asyncio.Event().wait()
    with pytest.raises(DeadlineExceeded):
        async with deadline.limit(None, 0.01, "the query"):
            await asyncio.Event().wait()


async def test_limit_lets_a_timeout_of_the_inside_through_as_a_deadline_only_when_it_is_one() -> None:
    with pytest.raises(ValueError, match="own"):
        async with deadline.limit(None, 5, "x"):
            raise ValueError("own fault")


async def test_patient_timeout_ends_what_hangs_and_lets_a_cancellation_through() -> None:
    with pytest.raises(TimeoutError):
        async with deadline.patient_timeout(0.01):
            await asyncio.Event().wait()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_wait_patiently())
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()


async def _wait_patiently() -> None:
    async with deadline.patient_timeout(60):
        await asyncio.Event().wait()


async def test_patient_timeout_reads_what_came_in_time_when_the_loop_is_late() -> None:
    own, peer = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=own)

    def answer_while_the_loop_is_held_up() -> None:
        peer.send(b"x")
        time.sleep(0.15)

    with peer:
        async with deadline.patient_timeout(0.1):
            asyncio.get_running_loop().call_soon(answer_while_the_loop_is_held_up)
            assert await reader.read(1) == b"x"
    writer.close()


class _Late(Deadline):
    """A deadline whose own clock is behind the timer's: it has 10 ms left, and is never over."""

    def remaining_s(self) -> float:
        return 0.01

    @property
    def expired(self) -> bool:
        return False


async def test_a_request_that_reaches_its_deadline_is_late_whichever_clock_says_so_first() -> None:
    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    token = context.enter(context.RequestContext("id", deadline=_Late(0.0)))
    try:
        with pytest.raises(DeadlineExceeded):
            await DeadlineLimit(hangs)({"type": "http"}, None, None)  # type: ignore[arg-type]
    finally:
        context.leave(token)


async def test_a_timeout_of_the_work_itself_is_no_deadline() -> None:
    async def fails(*_: object) -> None:
        raise TimeoutError("its own")

    token = context.enter(context.RequestContext("id", deadline=Deadline.after(60)))
    try:
        with pytest.raises(TimeoutError, match="its own"):
            await DeadlineLimit(fails)({"type": "http"}, None, None)  # type: ignore[arg-type]
    finally:
        context.leave(token)


def test_outgoing_headers_carry_id_trace_and_deadline() -> None:
    token = context.enter(context.RequestContext("r1", traceparent="00-x", deadline=Deadline.after(2)))
    headers = context.outgoing_headers()
    context.leave(token)
    assert headers["X-Request-ID"] == "r1"
    assert headers["traceparent"] == "00-x"
    assert 0 < int(headers["X-Request-Timeout-Ms"]) <= 2000
    assert context.outgoing_headers() == {}


async def test_checks_run_together_and_a_hanging_one_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_TIMEOUT_S", 0.05)
    both_began = asyncio.Barrier(2)

    async def hang() -> None:
        await both_began.wait()
        await asyncio.Event().wait()

    readiness = Readiness()
    readiness.require({"a": hang, "b": hang})

    is_ready, report = await readiness.report()

    assert not is_ready
    assert report == {"state": "not_ready", "checks": {"a": "failing", "b": "failing"}}


async def test_what_is_tolerated_may_fail_for_a_while_once_it_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, works = [1000.0], False
    monkeypatch.setattr(checks.time, "monotonic", lambda: now[0])

    async def check() -> None:
        if not works:
            raise OSError("away")

    async def state() -> tuple[bool, object]:
        now[0] += 1
        is_ready, report = await readiness.report()
        return is_ready, report["state"]

    readiness = Readiness()
    readiness.require({"a": check}, {"a": 60.0})
    assert await state() == (False, "not_ready")
    works = True
    assert await state() == (True, "ready")
    works = False
    now[0] += 50
    assert await state() == (True, "ready")
    assert (await readiness.report())[1]["checks"] == {"a": "failing"}
    now[0] += 10
    assert await state() == (False, "not_ready")


async def test_probes_at_once_share_one_round_trip() -> None:
    asked = 0

    async def check() -> None:
        nonlocal asked
        asked += 1

    readiness = Readiness()
    readiness.require({"a": check})
    await asyncio.gather(*(readiness.report() for _ in range(50)))
    assert asked == 1


async def test_a_failing_task_is_started_again() -> None:
    runs = 0
    done = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("once")
        done.set()

    async with tasks.Supervisor() as supervisor:
        supervisor.start("work", work)
        await asyncio.wait_for(done.wait(), 5)
    assert runs == 2


async def test_closing_cancels_and_awaits_every_task() -> None:
    cleaned = asyncio.Event()
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    supervisor = tasks.Supervisor()
    supervisor.start("work", work)
    with pytest.raises(ValueError, match="already running"):
        supervisor.start("work", work)
    await began.wait()
    await supervisor.close()
    assert cleaned.is_set()


async def test_a_task_that_does_not_stop_does_not_hold_the_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "STOP_WAIT_S", 0.05)
    release, began = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await release.wait()

    supervisor = tasks.Supervisor()
    supervisor.start("stubborn", stubborn)
    await began.wait()
    started = time.monotonic()
    await supervisor.close()
    release.set()
    assert time.monotonic() - started < 5


@pytest.fixture
def few_open_files() -> Iterator[int]:
    """A process as most systems start it; the value is what it may have at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard < 4096:
        pytest.skip("this system's own limit is none to test against")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_files_are_raised_to_what_the_connections_need(few_open_files: int) -> None:
    allow_open_files(1000)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (2256, few_open_files)
    allow_open_files(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 2256


def test_open_files_stay_within_what_the_system_allows(few_open_files: int) -> None:
    allow_open_files(1_000_000_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == few_open_files
    assert soft == hard
