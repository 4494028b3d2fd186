"""Chat through real sockets and two replicas: what one says all hear, in order, and every refusal is typed."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from services.realtime.tests.conftest import Replica, Start, eventually
from shared.ids import new_id

Pair = tuple[Replica, Replica]


async def test_everyone_starts_in_the_lobby_and_is_greeted(start: Start) -> None:
    replica = await start()
    user = new_id()
    async with replica.raw(headers=replica.mint.bearer(user)) as socket:
        welcome = json.loads(await socket.recv())
    assert welcome == {"type": "welcome", "user": user, "replica": welcome["replica"], "rooms": ["lobby"]}
    assert len(welcome["replica"]) == 8


async def test_a_message_reaches_the_sender_and_the_other_replica_as_the_same_frame(pair: Pair) -> None:
    async with pair[0].chatter() as ada, pair[1].chatter() as bob:
        await ada.send(type="message", room="lobby", content="hi")
        heard, own = await bob.until("message"), await ada.until("message")

    assert heard == own
    assert heard["content"] == "hi"
    assert heard["room"] == "lobby"
    assert heard["from"] == {"id": ada.user}
    epoch, _, offset = heard["id"].partition(":")
    assert epoch == pair[0].hub.epoch == pair[1].hub.epoch
    assert int(offset) > 0
    assert heard["time"].endswith("Z")


async def test_a_burst_of_fifty_arrives_whole_and_in_order_everywhere(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada, pair[1].chatter() as bob:
        await ada.ask(type="join", room=room)
        await bob.ask(type="join", room=room)
        for number in range(50):
            await ada.send(type="message", room=room, content=str(number))

        expected = [str(number) for number in range(50)]
        assert await bob.contents(50) == expected
        assert await ada.contents(50) == expected


async def test_two_who_talk_at_once_are_heard_in_one_order(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada, pair[1].chatter() as bob:
        await ada.ask(type="join", room=room)
        await bob.ask(type="join", room=room)
        await asyncio.gather(
            *(ada.send(type="message", room=room, content=f"a{n}") for n in range(20)),
            *(bob.send(type="message", room=room, content=f"b{n}") for n in range(20)),
        )

        assert await ada.contents(40) == await bob.contents(40)


async def test_joins_and_leaves_are_told_on_every_replica(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada, pair[1].chatter() as bob:
        assert await ada.ask(type="join", room=room) == {"room": room}
        assert await ada.until("joined") == {"type": "joined", "room": room, "user": ada.user}
        await bob.send(type="join", room=room)
        assert await bob.until("joined") == {"type": "joined", "room": room, "user": bob.user}
        assert await ada.until("joined") == {"type": "joined", "room": room, "user": bob.user}

        await bob.send(type="leave", room=room)
        assert await bob.until("left") == {"type": "left", "room": room, "user": bob.user}
        assert await ada.until("left") == {"type": "left", "room": room, "user": bob.user}


async def test_a_client_that_goes_away_leaves_its_rooms(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada:
        await ada.ask(type="join", room=room)
        async with pair[1].chatter() as bob:
            await bob.ask(type="join", room=room)
        assert (await ada.until("left"))["user"] == bob.user
    await eventually(lambda: not pair[0].hub.peers and not pair[1].hub.peers)


async def test_who_left_hears_nothing_more(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada, pair[1].chatter() as bob:
        await ada.ask(type="join", room=room)
        await bob.ask(type="join", room=room)
        await bob.ask(type="leave", room=room)
        await ada.say(room, "alone")
        await ada.say("lobby", "for all")
        assert await bob.contents(1) == ["for all"]


async def test_rooms_lists_ones_own(start: Start, room: str) -> None:
    async with (await start()).chatter() as ada:
        await ada.ask(type="join", room=room)
        assert await ada.ask(type="rooms") == {"rooms": ["lobby", room]}
        await ada.send(type="rooms")
        assert await ada.until("rooms") == {"type": "rooms", "rooms": ["lobby", room]}


async def test_ping_is_answered_with_pong(start: Start) -> None:
    async with (await start()).chatter() as ada:
        await ada.send(type="ping")
        assert await ada.until("pong") == {"type": "pong"}
        assert await ada.ask(type="ping") == {"pong": True}


async def test_a_reply_carries_the_id_that_was_asked_with(start: Start, room: str) -> None:
    async with (await start()).chatter() as ada:
        await ada.send(type="join", room=room, id="first")
        assert await ada.until("reply") == {"type": "reply", "id": "first", "ok": {"room": room}}
        said = await ada.say(room, "hi")
        assert said == {"id": said["id"]}


async def test_a_direct_message_reaches_every_connection_of_the_user_and_the_sender(pair: Pair) -> None:
    user = new_id()
    async with pair[0].chatter(user) as first, pair[1].chatter(user) as second, pair[0].chatter() as ada:
        answer = await ada.ask(type="direct", to=user, content="psst")
        frames = [await first.until("direct"), await second.until("direct")]

    assert frames[0] == frames[1]
    assert frames[0] == {
        "type": "direct",
        "from": {"id": ada.user},
        "to": user,
        "content": "psst",
        "id": answer["id"],
        "time": frames[0]["time"],
    }


async def test_the_sender_of_a_direct_message_sees_it_once(start: Start) -> None:
    replica = await start()
    async with replica.chatter() as ada, replica.chatter() as bob:
        for to in (bob.user, ada.user):
            await ada.send(type="direct", to=to, content="psst")
            assert (await ada.until("direct"))["to"] == to
        await ada.send(type="ping")
        assert (await ada.next())["type"] == "pong"


async def test_a_direct_message_to_nobody_is_an_error(start: Start) -> None:
    async with (await start()).chatter() as ada:
        answer = await ada.ask(type="direct", to=new_id(), content="anyone?")
        assert answer["code"] == "user_not_connected"


BAD_FRAMES = [
    ("{", "malformed_json"),
    ("", "malformed_json"),
    ("[" * 5000, "malformed_json"),
    ('"hi"', "invalid_frame"),
    ("{}", "invalid_frame"),
    ('{"type": "dance"}', "unknown_type"),
    ('{"type": 7}', "unknown_type"),
    ('{"type": "message", "room": "lobby"}', "invalid_frame"),
    ('{"type": "message", "room": "lobby", "content": 5}', "invalid_frame"),
    ('{"type": "message", "room": "lobby", "content": "hi", "admin": true}', "invalid_frame"),
    ('{"type": "message", "room": "a.>\\n", "content": "hi"}', "invalid_frame"),
    ('{"type": "join", "room": "*"}', "invalid_frame"),
    ('{"type": "join", "room": "rt.>"}', "invalid_frame"),
    ('{"type": "direct", "to": "*", "content": "hi"}', "invalid_frame"),
]


async def test_a_bad_frame_is_a_typed_error_and_the_connection_goes_on(start: Start) -> None:
    async with (await start()).chatter() as ada:
        for text, code in BAD_FRAMES:
            await ada.socket.send(text)
            assert (text, (await ada.until("error"))["code"]) == (text, code)
        assert "id" in await ada.say("lobby", "still here")


async def test_a_bad_frame_with_an_id_is_answered_with_it(start: Start) -> None:
    async with (await start()).chatter() as ada:
        assert (await ada.ask(type="message", content=""))["code"] == "invalid_frame"
        assert (await ada.ask(type="message", content="x" * 4001))["code"] == "invalid_frame"
        assert "id" in await ada.ask(type="message", content="x" * 4000)


async def test_binary_is_a_bad_frame(start: Start) -> None:
    async with (await start()).chatter() as ada:
        await ada.socket.send(b"\x00\x01")
        assert (await ada.until("error"))["code"] == "invalid_frame"


async def test_twenty_bad_frames_in_a_row_close_with_4400(start: Start) -> None:
    replica = await start()
    async with replica.chatter() as ada:
        for _ in range(19):
            await ada.socket.send("nonsense")
        await ada.say("lobby", "sorry")
        for _ in range(20):
            await ada.socket.send("nonsense")
        assert await ada.close_code() == 4400


async def test_speaking_in_a_room_one_is_not_in_is_refused(start: Start, room: str) -> None:
    async with (await start()).chatter() as ada:
        assert (await ada.say(room, "hello?"))["code"] == "not_in_room"


async def test_rooms_of_a_connection_are_bounded(start: Start, room: str) -> None:
    async with (await start(rooms_max=3)).chatter() as ada:
        assert "room" in await ada.ask(type="join", room=f"{room}-1")
        assert "room" in await ada.ask(type="join", room=f"{room}-2")
        assert (await ada.ask(type="join", room=f"{room}-3"))["code"] == "room_limit"
        await ada.ask(type="leave", room="lobby")
        assert "room" in await ada.ask(type="join", room=f"{room}-3")


async def test_a_flood_is_refused_then_closed_with_4429_and_others_go_on(start: Start) -> None:
    replica = await start(frames_per_s=0.1)
    async with replica.chatter() as ada, replica.chatter() as bob:
        for _ in range(61):
            await ada.send(type="ping")
        assert (await ada.until("error"))["code"] == "rate_limited"
        for _ in range(60):
            await ada.send(type="ping")
        assert await ada.close_code() == 4429
        await bob.say("lobby", "quiet again")


async def test_an_oversized_message_closes_with_1009(start: Start) -> None:
    replica = await start()
    async with replica.chatter() as ada, replica.chatter() as bob:
        await ada.socket.send("x" * (64 * 1024 + 1))
        assert await ada.close_code() == 1009
        await bob.say("lobby", "still here")


async def test_invalid_utf8_closes_with_1007(start: Start) -> None:
    async with (await start()).chatter() as ada:
        await ada.socket.send(b"\xff\xfe", text=True)
        assert await ada.close_code() == 1007


async def test_the_eleventh_connection_of_a_user_is_closed_with_1013(start: Start) -> None:
    replica = await start(connections_per_user_max=2)
    user = new_id()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(replica.chatter(user))
        async with replica.raw(headers=replica.mint.bearer(user)) as socket:
            await socket.wait_closed()
            assert socket.close_code == 1013
        await eventually(lambda: len(replica.hub.peers) == 2)


@pytest.mark.parametrize("way", ["header", "query", "ticket", "subprotocol"])
async def test_the_token_may_come_in_four_ways(start: Start, way: str) -> None:
    replica = await start()
    token = replica.mint.token()
    offered = [Subprotocol("rt.v1.json")]
    if way == "header":
        block = replica.raw(headers={"Authorization": f"Bearer {token}"}, subprotocols=offered)
    elif way == "query":
        block = replica.raw(query=f"?token={token}", subprotocols=offered)
    elif way == "ticket":
        block = replica.raw(query=f"?ticket={replica.mint.ticket()}", subprotocols=offered)
    else:
        block = replica.raw(subprotocols=[*offered, Subprotocol(f"bearer.{token}")])
    async with block as socket:
        assert socket.subprotocol == "rt.v1.json"
        assert json.loads(await socket.recv())["type"] == "welcome"


async def test_no_subprotocol_is_answered_where_ours_is_not_offered(start: Start) -> None:
    replica = await start()
    async with replica.raw(headers=replica.mint.bearer()) as socket:
        assert socket.subprotocol is None


async def test_a_bad_ticket_is_refused_and_so_is_one_in_the_place_of_a_token(start: Start) -> None:
    replica = await start()
    expired, good = replica.mint.ticket(lasts_s=-10), replica.mint.ticket()
    for query in (f"?ticket={expired}", "?ticket=x", f"?ticket={replica.mint.token()}", f"?token={good}"):
        with pytest.raises(InvalidStatus) as caught:
            async with replica.raw(query=query):
                pass
        assert caught.value.response.status_code == 401


async def test_a_handshake_without_a_valid_token_is_refused_with_a_401_problem(start: Start) -> None:
    replica = await start()
    expired = replica.mint.token(lasts_s=-60)
    for headers, code in (
        (None, "unauthorized"),
        ({"Authorization": "Bearer nonsense"}, "token_invalid"),
        ({"Authorization": f"Bearer {expired}"}, "token_expired"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            async with replica.raw(headers=headers):
                pass
        response = caught.value.response
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"] == "Bearer"
        assert json.loads(response.body or b"")["code"] == code
    assert not replica.hub.peers
