"""The event stream through real sockets: the pulse once over the fleet, and ids that resume exactly, on any replica."""

import json

import httpx2
import pytest

from services.realtime.domain.channels import LOG
from services.realtime.tests.conftest import Chatter, Replica, Start, eventually, starter
from shared.ids import new_id
from shared.testing.tokens import TokenMint

pytestmark = pytest.mark.slow  # the pulse ticks every 2 s

Pair = tuple[Replica, Replica]


async def say_all(chatter: Chatter, room: str, contents: list[str]) -> None:
    for content in contents:
        assert "code" not in await chatter.say(room, content)


async def get(replica: Replica, query: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=5) as client:
        return await client.get(f"{replica.http}/sse/stream{query}", headers=headers or replica.mint.bearer())


async def test_a_stream_says_at_once_that_it_is_there(start: Start) -> None:
    replica = await start()
    async with replica.events() as events:
        headers = events.response.headers
        assert events.comments == ["hb"]
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert headers["last-event-id"].startswith(f"{replica.hub.epoch}:")


async def test_the_pulse_ticks_once_over_two_replicas(nats_url: str, mint: TokenMint) -> None:
    async with starter(nats_url, mint) as start, (await start()).events() as one, (await start()).events() as other:
        there = await other.next()
        while (here := await one.next())["id"] != there["id"]:
            pass
        assert here == there
        following = await one.next()
        assert following == await other.next()

    data = json.loads(here["data"])
    assert here["event"] == "pulse"
    assert set(data) == {"n", "time"}
    assert json.loads(following["data"])["n"] == data["n"] + 1
    assert int(following["id"].split(":")[1]) > int(here["id"].split(":")[1])


