"""Names, places, publications, conduct and events: rules without sockets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.realtime.domain import channels
from services.realtime.domain.conduct import BAD_FRAMES_MAX, REFUSALS_MAX, Conduct, Limits, Pace, TokenBucket
from services.realtime.domain.events import Event, EventBus, read_event
from services.realtime.domain.positions import Position, parse_position
from services.realtime.domain.publications import from_stored, to_stored
from services.realtime.tests.conftest import eventually
from shared.bus import subjects
from shared.bus.base import BusUnavailable, LogConfig, Message
from shared.bus.memory import MemoryBus
from shared.errors import BadRequest

EVENTS = LogConfig(name="EVT", subjects=("evt.>",), messages_per_subject_max=100, age_max_s=600)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.text(min_size=1, max_size=64, alphabet=st.characters(exclude_categories=["Cs"])))
def test_no_name_breaks_out_of_its_word_of_a_subject(name: str) -> None:
    channel = channels.channel_of(name)
    for subject in (
        channels.live_subject(channel),
        channels.stored_subject(channel),
        channels.notice_subject(channel),
    ):
        assert subject.count(".") == 3
        assert subjects.is_literal(subject)
    assert channels.user_subject(name).count(".") == 2


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_two_names_never_share_a_word(one: str, other: str) -> None:
    if one.encode("utf-8", "replace") == one.encode("utf-8", "ignore") and other.isprintable() and one.isprintable():
        assert (channels.token_of(one) == channels.token_of(other)) == (one == other)


def test_the_longest_room_fits_a_subject() -> None:
    subjects.check_subject(channels.live_subject(channels.channel_of("." * 64)))
    subjects.check_subject(channels.user_subject(":" * 128))


def test_listeners_may_name_rooms_and_the_pulse_only() -> None:
    assert channels.is_channel("chat:lobby")
    assert channels.is_channel("chat:a:b.c")
    assert channels.is_channel("public:pulse")
    for name in ("", "chat", "chat:", "chat:a\n", "chat:" + "x" * 65, "public:x", "rt:x"):
        assert not channels.is_channel(name)


def test_a_position_reads_back() -> None:
    assert parse_position(str(Position("abc1", 7))) == Position("abc1", 7)
    with pytest.raises(BadRequest):
        parse_position("abc1:٧")


def stored(data: bytes, offset: int = 3) -> Message:
    return Message("rt.out.chat.lobby", data, offset=offset)


def test_a_publication_has_one_frame_and_one_event() -> None:
    data = to_stored({"content": "line\nbreak\u2028"}, user="ada", time="2026-01-01T00:00:00.000Z")
    publication = from_stored(stored(data), channel="chat:lobby", epoch="e")

    assert publication.frame is publication.frame
    frame = json.loads(publication.frame.text)
    assert frame == {
        "type": "message",
        "room": "lobby",
        "content": "line\nbreak\u2028",
        "from": {"id": "ada"},
        "id": "e:3",
        "time": "2026-01-01T00:00:00.000Z",
    }
    head, _, rest = publication.event.partition(b"\ndata: ")
    assert head == b"id: e:3\nevent: message"
    assert json.loads(rest) == frame
    assert rest.count(b"\n") == 2


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"u": 1, "ts": "", "d": {}}', b'{"u": "", "ts": "", "d": 5}']
)
def test_what_is_no_publication_is_not_read(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        from_stored(stored(data), channel="chat:lobby", epoch="e")


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(20, 60, clock=clock)
    assert [bucket.take() for _ in range(61)] == [True] * 60 + [False]
    clock.now = 0.1
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    clock.now = 1000
    assert [bucket.take() for _ in range(61)] == [True] * 60 + [False]


def test_a_steady_flood_is_a_flood_though_some_frames_get_through() -> None:
    clock = Clock()
    conduct = Conduct(Limits(), clock=clock)
    paces = []
    for number in range(2000):
        clock.now = number / 200
        paces.append(conduct.judge_pace())
    assert Pace.FLOOD in paces
    assert paces.count(Pace.TOO_FAST) >= REFUSALS_MAX


def test_talking_at_the_allowed_rate_is_fine_for_ever() -> None:
    clock = Clock()
    conduct = Conduct(Limits(), clock=clock)
    for number in range(5000):
        clock.now = number / 20
        assert conduct.judge_pace() is Pace.FINE


def test_only_bad_frames_in_a_row_are_too_many() -> None:
    conduct = Conduct(Limits())
    for _ in range(3):
        assert not any(conduct.note_bad() for _ in range(BAD_FRAMES_MAX - 1))
        conduct.note_good()
    assert [conduct.note_bad() for _ in range(BAD_FRAMES_MAX)][-1]


async def test_an_event_reaches_its_subscribers_as_it_was_published() -> None:
    bus = MemoryBus()
    await bus.ensure_log(EVENTS)
    events, heard = EventBus(bus, source="/realtime"), list[Event]()

    async def hear(event: Event) -> None:
        heard.append(event)

    await events.subscribe("users.user.created", hear)
    await events.subscribe("users.user.*", hear)
    await events.subscribe("users.user.deleted", hear)
    published = await events.publish("users.user.created", {"id": "u1"}, subject="u1")

    await eventually(lambda: len(heard) == 2)
    assert heard == [published, published]
    stored = await bus.read("EVT", "evt.users.user.created.v1", after=0, limit=10)
    document = json.loads(stored[0].data)
    assert document["specversion"] == "1.0"
    assert document["type"] == "users.user.created"
    assert document["source"] == "/realtime"
    await bus.close()


async def test_an_event_told_twice_is_heard_once() -> None:
    bus, heard = MemoryBus(), list[str]()

    async def hear(event: Event) -> None:
        heard.append(event.id)

    await EventBus(bus, source="/x").subscribe("users.user.created", hear)
    for event_id in ("1", "1", "2"):
        document = {"specversion": "1.0", "id": event_id, "source": "/users", "type": "users.user.created", "data": {}}
        await bus.publish("evt.users.user.created.v1", json.dumps(document).encode())
    await eventually(lambda: "2" in heard)
    assert heard == ["1", "2"]
    await bus.close()


async def test_publishing_where_nothing_keeps_events_fails() -> None:
    with pytest.raises(BusUnavailable):
        await EventBus(MemoryBus(), source="/x").publish("users.user.created", {})


@pytest.mark.parametrize(
    "document", [b"", b"[]", b'{"id": "1"}', b'{"id": "", "type": "t", "source": "s", "data": {}}']
)
def test_what_is_no_event_is_not_read(document: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_event(document)
