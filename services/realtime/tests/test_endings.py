"""How connections end: expiry, orders, slow readers and the drain; and how the service goes on without its bus."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from services.realtime.hub.hub import Hub
from services.realtime.hub.peers import Peer
from services.realtime.tests.conftest import Replica, Start, eventually, serving
from shared.bus.connect import connect
from shared.ids import new_id
from shared.revocation import Revocation
from shared.testing.processes import NatsProcess
from shared.testing.revocation import end_session
from shared.testing.tokens import TokenMint

pytestmark = pytest.mark.slow  # deadlines and outages take seconds

Pair = tuple[Replica, Replica]


async def test_a_socket_closes_with_4401_when_its_token_ends(start: Start) -> None:
    replica = await start()
    # 30 s of leeway are granted after the end.
    async with replica.chatter(token=replica.mint.token(lasts_s=-28)) as ada:
        assert await ada.close_code() == 4401


async def test_a_socket_opened_with_a_ticket_lives_as_long_as_the_token_that_asked_for_it(start: Start) -> None:
    replica = await start()
    async with replica.raw(query=f"?ticket={replica.mint.ticket(until_s=-28)}") as socket:
        await socket.wait_closed()
        assert socket.close_code == 4401
    async with replica.raw(query=f"?ticket={replica.mint.ticket(lasts_s=-3)}") as socket:
        assert json.loads(await socket.recv())["type"] == "welcome"


async def test_an_order_to_all_replicas_closes_a_users_connections_with_4403(pair: Pair, bus_url: str) -> None:
    user = new_id()
    bus = await connect(bus_url, name="test")
    async with pair[0].chatter(user) as first, pair[1].chatter(user) as second, pair[1].chatter() as other:
        await bus.publish("ctl.realtime.all", json.dumps({"disconnect": user}).encode())
        assert [await first.close_code(), await second.close_code()] == [4403, 4403]
        await other.say("lobby", "not me")
    await bus.close()


async def test_the_connections_of_a_deleted_user_are_closed(pair: Pair, bus_url: str) -> None:
    user = new_id()
    event = {
        "specversion": "1.0",
        "id": new_id(),
        "source": "/users",
        "type": "users.user.deleted",
        "subject": user,
        "time": "2026-01-01T00:00:00Z",
        "data": {"id": user},
    }
    bus = await connect(bus_url, name="test")
    async with pair[0].chatter(user) as ada, pair[1].events(**pair[1].mint.bearer(user)) as events:
        await bus.publish("evt.users.user.deleted.v1", json.dumps(event).encode())
        assert await ada.close_code() == 4403
        await events.rest()
    await bus.close()


async def test_the_connections_of_an_ended_session_are_closed_and_its_token_refused(pair: Pair, bus_url: str) -> None:
    user = new_id()
    ended, lives = pair[0].mint.token(user), pair[0].mint.token(user)
    bearer = {"Authorization": f"Bearer {ended}"}
    async with (
        pair[0].chatter(user, token=ended) as ada,
        pair[1].events(**bearer) as events,
        pair[0].chatter(user, token=lives) as elsewhere,
    ):
        await end_session(bus_url, ended)
        assert await ada.close_code() == 4401
        await events.rest()
        await elsewhere.say("lobby", "still here")
        assert await elsewhere.contents(1) == ["still here"]
        for replica in pair:
            with pytest.raises(InvalidStatus) as caught:
                async with replica.raw(headers=bearer):
                    pass
            assert caught.value.response.status_code == 401


async def test_a_session_that_ends_during_the_handshake_leaves_no_connection(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await start()
    admit = Hub.admit

    async def admit_late(hub: Hub, peer: Peer[Any]) -> None:
        # As when the news comes while the hub still opens the user's inbox.
        assert peer.identity is not None
        now = time.time()
        replica.revoked.add(Revocation(peer.user, now, now + 60, peer.identity.session_id))
        await admit(hub, peer)

    monkeypatch.setattr(Hub, "admit", admit_late)
    with pytest.raises(InvalidStatus) as caught:
        async with replica.raw(headers=replica.mint.bearer()):
            pass
    assert caught.value.response.status_code == 401
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{replica.http}/sse/stream", headers=replica.mint.bearer())
    assert (answer.status_code, answer.json()["code"]) == (401, "session_ended")
    assert not replica.hub.peers


async def test_a_client_that_never_reads_is_closed_and_the_others_miss_nothing(start: Start) -> None:
    replica = await start(outbox_bytes_max=128 * 1024, frames_burst=10_000, frames_per_s=10_000)
    async with (
        replica.chatter() as ada,
        replica.chatter() as bob,
        replica.raw(headers=replica.mint.bearer(), sock=_small_socket(replica), max_queue=1) as lazy,
    ):
        lazy.transport.pause_reading()
        await eventually(lambda: len(replica.hub.peers) == 3)
        for told in range(500):
            await ada.say("lobby", f"{told} " + "x" * 3990)
            assert (await bob.contents(1))[0].startswith(f"{told} ")
            assert (await ada.contents(1))[0].startswith(f"{told} ")
        # The server holds nothing of it any more, though it never read.
        await eventually(lambda: len(replica.server.server_state.connections) == 2)
        assert 'slow_consumers_closed_total{kind="websocket"} 1.0' in await metrics_of(replica)


def _small_socket(replica: Replica) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    found.connect(("127.0.0.1", replica.port))
    return found


async def test_a_stream_whose_client_never_reads_is_cut(start: Start) -> None:
    replica = await start(outbox_bytes_max=128 * 1024, frames_burst=10_000, frames_per_s=10_000)
    with _small_socket(replica) as lazy:
        head = (
            f"GET /sse/stream?ch=chat:lobby HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {replica.mint.token()}\r\n\r\n"
        )
        lazy.sendall(head.encode())
        await eventually(lambda: len(replica.hub.peers) == 1)
        async with replica.chatter() as ada:
            for _ in range(500):
                await ada.say("lobby", "x" * 4000)
            await eventually(lambda: len(replica.server.server_state.connections) == 1)
        assert 'slow_consumers_closed_total{kind="sse"} 1.0' in await metrics_of(replica)


async def metrics_of(replica: Replica) -> str:
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        return (await client.get(f"{replica.http}/metrics")).text


async def test_metrics_count_connections_messages_and_deliveries(start: Start, room: str) -> None:
    replica = await start()
    async with replica.chatter() as ada, replica.events(f"?ch=chat:{room}"):
        await ada.ask(type="join", room=room)
        await ada.say(room, "hi")
        await ada.until("message")
        text = await metrics_of(replica)
    assert 'connections{kind="websocket"} 1.0' in text
    assert 'connections{kind="sse"} 1.0' in text
    assert 'messages_in_total{type="message"} 1.0' in text
    assert "deliveries_total 2.0" in text


async def test_a_drain_says_goodbye_ends_streams_and_refuses_newcomers(start: Start) -> None:
    replica = await start(drain_wait_s=2)
    async with replica.chatter() as ada, replica.events() as events:
        replica.drain()
        assert await ada.until("bye") == {"type": "bye", "code": 1012, "retry_ms": [200, 5000]}
        assert await ada.close_code() == 1012
        await events.rest()
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
            assert (await client.get(f"{replica.http}/ready")).status_code == 503
        with pytest.raises(InvalidStatus) as caught:
            async with replica.raw(headers=replica.mint.bearer()):
                pass
    assert caught.value.response.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"


async def test_a_drain_moves_many_clients_without_losing_what_was_said(pair: Pair, room: str) -> None:
    async with pair[1].chatter() as ada, pair[0].events(f"?ch=chat:{room}") as events:
        await ada.ask(type="join", room=room)
        await ada.say(room, "before")
        place = (await events.next())["id"]
        pair[0].drain()
        await ada.say(room, "meanwhile")
        async with pair[1].events(f"?ch=chat:{room}", **{"Last-Event-ID": place}) as moved:
            assert await moved.contents(1) == ["meanwhile"]


@pytest.mark.slow
async def test_sockets_stay_open_while_nats_is_away_and_nothing_said_is_lost(mint: TokenMint, tmp_path: Path) -> None:
    nats = NatsProcess(tmp_path)
    nats.start()
    try:
        async with (
            serving(nats.url, mint) as one,
            serving(nats.url, mint) as other,
            one.chatter() as ada,
            other.chatter() as bob,
            other.events("?ch=chat:lobby") as events,
        ):
            await ada.say("lobby", "before")
            nats.kill()
            await eventually(lambda: not one.hub.bus.connected and not other.hub.bus.connected)
            assert (await ada.say("lobby", "into the void"))["code"] == "bus_unavailable"
            assert (await ada.ask(type="direct", to=bob.user, content="?"))["code"] == "bus_unavailable"
            nats.start()
            writer = await connect(nats.url, name="writer")
            # Stored before the replicas are back: only the log can bring it to them.
            await eventually(lambda: one.hub.bus.connected)
            await writer.close()
            await asyncio.gather(*(ada.say("lobby", f"after {number}") for number in range(1)))
            assert await bob.contents(2) == ["before", "after 0"]
            assert await events.contents(2) == ["before", "after 0"]
    finally:
        nats.kill()


@pytest.mark.slow
async def test_a_log_that_is_new_begins_a_new_epoch_and_says_so(mint: TokenMint, tmp_path: Path) -> None:
    nats = NatsProcess(tmp_path)
    nats.start()
    try:
        async with serving(nats.url, mint) as replica, replica.chatter() as ada:
            epoch = (await ada.say("lobby", "before"))["id"].split(":")[0]
            nats.kill()
            nats.wipe()
            nats.start()
            assert (await ada.until("gap")) == {"type": "gap", "room": "lobby"}
            await ada.say("lobby", "after")
            frame = await ada.until("message")
            assert frame["content"] == "after"
            assert frame["id"].split(":")[0] == replica.hub.epoch != epoch
    finally:
        nats.kill()
