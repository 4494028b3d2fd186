"""Realtime through the gateway: chat over replicas, direct messages, replies, and the pulse as SSE."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.e2e.client import Account, Fleet, MakeAccount, assert_problem

RECEIVE_TIMEOUT_S = 10


@asynccontextmanager
async def chat(fleet: Fleet, account: Account, **options: Any) -> AsyncIterator[ClientConnection]:
    """A connection that has been welcomed."""
    async with connect(
        f"{fleet.websocket_url}/ws/chat", additional_headers=account.headers, proxy=None, **options
    ) as socket:
        await until(socket, lambda frame: frame["type"] == "welcome")
        yield socket


async def until(socket: ClientConnection, wanted: Any) -> dict[str, Any]:
    """Return the first frame that fits, passing over others."""
    async with asyncio.timeout(RECEIVE_TIMEOUT_S):
        while True:
            frame: dict[str, Any] = json.loads(await socket.recv())
            if wanted(frame):
                return frame


def saying(content: str) -> Any:
    return lambda frame: frame["type"] == "message" and frame["content"] == content


async def say(socket: ClientConnection, **frame: Any) -> None:
    await socket.send(json.dumps(frame))


@asynccontextmanager
async def two_replicas(
    fleet: Fleet, first: Account, second: Account
) -> AsyncIterator[tuple[ClientConnection, ClientConnection]]:
    """Two connections on different replicas, or on one where the fleet has only one."""

    async def open_one(account: Account) -> tuple[ClientConnection, str]:
        # Without a bound: a connection that nobody reads stops at 16 frames and then takes 10 s to close.
        options = {"additional_headers": account.headers, "proxy": None, "max_queue": None}
        socket = await connect(f"{fleet.websocket_url}/ws/chat", **options)
        return socket, (await until(socket, lambda frame: frame["type"] == "welcome"))["replica"]

    opened: list[ClientConnection] = []
    try:
        here, replica = await open_one(first)
        opened.append(here)
        for _ in range(8):
            there, other = await open_one(second)
            opened.append(there)
            if other != replica:
                break
        yield here, opened[-1]
    finally:
        for socket in opened:
            await socket.close()


async def test_a_message_reaches_both_replicas_and_its_sender(fleet: Fleet, make_account: MakeAccount) -> None:
    first, second = await make_account(), await make_account()
    async with two_replicas(fleet, first, second) as (here, there):
        content = f"hi {secrets.token_hex(4)}"
        await say(here, type="message", room="lobby", content=content)
        for socket in (here, there):
            frame = await until(socket, saying(content))
            assert frame["room"] == "lobby"


@pytest.mark.skipif("ROUNDHOUSE_URL" in os.environ, reason="the fleet at ROUNDHOUSE_URL may have one replica only")
async def test_the_fleet_of_the_tests_spreads_sockets_over_two_replicas(
    fleet: Fleet, make_account: MakeAccount
) -> None:
    account = await make_account()
    replicas = set()
    sockets = []
    try:
        for _ in range(9):
            socket = await connect(f"{fleet.websocket_url}/ws/chat", additional_headers=account.headers, proxy=None)
            sockets.append(socket)
            replicas.add((await until(socket, lambda frame: frame["type"] == "welcome"))["replica"])
    finally:
        for socket in sockets:
            await socket.close()
    assert len(replicas) == 2


async def test_a_burst_of_fifty_arrives_whole_and_in_order(fleet: Fleet, make_account: MakeAccount) -> None:
    first, second = await make_account(), await make_account()
    async with two_replicas(fleet, first, second) as (here, there):
        mark = secrets.token_hex(4)
        for number in range(50):
            await say(here, type="message", room="lobby", content=f"{mark}:{number}")
        for socket in (here, there):
            got: list[str] = []
            while len(got) < 50:
                frame = await until(
                    socket, lambda frame: frame["type"] == "message" and frame["content"].startswith(mark)
                )
                got.append(frame["content"])
            assert got == [f"{mark}:{number}" for number in range(50)]


async def test_a_room_is_joined_and_left(fleet: Fleet, make_account: MakeAccount) -> None:
    first, second = await make_account(), await make_account()
    room = f"r-{secrets.token_hex(4)}"
    async with two_replicas(fleet, first, second) as (here, there):
        for socket in (here, there):
            await say(socket, type="join", room=room, id="j1")
            assert (await until(socket, lambda frame: frame.get("id") == "j1"))["type"] == "reply"
        await say(here, type="message", room=room, content="only here")
        assert (await until(there, saying("only here")))["room"] == room
        await say(there, type="leave", room=room, id="l1")
        await until(there, lambda frame: frame.get("id") == "l1")
        await say(here, type="message", room=room, content="gone?")
        await until(here, saying("gone?"))
        await say(there, type="message", room="lobby", content="still here")
        seen: list[str] = []
        await until(there, lambda frame: seen.append(frame.get("content", "")) or frame.get("content") == "still here")
        assert "gone?" not in seen


async def test_a_direct_message_reaches_only_its_receiver(fleet: Fleet, make_account: MakeAccount) -> None:
    first, second = await make_account(), await make_account()
    async with two_replicas(fleet, first, second) as (here, there):
        await say(here, type="direct", to=second.id, content="psst")
        frame = await until(there, lambda frame: frame["type"] == "direct")
        assert frame["content"] == "psst"


async def test_a_request_gets_the_reply_with_its_id(fleet: Fleet, account: Account) -> None:
    async with chat(fleet, account) as socket:
        await say(socket, type="ping", id=7)
        assert (await until(socket, lambda frame: frame.get("id") == 7))["type"] in ("reply", "pong")


@pytest.mark.parametrize(
    "garbage",
    [
        "{",
        "[]",
        '"x"',
        "null",
        '{"type":"nope"}',
        '{"type":"message"}',
        '{"type":"message","room":5,"content":"x"}',
        '{"type":"message","room":"a.>","content":"x"}',
    ],
)
async def test_garbage_gets_a_typed_error_and_the_connection_goes_on(
    fleet: Fleet, account: Account, garbage: str
) -> None:
    async with chat(fleet, account) as socket:
        await socket.send(garbage)
        error = await until(socket, lambda frame: frame["type"] == "error")
        assert error["code"]
        await say(socket, type="message", room="lobby", content="fine")
        await until(socket, saying("fine"))


async def test_an_oversized_message_closes_only_that_connection(fleet: Fleet, make_account: MakeAccount) -> None:
    first, second = await make_account(), await make_account()
    async with chat(fleet, first) as loud, chat(fleet, second) as other:
        await loud.send("x" * 100_000)
        with pytest.raises(websockets.ConnectionClosed):
            await until(loud, lambda _: False)
        assert loud.close_code == 1009
        await say(other, type="message", room="lobby", content="unharmed")
        await until(other, saying("unharmed"))


@pytest.mark.parametrize("token", ["", "x.y.z"])
async def test_a_socket_without_a_good_token_is_refused_before_it_opens(fleet: Fleet, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(f"{fleet.websocket_url}/ws/chat", additional_headers=headers, proxy=None):
            pass
    assert caught.value.response.status_code == 401


async def test_a_socket_of_a_foreign_page_is_refused(fleet: Fleet, account: Account) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(
            f"{fleet.websocket_url}/ws/chat",
            additional_headers=account.headers,
            origin="https://evil.example",
            proxy=None,
        ):
            pass
    assert caught.value.response.status_code == 403


async def test_the_token_may_come_as_a_query_parameter(fleet: Fleet, account: Account) -> None:
    async with connect(f"{fleet.websocket_url}/ws/chat?token={account.token}", proxy=None) as socket:
        await until(socket, lambda frame: frame["type"] == "welcome")


async def pulses(
    client: httpx2.AsyncClient, account: Account, count: int, last_event_id: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """Read so many pulse events: `(id, data)`."""
    headers = {**account.headers, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
    found: list[tuple[str, dict[str, Any]]] = []
    async with asyncio.timeout(30), client.stream("GET", "/sse/stream", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        event_id = ""
        async for line in response.aiter_lines():
            if line.startswith("id:"):
                event_id = line[3:].strip()
            elif line.startswith("data:"):
                found.append((event_id, json.loads(line[5:])))
                if len(found) == count:
                    break
    return found


async def test_the_pulse_comes_once_across_replicas_and_resumes_by_its_id(
    client: httpx2.AsyncClient, account: Account
) -> None:
    first = await pulses(client, account, 3)
    numbers = [data["n"] for _, data in first]
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert all("time" in data for _, data in first)

    resumed = await pulses(client, account, 2, last_event_id=first[0][0])

    assert resumed == first[1:3]


async def test_a_malformed_position_is_400(client: httpx2.AsyncClient, account: Account) -> None:
    response = await client.get("/sse/stream", headers={**account.headers, "Last-Event-ID": "garbage"})
    assert_problem(response, 400)
