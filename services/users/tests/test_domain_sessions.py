"""SessionService: refreshing, seeing and ending sessions."""

import asyncio
import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.domain.ports import SESSIONS_PER_USER_MAX
from services.users.domain.sessions import FAMILY_BYTES, GRACE_S, SECRET_BYTES
from services.users.model.records import Actor, Client
from shared.errors import NotFound, Unauthorized
from shared.ids import new_id
from shared.revocation import Revocation

HOME = Client("192.0.2.1", "Firefox")


@pytest.fixture
def service(make_sessions):
    return make_sessions()


def actor_of(tokens):
    user_id, session_id, role = tokens.access_token.split(" ")
    return Actor(user_id, role, session_id)


def events_of(database):
    return [json.loads(event.payload) for event in database.outbox.records.values()]


def actions_of(database):
    return [entry.action for entry in database.audit.records.values()]


def age(database, session_id, age_s):
    """Let a session's last exchange have been a while ago."""
    records = database.sessions.records
    records[session_id] = replace(records[session_id], rotated_at=datetime.now(UTC) - timedelta(seconds=age_s))


async def test_refresh_tokens_are_random_and_only_their_hashes_are_kept(service, ada, database):
    first, second = await service.open(ada, HOME), await service.open(ada, HOME)
    raw = base64.urlsafe_b64decode(first.refresh_token)

    assert len(raw) == FAMILY_BYTES + SECRET_BYTES
    assert first.refresh_token != second.refresh_token
    session = database.sessions.records[actor_of(first).session_id]
    assert raw[:FAMILY_BYTES] != session.family_hash
    assert raw[FAMILY_BYTES:] != session.refresh_hash


async def test_a_refresh_keeps_the_session_and_gives_new_tokens(service, ada):
    tokens = await service.open(ada, HOME)

    fresh = await service.refresh(tokens.refresh_token, HOME)

    assert fresh.refresh_token != tokens.refresh_token
    assert actor_of(fresh) == actor_of(tokens)
    assert await service.user_of(actor_of(fresh)) == ada
    assert await service.refresh(fresh.refresh_token, HOME)


async def test_tabs_that_refresh_together_get_the_same_successor(service, ada, database):
    tokens = await service.open(ada, HOME)

    answers = await asyncio.gather(*(service.refresh(tokens.refresh_token, HOME) for _ in range(20)))

    assert len({answer.refresh_token for answer in answers}) == 1
    assert answers[0].refresh_token != tokens.refresh_token
    assert await service.refresh(answers[0].refresh_token, HOME)
    assert actions_of(database) == ["session.opened"]


async def test_the_successor_cannot_be_made_without_the_key(make_sessions, ada, database):
    tokens = await make_sessions().open(ada, HOME)
    other = make_sessions()
    other._successor_key = b"another key"

    mine = await make_sessions().refresh(tokens.refresh_token, HOME)
    with pytest.raises(Unauthorized):
        # A replica with another seal makes another successor: it must not be taken for the same exchange.
        await other.refresh(tokens.refresh_token, HOME)

    with pytest.raises(Unauthorized):
        await make_sessions().refresh(mine.refresh_token, HOME)


async def test_a_token_used_again_after_the_grace_ends_its_session_and_says_so(service, ada, database, told):
    tokens = await service.open(ada, HOME)
    newest = await service.refresh(tokens.refresh_token, HOME)
    session_id = actor_of(tokens).session_id
    age(database, session_id, GRACE_S - 1)
    assert (await service.refresh(tokens.refresh_token, HOME)).refresh_token == newest.refresh_token
    age(database, session_id, GRACE_S + 0.001)

    with pytest.raises(Unauthorized) as caught:
        await service.refresh(tokens.refresh_token, HOME)

    assert caught.value.problem_code == "refresh_invalid"
    with pytest.raises(Unauthorized):
        await service.refresh(newest.refresh_token, HOME)
    with pytest.raises(Unauthorized) as caught:
        await service.user_of(actor_of(newest))
    assert caught.value.problem_code == "session_ended"
    _, reused, ended = events_of(database)
    assert (reused["type"], reused["data"]) == (
        "users.session.reused",
        {"user_id": ada.id, "session_id": session_id},
    )
    assert (ended["type"], ended["data"]["session_id"], ended["data"]["reason"]) == (
        "users.session.ended",
        session_id,
        "reused",
    )
    assert [event.id for event in told] == [ended["id"]]
    assert actions_of(database) == ["session.opened", "session.reused"]


async def test_a_token_older_than_the_last_exchange_ends_the_session_even_within_the_grace(service, ada, database):
    tokens = await service.open(ada, HOME)
    second = await service.refresh(tokens.refresh_token, HOME)
    third = await service.refresh(second.refresh_token, HOME)

    with pytest.raises(Unauthorized):
        await service.refresh(tokens.refresh_token, HOME)

    with pytest.raises(Unauthorized):
        await service.refresh(third.refresh_token, HOME)


