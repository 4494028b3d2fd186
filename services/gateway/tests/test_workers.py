"""A group of workers as real processes: what is queued outlives a worker, one scrape speaks for all, nobody is left behind."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.gateway.tests.group import START_S, Group, callers, environment, free_port
from services.gateway.tests.rig import ROUTES, eventually, write_endpoints
from services.gateway.tests.scripted import Upstream, Wire, answer
from shared.serve import listen

pytestmark = pytest.mark.slow  # real processes

ROOT = Path(__file__).parents[3]
RUN = "from services.gateway.app import main; main()"
ANOTHER_ROUTE = ROUTES + '[[routes]]\npath = "/another/*"\nservice = "open"\nmethods = ["GET"]\nauth = "public"\n'


@pytest.fixture
def launch(stack: AsyncExitStack, tmp_path: Path) -> Callable[..., Group]:
    """Start a group; `program` may change what it is made of, `inherited` is its public socket."""

    def start(
        upstream: str,
        *,
        count: int = 2,
        program: str = RUN,
        port: int = 0,
        inherited: int | None = None,
        grace_s: int = 8,
    ) -> Group:
        port = port or free_port()
        write_endpoints(tmp_path / "endpoints.json", {"open": [upstream]})
        (tmp_path / "config.toml").write_text(ROUTES)
        variables = environment(tmp_path, port, count) | {"RH_GATEWAY_DRAIN_GRACE_S": str(grace_s)}
        if inherited is not None:
            variables["RH_GATEWAY_FD"] = str(inherited)
        with (tmp_path / "log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=ROOT,
                env=variables,
                stdout=log,
                pass_fds=[] if inherited is None else [inherited],
            )
        stack.callback(child.wait)
        stack.callback(child.kill)
        return Group(child, port, tmp_path)

    return start


@pytest.fixture
def start(launch: Callable[..., Group]) -> Callable[..., object]:
    """Start a group and wait until every worker serves."""

    async def run(upstream: Upstream, *, count: int = 2, **more: object) -> Group:
        group = launch(upstream.address, count=count, **more)
        async with asyncio.timeout(START_S):
            while len(group.lines("started")) < count:
                await asyncio.sleep(0.02)
        return group

    return run


async def test_what_is_queued_for_a_killed_worker_is_served_by_its_successor(serve, start):
    group = await start(await serve())
    stopped, _ = group.workers()
    os.kill(stopped, signal.SIGSTOP)
    wires = [await group.connect() for _ in range(32)]
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(wire.ask(wire_request(n))) for n, wire in enumerate(wires)]
        # The other worker has answered its half; what is left waits where nobody takes it.
        await eventually(lambda: sum(task.done() for task in asked) >= 4)
        await asyncio.sleep(0.3)
        queued = [task for task in asked if not task.done()]
        assert len(queued) >= 4
        os.kill(stopped, signal.SIGKILL)
    assert [task.result().body for task in asked] == [b"/open/%d" % n for n in range(32)]
    for wire in wires:
        wire.abort()


def wire_request(number: int) -> bytes:
    return b"GET /open/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number


async def test_under_load_a_killed_worker_refuses_nobody_and_is_replaced(serve, start):
    group = await start(await serve())
    victim, _ = group.workers()
    answers: list[bytes | str] = []
    async with callers(group, 8, answers):
        await eventually(lambda: len(answers) >= 50)
        os.kill(victim, signal.SIGKILL)
        await group.logged("started", 3)
        seen = len(answers)
        await eventually(lambda: len(answers) >= seen + 50)
    problems = [answer for answer in answers if answer != b"/open/x"]
    # What the worker was serving ends with it: at most one call of each caller. Nothing else does.
    assert set(problems) <= {"IncompleteReadError", "ConnectionResetError"}
    assert len(problems) <= 8
    assert victim not in group.workers()
    assert len(group.workers()) == 2
    (line,) = group.lines("worker_ended")
    assert (line["ended"], line["again_in_s"]) == ("SIGKILL", 0)


async def test_a_worker_told_to_leave_is_replaced_before_it_is_gone_and_no_call_fails(serve, start):
    async def slow(wire: Wire) -> None:
        request = await wire.message()
        if request.target == "/open/slow":
            # Both workers go on serving this until both successors serve.
            await group.logged("started", 4)
        await wire.send(answer(request.target.encode()))

    group = await start(await serve(slow))
    before = group.workers()
    answers: list[bytes | str] = []
    async with asyncio.TaskGroup() as tasks, callers(group, 4, answers):
        under_way = [tasks.create_task(group.ask("/open/slow")) for _ in range(8)]
        await eventually(lambda: len(answers) >= 20)
        for pid in before:
            os.kill(pid, signal.SIGTERM)
        await group.logged("stopped", 2)
        seen = len(answers)
        await eventually(lambda: len(answers) >= seen + 20)
    assert set(answers) == {b"/open/x"}
    assert {task.result().body for task in under_way} == {b"/open/slow"}
    await eventually(lambda: not set(before) & set(group.workers()))
    assert len(group.workers()) == 2


def counted(text: bytes) -> dict[str, int]:
    found = re.findall(rb'^requests_total{worker="(\d+)".*route="/open/\*".*} ([\d.]+)$', text, re.MULTILINE)
    return {number.decode(): int(float(value)) for number, value in found}


async def test_one_scrape_holds_what_every_worker_counted_and_the_system_spreads_connections(serve, start):
    group = await start(await serve())
    wires = [await group.connect() for _ in range(64)]
    for number, wire in enumerate(wires):
        await wire.ask(wire_request(number))
    for _ in range(6):
        text = (await group.ask("/metrics")).body
        found = counted(text)
        assert sum(found.values()) == 64
        assert set(found) == {"1", "2"}
        # One chance in 30,000 for fewer than 16 where each connection is a toss of a coin.
        assert min(found.values()) >= 16
        assert text.count(b"# TYPE requests_total counter") == 1
        assert text.count(b"process_resident_memory_bytes{") == 2
        assert b'gateway_workers{state="answering"} 2\n' in text
    for wire in wires:
        wire.abort()


async def test_a_second_signal_ends_the_group_at_once(serve, start):
    arrived = asyncio.Event()

    async def hang(wire: Wire) -> None:
        await wire.message()
        arrived.set()
        await asyncio.Event().wait()

    group = await start(await serve(hang), grace_s=300)
    wire = await group.connect()
    await wire.send(wire_request(1))
    await arrived.wait()
    group.child.send_signal(signal.SIGTERM)
    await group.logged("draining", 2)
    group.child.send_signal(signal.SIGINT)
    # Well before the 300 s that what is under way would have been given.
    assert await group.exit_code() == 0
    wire.abort()


async def test_a_drained_group_finishes_what_is_under_way_and_exits_0(serve, start):
    arrived: list[Wire] = []

    async def wait(wire: Wire) -> None:
        await wire.message()
        arrived.append(wire)
        if len(arrived) < 8:
            await asyncio.Event().wait()
        group.child.send_signal(signal.SIGTERM)
        await group.logged("draining", 2)
        for each in arrived:
            await each.send(answer(b"done"))

    group = await start(await serve(wait))
    async with asyncio.TaskGroup() as tasks:
        under_way = [tasks.create_task(group.ask("/open/x")) for _ in range(8)]
    assert {task.result().body for task in under_way} == {b"done"}
    assert await group.exit_code() == 0
    assert {line["replica"] for line in group.lines("stopped")} == {"gateway-1-w1", "gateway-1-w2"}


async def test_no_worker_outlives_a_killed_parent(serve, start):
    group = await start(await serve(), count=3)
    workers = group.workers()
    assert len(workers) == 3
    group.child.kill()
    await group.exit_code()
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


async def test_a_worker_that_hangs_is_killed_and_replaced(serve, start):
    program = f"from services.gateway.workers import parent; parent.HANG_TICKS = 2; {RUN}"
    group = await start(await serve(), program=program)
    hanging, other = group.workers()
    os.kill(hanging, signal.SIGSTOP)
    (line,) = await group.logged("worker_hangs")
    assert line["pid"] == hanging
    await group.logged("started", 3)
    assert other in group.workers()
    assert hanging not in group.workers()


async def test_workers_that_keep_failing_end_the_group_with_the_reason(launch):
    fail = "from services.gateway import app; app.create = lambda settings, seat: 1 / 0;"
    program = f"from services.gateway.workers import parent; parent.FAILURES_MAX = 3; {fail} {RUN}"
    group = launch("127.0.0.1:1", program=program)
    assert await group.exit_code() == 1
    (line,) = group.lines("workers_fail")
    assert line["reason"] == "3 times in a row it ended within 30 s; the last time: exit code 1"
    assert [line["again_in_s"] for line in group.lines("worker_ended") if line["worker"] == 1][:2] == [0, 0.1]


async def test_a_worker_that_refuses_to_start_ends_the_group_with_78(launch):
    refuse = """
