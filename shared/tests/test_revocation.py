"""Revocation: which tokens are refused, how services learn of it, and what bounds the memory of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from shared.bus.base import Bus, BusUnavailable, LogConfig
from shared.bus.connect import connected
from shared.bus.memory import Broker, MemoryBus
from shared.errors import Unauthorized
from shared.ids import made_at, new_id
from shared.revocation import Revocation, RevokedTokens, follow
from shared.tasks import Supervisor
from shared.testing.bus_probe import eventually
from shared.testing.processes import NatsProcess
from shared.testing.revocation import EVENT, end_session, event_of
from shared.testing.tokens import TokenMint
from shared.tokens import Identity, TokenVerifier

EVT = LogConfig(name="EVT", subjects=("evt.>",), messages_per_subject_max=10_000, age_max_s=3600 * 24)


def identity(user: str = "", session: str = "", **values: Any) -> Identity:
    standard = {"role": "user", "token_id": new_id(), "expires_at": time.time() + 600, "issued_at": time.time()}
    return Identity(user or new_id(), session_id=session or new_id(), **{**standard, **values})


def ended(user: str, session: str = "", *, kept: str = "", at: float = 0.0, lasts_s: float = 630.0) -> Revocation:
    now = at or time.time()
    return Revocation(user, now, now + lasts_s, session, kept)


def test_the_tokens_of_an_ended_session_are_covered_and_no_others() -> None:
    revoked = RevokedTokens()
    token = identity()
    assert not revoked.covers(token)

    revoked.add(ended(token.subject, token.session_id))

    assert revoked.covers(token)
    assert not revoked.covers(identity(token.subject))
    assert not revoked.covers(identity())


def test_the_sessions_a_user_had_are_covered_but_the_kept_and_later_ones() -> None:
    revoked = RevokedTokens()
    user = new_id()
    old, kept = identity(user), identity(user)
    revoked.add(ended(user, kept=kept.session_id, at=time.time() + 0.001))
    later = identity(user, f"ffffffff-{new_id()[9:]}")

    assert [revoked.covers(token) for token in (old, kept, later, identity())] == [True, False, False, False]
    # A token that was on its way while its session ended is no younger than the session.
    assert revoked.covers(identity(user, old.session_id, issued_at=time.time() + 5))


def test_the_later_of_two_ends_counts_in_whatever_order_they_come() -> None:
    user = new_id()
    token = identity(user)
    first, second = ended(user, kept=token.session_id), ended(user, at=time.time() + 0.002)
    for order in ([first, second], [second, first]):
        revoked = RevokedTokens()
        for revocation in order:
            revoked.add(revocation)
        assert revoked.covers(token)
        assert len(revoked) == 1


def test_what_no_token_outlives_is_forgotten() -> None:
    now = time.time()
    revoked = RevokedTokens(clock=lambda: now)
    token = identity()
    revoked.add(ended(token.subject, token.session_id, at=now))
    now += 631

    revoked.add(ended(new_id(), new_id(), at=now))
    revoked.add(ended(new_id(), new_id(), at=now - 1000))

    assert len(revoked) == 1
    assert not revoked.covers(token)


def test_a_full_set_refuses_older_tokens_rather_than_letting_a_revoked_one_pass() -> None:
    now = time.time()
    revoked = RevokedTokens(entries_max=3)
    tokens = [identity(issued_at=now - 10 + n) for n in range(5)]
    bystander, young = identity(issued_at=now - 9.5), identity(issued_at=now)
    for n, token in enumerate(tokens):
        revoked.add(ended(token.subject, token.session_id, at=now - 9 + n))

    assert len(revoked) == 3
    assert all(revoked.covers(token) for token in tokens)
    assert revoked.covers(bystander)
    assert not revoked.covers(young)


def test_listeners_hear_of_each_revocation_once() -> None:
    revoked = RevokedTokens()
    heard: list[Revocation] = []
    revoked.on_added.append(heard.append)
    revocation = ended(new_id(), new_id())

    revoked.add(revocation)
    revoked.add(revocation)

    assert heard == [revocation]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b'{"data": []}',
        b'{"data": {"user_id": "", "ended_at": 1, "until": 2}}',
        b'{"data": {"user_id": "u", "ended_at": "soon", "until": 2}}',
        b'{"data": {"user_id": "u", "ended_at": 1}}',
        b'{"data": {"user_id": 7, "ended_at": 1, "until": 2}}',
        b'{"data": {"user_id": "u", "session_id": 7, "ended_at": 1, "until": 2}}',
    ],
)
def test_what_is_no_revocation_is_a_value_error(document: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        Revocation.of_event(document)


def test_a_revocation_comes_back_out_of_its_event() -> None:
    for revocation in (ended("u", "s"), ended("u", kept="s"), ended("u")):
        assert Revocation.of_event(event_of(revocation)) == revocation


async def test_a_verified_token_is_refused_from_the_revocation_on() -> None:
    mint = TokenMint()
    revoked = RevokedTokens()
    verifier = TokenVerifier(mint, revoked)
    token = mint.token()
    found = await verifier.verify(token)
    assert verifier.remembered(token) == found

    revoked.add(ended(found.subject, found.session_id))

    assert verifier.remembered(token) is None
    with pytest.raises(Unauthorized) as caught:
        await verifier.verify(token)
    assert caught.value.problem_code == "session_ended"
    assert await verifier.verify(mint.token(found.subject))


def test_a_uuid7_says_when_it_was_made() -> None:
    before = time.time()
    assert before - 0.001 <= made_at(new_id()) <= time.time()


class Away:
    """A bus that cannot be reached until `back`."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.back = False
        self.tries = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Bus]:
        self.tries += 1
        if not self.back:
            raise BusUnavailable("no server")
        yield self.bus


