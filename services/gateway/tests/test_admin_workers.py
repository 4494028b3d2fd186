"""/admin/gateway with several workers: one answer for all, one action in all, and what is held outlives a worker."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from services.gateway.tests.group import Group
from services.gateway.tests.rig import eventually
from services.gateway.tests.test_workers import ANOTHER_ROUTE, launch, start  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow  # real processes

ADMIN = "/admin/gateway"


async def operate(group: Group, what: str, *, method: str = "GET") -> Any:
    reply = await group.ask(f"{ADMIN}/{what}", method=method, host="127.0.0.1")
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


async def statuses(group: Group, count: int = 24) -> set[int]:
    """Those of calls on as many connections, so that each worker has some."""
    return {(await group.ask("/open/x")).status for _ in range(count)}


async def test_an_action_is_done_in_every_worker_and_by_the_successor_of_one_too(serve, start):  # noqa: F811
    group = await start(await serve())
    done = await operate(group, "breakers/open/open", method="POST")
    assert done["workers"] == {"answered": [1, 2]}
    assert await statuses(group) == {503}

    os.kill(group.workers()[0], signal.SIGKILL)
    await group.logged("started", 3)
    assert await statuses(group) == {503}
    assert (await operate(group, "breakers"))["services"]["open"]["held"] == "open"

    await operate(group, "breakers/open/auto", method="POST")
    assert await statuses(group) == {200}
    assert [(line["action"], line["upstream"]) for line in group.lines("audit")] == [
        ("open_breaker", "open"),
        ("auto_breaker", "open"),
    ]


async def test_a_successor_holds_single_replicas_and_drains_as_the_others_do(serve, start):  # noqa: F811
    group = await start(await serve())
    (address,) = (await operate(group, "breakers"))["services"]["open"]["replicas"]
    await operate(group, f"breakers/open/{address}/close", method="POST")
    await operate(group, f"instances/open/{address}/drain?force=true", method="POST")
    os.kill(group.workers()[0], signal.SIGKILL)
    await group.logged("started", 3)
    found = await operate(group, "instances")
    (replica,) = found["services"]["open"]["replicas"]
    assert found["workers"] == {"answered": [1, 2]}
    assert (replica["held"], replica["state"], replica["breaker"]) == ("closed", "draining", "closed")
    assert await statuses(group) == {503}


async def test_numbers_of_all_workers_are_added_up(serve, start):  # noqa: F811
    group = await start(await serve())
    await statuses(group, 10)
    found = await operate(group, "instances")
    (replica,) = found["services"]["open"]["replicas"]
    assert replica["attempts"]["ok"] == 10


async def test_a_worker_that_says_nothing_is_named(serve, start):  # noqa: F811
    group = await start(await serve())
    stopped = group.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    # The system spreads connections over the workers: those of the stopped one wait.
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(operate(group, "breakers")) for _ in range(16)]
        await eventually(lambda: any(task.done() for task in asked))
        os.kill(stopped, signal.SIGCONT)
    assert [1] in [[len(task.result()["workers"].get("failed", ()))] for task in asked]


async def test_a_reload_is_done_in_every_worker_and_their_successors_start_with_it(serve, start, tmp_path):  # noqa: F811
    group = await start(await serve())
    (tmp_path / "config.toml").write_text(ANOTHER_ROUTE)
    assert (await operate(group, "reload", method="POST"))["workers"] == {"answered": [1, 2]}
    assert len(group.lines("config_reloaded")) == 2
    for pid in group.workers():
        os.kill(pid, signal.SIGKILL)
    await group.logged("started", 4)
    assert {(await group.ask("/another/x")).status for _ in range(24)} == {200}


async def test_an_action_whose_client_waits_no_longer_is_finished_and_leaves_its_line(serve, start):  # noqa: F811
    group = await start(await serve())
    stopped, _ = group.workers()
    os.kill(stopped, signal.SIGSTOP)
    wires = [await group.connect() for _ in range(16)]
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(wire.ask(hasty_request(n))) for n, wire in enumerate(wires)]
        await eventually(lambda: any(task.done() for task in asked))
        cut = {f"cut-{n}" for n, task in enumerate(asked) if task.done() and task.result().status == 504}
        os.kill(stopped, signal.SIGCONT)
    assert cut
    await eventually(lambda: cut <= {line["request_id"] for line in group.lines("audit")})
    assert {line["after"] for line in group.lines("audit")} == {"held open"}
    assert await statuses(group) == {503}
    for wire in wires:
        wire.abort()


def hasty_request(number: int) -> bytes:
    lines = (
        "POST /admin/gateway/breakers/open/open HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Length: 0",
        "X-Request-Timeout-Ms: 100",
        f"X-Request-ID: cut-{number}",
    )
    return "\r\n".join([*lines, "", ""]).encode()