from shared.errors import CannotStart
from services.gateway import app
def create(settings, seat):
    raise CannotStart("the seal is another one")
app.create = create
app.main()
"""
    group = launch("127.0.0.1:1", program=refuse)
    assert await group.exit_code() == 78
    assert group.lines("start_failed")[0]["reason"] == "the seal is another one"
    assert len(group.lines("workers_refuse")) == 1


async def test_a_taken_port_is_one_clear_line_even_when_a_group_of_ours_has_it(serve, start, launch):
    group = await start(await serve())
    second = launch("127.0.0.1:1", port=group.port)
    assert await second.exit_code() == 1
    (line,) = second.lines("start_failed")
    assert line["reason"] == f"cannot listen on 127.0.0.1:{group.port}: Address already in use"
    assert (await group.ask("/live")).status == 200


async def test_a_new_worker_starts_with_the_last_good_configuration(serve, start):
    group = await start(await serve())
    config = group.folder / "config.toml"

    async def replace_all() -> None:
        before = group.workers()
        started = len(group.lines("started"))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await group.logged("started", started + 2)

    config.write_text(ANOTHER_ROUTE)
    await replace_all()
    assert (await group.ask("/another/x")).status == 404
    group.child.send_signal(signal.SIGHUP)
    await replace_all()
    assert (await group.ask("/another/x")).body == b"/another/x"

    config.write_text("[[routes]]\nno = 1\n")
    group.child.send_signal(signal.SIGHUP)
    (line,) = await group.logged("reload_refused")
    assert "RH_GATEWAY_CONFIG" in str(line["reason"])
    await replace_all()
    assert (await group.ask("/another/x")).body == b"/another/x"


async def test_an_inherited_socket_is_served_by_all_and_refuses_once_none_of_them_takes_connections(serve, start):
    arrived, may_end = asyncio.Event(), asyncio.Event()

    async def wait(wire: Wire) -> None:
        request = await wire.message()
        if request.target == "/open/slow":
            arrived.set()
            await may_end.wait()
        await wire.send(answer(request.target.encode()))

    public = listen("127.0.0.1", 0)
    port = public.getsockname()[1]
    group = await start(await serve(wait), inherited=public.fileno())
    public.close()
    private_port, group.port = group.port, port
    assert (await group.ask("/open/x")).body == b"/open/x"
    group.port = private_port
    assert (await group.ask("/open/x")).body == b"/open/x"

    group.port = port
    async with asyncio.TaskGroup() as tasks:
        under_way = tasks.create_task(group.ask("/open/slow"))
        await arrived.wait()
        group.child.terminate()
        # Not queued for nobody, although the group is still there.
        await eventually(lambda: is_refused(port))
        may_end.set()
    assert under_way.result().body == b"/open/slow"
    assert await group.exit_code() == 0


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_one_worker_is_one_process(serve, start):
    group = await start(await serve(), count=1)
    assert group.workers() == []
    assert b"worker=" not in (await group.ask("/metrics")).body