async def test_a_stream_resumes_on_another_replica_without_a_gap_or_a_duplicate(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada:
        await ada.ask(type="join", room=room)
        async with pair[0].events(f"?ch=chat:{room}") as events:
            await say_all(ada, room, ["1", "2", "3"])
            await events.next()
            second = await events.next()
        await say_all(ada, room, ["4", "5"])

        async with pair[1].events(f"?ch=chat:{room}", **{"Last-Event-ID": second["id"]}) as resumed:
            assert await resumed.contents(3) == ["3", "4", "5"]
            await say_all(ada, room, ["6"])
            assert await resumed.contents(1) == ["6"]


async def test_the_header_of_a_fresh_stream_is_a_place_to_resume_from(start: Start, room: str) -> None:
    replica = await start()
    async with replica.chatter() as ada:
        await ada.ask(type="join", room=room)
        async with replica.events(f"?ch=chat:{room}") as events:
            place = events.response.headers["last-event-id"]
        await say_all(ada, room, ["1", "2"])
        async with replica.events(f"?ch=chat:{room}&since={place}") as events:
            assert await events.contents(2) == ["1", "2"]


async def test_streaming_and_publishing_at_once_loses_and_repeats_nothing(pair: Pair, room: str) -> None:
    async with pair[0].chatter() as ada:
        await ada.ask(type="join", room=room)
        await say_all(ada, room, ["0"])
        seen: list[str] = []
        place = f"{pair[0].hub.epoch}:0"
        for number in range(1, 31):
            await ada.send(type="message", room=room, content=str(number))
            replica = pair[number % 2]
            async with replica.events(f"?ch=chat:{room}&since={place}") as events:
                event = await events.next()
                seen.append(json.loads(event["data"])["content"])
                place = event["id"]
        assert seen == [str(number) for number in range(30)]


async def test_the_header_wins_over_since(start: Start, room: str) -> None:
    replica = await start()
    async with replica.chatter() as ada:
        await ada.ask(type="join", room=room)
        places = [(await ada.say(room, str(number)))["id"] for number in range(3)]
        async with replica.events(f"?ch=chat:{room}&since={places[0]}", **{"Last-Event-ID": places[1]}) as events:
            assert await events.contents(1) == ["2"]


async def test_a_place_of_another_epoch_begins_live_with_a_reset(start: Start, room: str) -> None:
    replica = await start()
    async with replica.chatter() as ada, replica.events(f"?ch=chat:{room}&since=abc:3") as events:
        assert (await events.next())["event"] == "reset"
        await ada.ask(type="join", room=room)
        await say_all(ada, room, ["live"])
        assert await events.contents(1) == ["live"]


async def test_a_place_from_the_future_is_a_reset(start: Start, room: str) -> None:
    replica = await start()
    async with replica.events(f"?ch=chat:{room}&since={replica.hub.epoch}:999999999") as events:
        assert (await events.next())["event"] == "reset"


async def test_a_place_older_than_the_log_is_a_reset(start_on_each_bus: Start, room: str) -> None:
    replica = await start_on_each_bus(frames_burst=1000)
    async with replica.chatter() as ada:
        await ada.ask(type="join", room=room)
        first = (await ada.say(room, "0"))["id"]
        second = (await ada.say(room, "1"))["id"]
        await say_all(ada, room, [str(number) for number in range(2, LOG.messages_per_subject_max + 1)])
        async with replica.events(f"?ch=chat:{room}&since={first}") as events:
            assert (await events.next())["event"] == "reset"
        async with replica.events(f"?ch=chat:{room}&since={second}") as events:
            assert await events.contents(2) == ["2", "3"]


async def test_a_malformed_place_is_400(start: Start) -> None:
    replica = await start()
    for place in ("x", "abc", "abc:", ":1", "abc:-1", "abc:01", "ABC:1", "abc:1:2", "abc:9" + "9" * 30):
        response = await get(replica, f"?since={place}")
        assert (place, response.status_code) == (place, 400)
        assert response.json()["code"] == "malformed_position"


async def test_a_channel_that_does_not_exist_is_422(start: Start) -> None:
    replica = await start()
    for channel in ("chat:", "chat:a b", "chat:*", "chat:>", "secret:x", "lobby", "public:other", "chat:a%0A"):
        response = await get(replica, f"?ch={channel}")
        assert (channel, response.status_code) == (channel, 422)
        assert response.json()["errors"][0]["field"] == "query.ch.0"


async def test_two_channels_are_422_for_now(start: Start) -> None:
    assert (await get(await start(), "?ch=chat:a&ch=chat:b")).status_code == 422


async def test_a_stream_needs_a_token_and_takes_it_from_the_query(start: Start) -> None:
    replica = await start()
    response = await get(replica, "", headers={"Accept": "text/event-stream"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    async with (
        httpx2.AsyncClient(trust_env=False, verify=False) as client,
        client.stream("GET", f"{replica.http}/sse/stream?token={replica.mint.token()}") as allowed,
    ):
        assert allowed.status_code == 200


async def test_silence_is_broken_by_heartbeats(start: Start, room: str) -> None:
    replica = await start(heartbeat_s=0.05)
    async with replica.events(f"?ch=chat:{room}") as events:
        await events.block()
        await events.block()
        assert events.comments == ["hb"] * 3


async def test_a_client_that_goes_away_frees_everything(start: Start, room: str) -> None:
    replica = await start()
    async with replica.events(f"?ch=chat:{room}"):
        assert len(replica.hub.peers) == 1
    await eventually(lambda: not replica.hub.peers)
    channel = replica.hub.channels.get(f"chat:{room}")
    assert channel is not None
    assert not channel.members


async def test_streams_of_a_user_are_bounded(start: Start) -> None:
    replica = await start(connections_per_user_max=1)
    bearer = replica.mint.bearer(new_id())
    async with replica.events(**bearer):
        response = await get(replica, "", headers=bearer)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "5"


async def test_a_stream_ends_when_its_token_does(start: Start) -> None:
    replica = await start()
    # 30 s of leeway are granted after the end.
    async with replica.events(**replica.mint.bearer(lasts_s=-28)) as events:
        await events.rest()
