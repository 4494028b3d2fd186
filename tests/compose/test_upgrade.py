"""An upgrade under load: the fleet of the previous commit is replaced by this one, service by service, and part of it back.

Replacing a service behind the gateway loses no call. One port has one gateway, so replacing that one loses calls while its port is
closed, never as an answer with a fault: a cluster's Service, with several gateways behind it, has no such gap.
"""

import asyncio
import json
import secrets
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.compose.stack import ROOT, Stack, own_stack
from tests.load import Tally, assert_none_lost, during

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATHS = {"users": "/users?limit=1", "compute": "/async-demo", "health": "/health/detailed"}
REPLICAS = {"users": 2, "realtime": 1, "compute": 2, "health": 1}


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The tree of the previous commit."""
    archive = tmp_path / "previous.tar"
    done = subprocess.run(
        ("git", "archive", "-o", str(archive), "HEAD~1"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"there is no previous commit here: {done.stderr.strip()[:100]}")
    tree = tmp_path / "previous"
    with tarfile.open(archive) as opened:
        opened.extractall(tree, filter="data")
    if not (tree / "compose.yaml").exists():
        pytest.skip("the previous commit has no compose.yaml")
    return tree


@pytest.fixture
def old_stack(engine: None, previous: Path) -> Iterator[Stack]:
    """The fleet of the previous commit, running; the images of this one are built."""
    with own_stack() as stack:
        new = stack.tag
        stack.compose("build", timeout_s=400)
        stack.use(previous, f"{new}-previous")
        stack.compose("build", timeout_s=400)
        stack.up(*(word for name, count in REPLICAS.items() for word in ("--scale", f"{name}={count}")))
        stack.until_state("up")
        yield stack


def replace(stack: Stack, service: str) -> None:
    """Start as many new replicas beside the old ones, then stop the old ones: what docs call a rolling update."""
    old = stack.ids(service)
    stack.scale(service, 2 * len(old))
    for container in old:
        subprocess.run(("docker", "stop", container), check=True, capture_output=True, timeout=60)
        subprocess.run(("docker", "rm", container), check=True, capture_output=True, timeout=30)
    assert len(stack.ids(service)) == len(old)


async def test_the_previous_fleet_is_replaced_under_load(old_stack: Stack, previous: Path) -> None:
    stack = old_stack
    old_tag, new_tag = stack.tag, stack.project
    headers = {"Authorization": f"Bearer {stack.admin_token()}"}
    room = f"r-{secrets.token_hex(4)}"
    position = await position_of(stack, headers, room)
    await say(stack, headers, room, "said before the upgrade")

    stack.use(ROOT, new_tag)
    await replace_under_load(stack, headers, "users")  # new users behind the old gateway
    await replace_under_load(stack, headers, "realtime")
    await replace_gateway(stack, headers)
    await replace_under_load(stack, headers, "compute")
    await replace_under_load(stack, headers, "health")
    stack.use(previous, old_tag)
    await replace_under_load(stack, headers, "users")  # old users behind the new gateway
    stack.use(ROOT, new_tag)
    await replace_under_load(stack, headers, "users")

    async with events(stack, headers, room, position) as heard:
        assert "said before the upgrade" in await anext(heard)
        await say(stack, headers, room, "said after it")
        assert "said after it" in await anext(heard)


async def replace_under_load(stack: Stack, headers: dict[str, str], service: str) -> None:
    tallies = {path: Tally() for path in PATHS.values()}

    async def work() -> None:
        await asyncio.to_thread(replace, stack, service)
        await asyncio.to_thread(stack.until_state, "up", 30)

    await during(stack.url, headers, tallies, work)
    for tally in tallies.values():
        assert_none_lost(tally)


async def replace_gateway(stack: Stack, headers: dict[str, str]) -> None:
    """Put a new gateway in the old one's place, while callers ask. A call that found no gateway has the status 0."""
    tallies = {path: Tally() for path in PATHS.values()}

    async def work() -> None:
        await asyncio.to_thread(stack.up, "--no-deps", "gateway")
        await asyncio.to_thread(stack.until_state, "up", 30)

    await during(stack.url, headers, tallies, work)
    for tally in tallies.values():
        assert set(tally.statuses) <= {0, 200}, f"{tally.statuses} {tally.problems[:5]}"


async def position_of(stack: Stack, headers: dict[str, str], room: str) -> str:
    """Return the position at which the stream of a room begins now."""
    async with (
        httpx2.AsyncClient(base_url=stack.url, timeout=15, trust_env=False) as client,
        client.stream("GET", "/sse/stream", params={"ch": f"chat:{room}"}, headers=headers) as stream,
    ):
        assert stream.status_code == 200
        return stream.headers["last-event-id"]


async def say(stack: Stack, headers: dict[str, str], room: str, content: str) -> None:
    """Say something in a room and wait until it is stored."""
    async with (
        asyncio.timeout(15),
        connect(f"ws{stack.url.removeprefix('http')}/ws/chat", additional_headers=headers, proxy=None) as socket,
    ):
        await socket.send(json.dumps({"type": "join", "room": room}))
        await socket.send(json.dumps({"type": "message", "room": room, "content": content, "id": "said"}))
        async for text in socket:
            frame = json.loads(text)
            assert frame["type"] != "error", frame
            if frame["type"] == "reply" and frame["id"] == "said":
                return


@asynccontextmanager
async def events(stack: Stack, headers: dict[str, str], room: str, since: str) -> AsyncIterator[AsyncIterator[str]]:
    """The data of a room's messages from a position on."""
    async with (
        asyncio.timeout(30),
        httpx2.AsyncClient(base_url=stack.url, timeout=20, trust_env=False) as client,
        client.stream(
            "GET", "/sse/stream", params={"ch": f"chat:{room}"}, headers={**headers, "Last-Event-ID": since}
        ) as stream,
    ):
        assert stream.status_code == 200

        async def data() -> AsyncIterator[str]:
            async for line in stream.aiter_lines():
                if line.startswith("data:") and "content" in line:
                    yield line

        yield data()
