"""Accounts on both stores: verified and reset by the token of a mail, once, and by nothing else."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.domain.accounts import AccountService
from services.users.domain.events import event_of
from services.users.domain.letters import Letters
from services.users.domain.lockout import AccountLocks
from services.users.domain.strength import PasswordStrength
from services.users.domain.users import Draft, UserService
from services.users.model.records import Actor, AuditQuery
from services.users.tests.conftest import ReadableSeal
from shared.errors import InvalidInput, Unavailable

NEW_PASSWORD = "battery staple"


@pytest.fixture
def locks(counters):
    return AccountLocks(counters, failures_max=1, lock_s=60, lock_max_s=60)


@pytest.fixture
def make_accounts(store, passwords, letters, locks, endings, calls):
    def make(**values):
        given = {"users": store.users, "tokens": store.tokens, "letters": letters, **values}
        return AccountService(
            given["users"],
            given["tokens"],
            given["letters"],
            passwords,
            strength=PasswordStrength(),
            locks=locks,
            endings=endings,
            announce=lambda: calls.append("announced"),
        )

    return make


@pytest.fixture
def accounts(make_accounts):
    return make_accounts()


@pytest.fixture
def users(store, passwords, tally, letters, endings):
    return UserService(store.users, passwords, tally=tally, announce=lambda: None, endings=endings, letters=letters)


@pytest.fixture
async def ada(users):
    return await users.register(Draft("ada", "ada@example.com", "correct horse"))


def owner_of(user):
    return Actor(user.id, user.role, "")


async def actions(store):
    return [entry.action for entry in await store.audit.page(AuditQuery())]


async def test_registering_sends_a_token_that_verifies_the_address(store, accounts, ada, tokens_of, calls, waiting):
    (token,) = await tokens_of()
    assert ada.email_verified_at is None

    await accounts.verify(token)

    found = await store.users.get(ada.id)
    assert found.email_verified_at is not None
    assert found.version == 2
    assert calls == ["posted", "announced"]
    assert (await actions(store))[0] == "user.email_verified"
    assert b'"changed":["email_verified"]' in (await waiting())[-1].payload


async def test_a_token_verifies_once(accounts, ada, tokens_of):
    (token,) = await tokens_of()
    await accounts.verify(token)

    with pytest.raises(InvalidInput) as refused:
        await accounts.verify(token)
    assert refused.value.problem_code == "token_refused"


async def test_a_new_address_is_not_verified_and_gets_a_mail_of_its_own(store, accounts, users, ada, tokens_of):
    (old,) = await tokens_of()
    await accounts.verify(old)
    await users.change(owner_of(ada), ada.id, {"email": "lovelace@example.com"}, None)
    assert (await store.users.get(ada.id)).email_verified_at is None

    (token,) = await tokens_of()
    await accounts.verify(token)

    assert (await store.users.get(ada.id)).email_verified_at is not None


async def test_a_token_sent_to_an_address_that_was_given_up_verifies_and_resets_nothing(
    store, accounts, users, ada, tokens_of
):
    await accounts.forgot(ada.email)
    tokens = await tokens_of()
    # Without a letter, so that the tokens to the old address are those that are there.
    changed = replace(ada, email="lovelace@example.com", version=2)
    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1)

    for token in tokens:
        with pytest.raises(InvalidInput):
            await accounts.verify(token)
        with pytest.raises(InvalidInput):
            await accounts.reset(token, NEW_PASSWORD)
    assert (await store.users.get(ada.id)) == changed


async def test_a_verification_is_sent_again_unless_there_is_nothing_to_verify(accounts, ada, tokens_of, calls):
    (first,) = await tokens_of()
    await accounts.request_verification(owner_of(ada))
    (second,) = await tokens_of()
    with pytest.raises(InvalidInput):
        await accounts.verify(first)
    await accounts.verify(second)
    assert calls == ["posted", "posted", "announced"]

    await accounts.request_verification(owner_of(ada))
    assert await tokens_of() == []


async def test_a_reset_sets_the_password_ends_sessions_and_the_lock(
    store, accounts, ada, tokens_of, make_session, told, locks, calls
):
    await tokens_of()
    await store.sessions.open(make_session(ada))
    await locks.failed(ada.id, is_locked=False)
    assert await locks.is_locked(ada.id, "192.0.2.1")
    await accounts.forgot(ada.email)
    (token,) = await tokens_of()

    await accounts.reset(token, NEW_PASSWORD)

    assert (await store.users.find_login("ada")).password_hash == f"hash of {NEW_PASSWORD}"
    assert await store.sessions.of_user(ada.id, now=datetime.now(UTC)) == []
    assert [b'"reason":"password_reset"' in event.payload for event in told] == [True]
    assert not await locks.is_locked(ada.id, "192.0.2.1")
    assert calls == ["posted", "posted", "announced"]
    assert (await actions(store))[:2] == ["user.password_reset", "user.reset_requested"]


async def test_of_twenty_resets_at_once_one_wins(store, accounts, ada, tokens_of, told):
    await tokens_of()
    await accounts.forgot(ada.email)
    (token,) = await tokens_of()

    tries = [accounts.reset(token, f"{NEW_PASSWORD} {number}") for number in range(20)]
    results = await asyncio.gather(*tries, return_exceptions=True)

    assert results.count(None) == 1
    assert {type(result) for result in results if result is not None} == {InvalidInput}
    winner = results.index(None)
    assert (await store.users.find_login("ada")).password_hash == f"hash of {NEW_PASSWORD} {winner}"
    assert (await store.users.get(ada.id)).version == 2
    assert len(told) == 1


async def test_a_weak_password_spends_no_token(accounts, ada, tokens_of):
    await tokens_of()
    await accounts.forgot(ada.email)
    (token,) = await tokens_of()
    with pytest.raises(InvalidInput) as refused:
        await accounts.reset(token, "ada@example.com")
    assert refused.value.errors[0].field == "body.password"

    await accounts.reset(token, NEW_PASSWORD)


async def test_a_token_is_good_for_its_purpose_only(accounts, ada, tokens_of):
    (verify,) = await tokens_of()
    await accounts.forgot(ada.email)
    (reset,) = await tokens_of()

    with pytest.raises(InvalidInput):
        await accounts.verify(reset)
    with pytest.raises(InvalidInput):
        await accounts.reset(verify, NEW_PASSWORD)
    await accounts.verify(verify)
    await accounts.reset(reset, NEW_PASSWORD)


async def test_a_token_is_refused_when_its_time_is_over(store, accounts, ada, letters):
    for purpose, lasts in (("verify", timedelta(hours=24)), ("reset", timedelta(hours=1))):
        letter = letters.write(purpose, ada.id, ada.email)
        assert letter.token.expires_at - letter.token.created_at == lasts
        assert letter.mail.expires_at == letter.token.expires_at
        over = replace(letter.token, expires_at=datetime.now(UTC) - timedelta(seconds=1))
        changed = replace(ada, version=ada.version + 1)
        await store.users.replace(
            changed, event_of(changed, "updated"), expected_version=ada.version, letter=replace(letter, token=over)
        )
        ada = changed
        token = letter.mail.sealed.decode().partition("|")[2]
        with pytest.raises(InvalidInput):
            await (accounts.verify(token) if purpose == "verify" else accounts.reset(token, NEW_PASSWORD))


@pytest.mark.parametrize("token", ["", "x", "\ud800", "é" * 256])
async def test_what_is_no_token_is_refused(accounts, token):
    with pytest.raises(InvalidInput):
        await accounts.verify(token)
    with pytest.raises(InvalidInput):
        await accounts.reset(token, NEW_PASSWORD)


class Watched:
    """Notes every call of what it stands before: its name, and what of the arguments has a size."""

    def __init__(self, found, calls):
        self._found, self._calls = found, calls

    def __getattr__(self, name):
        found = getattr(self._found, name)

        def call(*args, **kwargs):
            self._calls.append((name, [type(argument).__name__ for argument in args], sorted(kwargs)))
            return found(*args, **kwargs)

        return call


async def test_forgetting_takes_the_same_steps_whether_the_address_is_known_or_not(
    store, make_accounts, letters, ada, tokens_of
):
    await tokens_of()
    steps = []
    accounts = make_accounts(
        users=Watched(store.users, steps), tokens=Watched(store.tokens, steps), letters=Watched(letters, steps)
    )
    before = await store.audit.page(AuditQuery())
    await accounts.forgot(ada.email)
    known = list(steps)
    steps.clear()

    await accounts.forgot("nobody@example.com")

    assert steps == known
    assert [step[0] for step in steps] == ["require_set_up", "allows", "find_login", "write", "issue", "posted"]
    entries = (await store.audit.page(AuditQuery()))[: -len(before)]
    assert [(entry.action, entry.user_id) for entry in entries] == [
        ("user.reset_requested", ""),
        ("user.reset_requested", ada.id),
    ]
    assert len(await tokens_of()) == 1


async def test_past_the_bound_nothing_is_sent_and_the_tally_says_so(accounts, ada, tokens_of, tally):
    await tokens_of()
    for _ in range(8):
        await accounts.forgot(ada.email)
        await accounts.request_verification(owner_of(ada))
        await accounts.forgot("nobody@example.com")

    assert len(await tokens_of()) == 10
    assert tally.mails == ["limited"] * 9


async def test_a_user_who_changes_its_address_again_and_again_cannot_write_to_strangers(users, ada, tokens_of, tally):
    for number in range(8):
        await users.change(owner_of(ada), ada.id, {"email": f"stranger{number}@example.com"}, None)

    # Five in all, the one of the registration among them.
    assert len(await tokens_of()) == 5
    assert tally.mails == ["limited"] * 4


async def test_an_address_is_not_flooded_by_registering_it_again_and_again(store, users, tokens_of, tally):
    for number in range(7):
        user = await users.register(Draft(f"ada{number}", "ada@example.com", "correct horse"))
        await store.users.remove(user.id, event_of(user, "deleted"), expected_version=1)

    assert len(await tokens_of()) == 5
    assert tally.mails == ["limited"] * 2


async def test_without_a_place_to_send_to_requests_say_so_and_the_rest_goes_on(
    store, make_accounts, passwords, counters, tally, endings, tokens_of
):
    off = Letters(ReadableSeal(), counters, tally=tally, per_hour_max=5, posted=None)
    users = UserService(store.users, passwords, tally=tally, announce=lambda: None, endings=endings, letters=off)
    user = await users.register(Draft("ada", "ada@example.com", "correct horse"))
    await users.change(owner_of(user), user.id, {"email": "other@example.com"}, None)
    accounts = make_accounts(letters=off)

    for refused, argument in ((accounts.forgot, "ada@example.com"), (accounts.request_verification, owner_of(user))):
        with pytest.raises(Unavailable) as error:
            await refused(argument)
        assert error.value.problem_code == "mail_not_set_up"
    assert await tokens_of() == []
    assert tally.mails == []