@pytest.fixture(params=["memory", "nats"])
async def buses(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Bus, Bus]]:
    """Two buses to one broker, whose log EVT is there."""
    if request.param == "memory":
        broker = Broker()
        here: Bus = MemoryBus(broker)
        there: Bus = MemoryBus(broker)
        await here.ensure_log(EVT)
        yield here, there
        return
    url = request.getfixturevalue("nats_url")
    async with connected(url, name="here") as here, connected(url, name="there") as there:
        await here.ensure_log(EVT)
        yield here, there


async def test_a_push_reaches_the_other_services(buses: tuple[Bus, Bus]) -> None:
    here, there = buses
    async with Supervisor() as mine, Supervisor() as theirs:
        issuer = await follow(mine, TokenVerifier(TokenMint()), lambda: nullcontext(here), issuer="users")
        service = await follow(theirs, TokenVerifier(TokenMint()), lambda: nullcontext(there), issuer="users")
        token = identity()

        await issuer.announce(event_of(ended(token.subject, token.session_id)))

        assert issuer.revoked.covers(token)
        await eventually(lambda: service.revoked.covers(token))


async def test_what_was_stored_before_a_start_is_read_from_the_log(buses: tuple[Bus, Bus]) -> None:
    here, there = buses
    tokens = [identity() for _ in range(3)]
    await here.append(EVENT, b"not readable")
    for token in tokens:
        await here.append(EVENT, event_of(ended(token.subject, token.session_id)))

    async with Supervisor() as tasks:
        service = await follow(tasks, TokenVerifier(TokenMint()), lambda: nullcontext(there), issuer="users")

        assert all(service.revoked.covers(token) for token in tokens)


async def test_a_stored_end_is_heard_without_the_push(buses: tuple[Bus, Bus]) -> None:
    here, there = buses
    async with Supervisor() as tasks:
        service = await follow(tasks, TokenVerifier(TokenMint()), lambda: nullcontext(there), issuer="users")
        token = identity()
        await here.append(EVENT, event_of(ended(token.subject, token.session_id)))

        await eventually(lambda: service.revoked.covers(token))