@pytest.mark.parametrize("text", ["", "x", "\u00e9" * 64, "A" * 64, "A" * 65, "=" * 64, "\ud800", "A" * 100_000])
async def test_a_refresh_token_that_is_none_is_refused(service, text, ada):
    tokens = await service.open(ada, HOME)

    with pytest.raises(Unauthorized):
        await service.refresh(text, HOME)

    assert await service.user_of(actor_of(tokens)) == ada


async def test_a_refreshed_token_has_the_new_role(service, ada, database):
    tokens = await service.open(ada, HOME)
    database.users.records[ada.id] = replace(ada, role="admin")

    assert actor_of(await service.refresh(tokens.refresh_token, HOME)).role == "admin"


async def test_logging_out_ends_this_session_only_and_tells_the_services(service, ada, database, told):
    here, there = await service.open(ada, HOME), await service.open(ada, HOME)

    await service.log_out(actor_of(here))
    await service.log_out(actor_of(here))

    with pytest.raises(Unauthorized):
        await service.user_of(actor_of(here))
    with pytest.raises(Unauthorized):
        await service.refresh(here.refresh_token, HOME)
    assert await service.user_of(actor_of(there)) == ada
    (event,) = told
    revocation = Revocation.of_event(event.payload)
    assert (revocation.user_id, revocation.session_id) == (ada.id, actor_of(here).session_id)
    assert revocation.until - revocation.ended_at == pytest.approx(640)
    assert event.subject == "evt.users.session.ended.v1"
    assert [item["id"] for item in events_of(database)][1:] == [event.id]
    entry = list(database.audit.records.values())[-1]
    assert (entry.action, entry.actor_id, entry.after["reason"]) == ("session.ended", ada.id, "logged_out")


async def test_a_session_is_only_good_for_its_own_user(service, ada):
    tokens = await service.open(ada, HOME)

    for actor in (
        Actor(new_id(), "user", actor_of(tokens).session_id),
        Actor(ada.id, "user", new_id()),
        Actor(ada.id, "user", "no id"),
    ):
        with pytest.raises(Unauthorized):
            await service.user_of(actor)
    await service.log_out(Actor(new_id(), "user", actor_of(tokens).session_id))
    assert await service.user_of(actor_of(tokens)) == ada


async def test_a_session_ends_with_its_time(make_sessions, ada):
    service = make_sessions(lasts_s=0)
    tokens = await service.open(ada, HOME)

    with pytest.raises(Unauthorized):
        await service.user_of(actor_of(tokens))
    with pytest.raises(Unauthorized):
        await service.refresh(tokens.refresh_token, HOME)


async def test_sessions_are_shown_with_where_they_were_last_used_from(service, ada):
    tokens = await service.open(ada, HOME)
    await service.open(ada, Client("198.51.100.7", "curl"))
    await service.refresh(tokens.refresh_token, Client("203.0.113.9", "Firefox on the train"))

    newest, oldest = await service.of_user(ada.id)

    assert (newest.address, newest.user_agent) == ("198.51.100.7", "curl")
    assert (oldest.id, oldest.address) == (actor_of(tokens).session_id, "203.0.113.9")
    assert oldest.user_agent == "Firefox on the train"
    assert oldest.used_at > oldest.created_at
    assert await service.of_user("no id") == []


async def test_one_session_or_all_others_are_ended(service, ada, make_user, told):
    here, there, third = [await service.open(ada, HOME) for _ in range(3)]
    actor = actor_of(here)

    await service.end(actor, ada.id, actor_of(there).session_id)
    for session_id in (actor_of(there).session_id, new_id(), "no id"):
        with pytest.raises(NotFound):
            await service.end(actor, ada.id, session_id)
    with pytest.raises(NotFound):
        await service.end(actor, new_id(), actor_of(third).session_id)
    assert [s.id for s in await service.of_user(ada.id)] == [actor_of(third).session_id, actor.session_id]

    await service.end_all(actor, ada.id, keep=actor.session_id)
    await service.end_all(actor, ada.id, keep=actor.session_id)

    assert [s.id for s in await service.of_user(ada.id)] == [actor.session_id]
    one, all_others = [Revocation.of_event(event.payload) for event in told]
    assert one.session_id == actor_of(there).session_id
    assert (all_others.session_id, all_others.kept_session_id) == ("", actor.session_id)


async def test_one_log_in_too_many_ends_the_oldest_session(service, ada, told, tally):
    first, second, *_ = [await service.open(ada, HOME) for _ in range(SESSIONS_PER_USER_MAX)]
    assert not told

    newest = await service.open(ada, HOME)

    with pytest.raises(Unauthorized):
        await service.user_of(actor_of(first))
    assert await service.user_of(actor_of(second)) == ada
    assert await service.user_of(actor_of(newest)) == ada
    (event,) = told
    assert Revocation.of_event(event.payload).session_id == actor_of(first).session_id
    assert tally.ends == ["over_limit"]