async def test_after_an_outage_what_was_missed_is_read() -> None:
    broker = Broker()
    bus, other = MemoryBus(broker), MemoryBus(broker)
    await other.ensure_log(EVT)
    async with Supervisor() as tasks:
        service = await follow(tasks, TokenVerifier(TokenMint()), lambda: nullcontext(bus), issuer="users")
        token = identity()
        broker.logs["EVT"].append(EVENT, event_of(ended(token.subject, token.session_id)), {}, "")
        broker.available = False
        await asyncio.sleep(0)
        assert not service.revoked.covers(token)

        broker.available = True

        await eventually(lambda: service.revoked.covers(token))


async def test_without_a_bus_a_service_starts_and_follows_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.revocation.RETRY_S", 0.01)
    broker = Broker()
    away = Away(MemoryBus(broker))
    other = MemoryBus(broker)
    await other.ensure_log(EVT)
    token = identity()
    await other.append(EVENT, event_of(ended(token.subject, token.session_id)))
    async with Supervisor() as tasks:
        service = await follow(tasks, TokenVerifier(TokenMint()), away, issuer="users")
        await service.announce(event_of(ended("someone", "else")))
        assert service.tried.is_set()
        assert not service.revoked.covers(token)
        await eventually(lambda: away.tries > 2)
        away.back = True

        await eventually(lambda: service.revoked.covers(token))


async def test_a_log_of_several_pages_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.revocation.PAGE", 2)
    bus = MemoryBus()
    await bus.ensure_log(EVT)
    tokens = [identity() for _ in range(5)]
    for token in tokens:
        await bus.append(EVENT, event_of(ended(token.subject, token.session_id)))
    async with Supervisor() as tasks:
        service = await follow(tasks, TokenVerifier(TokenMint()), lambda: nullcontext(bus), issuer="users")

    assert all(service.revoked.covers(token) for token in tokens)


async def test_before_the_first_event_there_is_no_log_and_nothing_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.revocation.RETRY_S", 0.01)
    broker = Broker()
    async with Supervisor() as tasks:
        service = await follow(
            tasks, TokenVerifier(TokenMint()), lambda: nullcontext(MemoryBus(broker)), issuer="users"
        )
        assert service.tried.is_set()
        other = MemoryBus(broker)
        await other.ensure_log(EVT)
        token = identity()
        broker.logs["EVT"].append(EVENT, event_of(ended(token.subject, token.session_id)), {}, "")

        await eventually(lambda: service.revoked.covers(token))


@pytest.mark.slow
async def test_after_nats_died_what_ended_meanwhile_is_read_and_the_push_works_again(tmp_path: Path) -> None:
    nats = NatsProcess(tmp_path)
    nats.start()
    try:
        mint = TokenMint()
        verifier = TokenVerifier(mint)
        before, missed, later = (mint.token() for _ in range(3))
        known = [await verifier.verify(token) for token in (before, missed, later)]
        async with connected(nats.url, name="here") as here, Supervisor() as tasks:
            await here.ensure_log(EVT)
            service = await follow(tasks, verifier, lambda: connected(nats.url, name="there"), issuer="users")
            await here.append(EVENT, event_of(ended(known[0].subject, known[0].session_id)))
            await eventually(lambda: verifier.remembered(before) is None)

            nats.kill()
            await eventually(lambda: not here.connected)
            # Tokens go on being verified, and what is known to be revoked stays so.
            assert verifier.remembered(missed)
            assert verifier.remembered(before) is None
            await service.announce(event_of(ended("somebody", "else")))
            nats.start()
            await eventually(lambda: here.connected)
            # Stored while the service has not come back, or just as it does: it must not matter.
            await here.append(EVENT, event_of(ended(known[1].subject, known[1].session_id)))

            await eventually(lambda: verifier.remembered(missed) is None)
            await end_session(nats.url, later)
            await eventually(lambda: verifier.remembered(later) is None)
    finally:
        nats.kill()
