"""The contract of one-time tokens and of mail on its way, held by memory and by PostgreSQL."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.users.domain.audit import entry_of
from services.users.domain.events import event_of
from services.users.domain.ports import VersionChanged
from services.users.model.records import AuditQuery
from shared.errors import Conflict
from shared.ids import new_id


def later(seconds):
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.fixture
def issue(store, letters):
    """Issue a letter to a user; return its token as it is stored."""

    async def issue(user, purpose="verify", **values):
        letter = letters.write(purpose, user.id, user.email)
        letter = replace(letter, token=replace(letter.token, **values), mail=replace(letter.mail, **values))
        assert await store.tokens.issue(letter, audit=entry_of("user.asked", user_id=user.id))
        return letter.token

    return issue


@pytest.fixture
def claim(store):
    async def claim(*, after_s=0.0, lease_s=60.0, limit=100):
        now = later(after_s)
        return await store.mails.claim(now, until=now + timedelta(seconds=lease_s), limit=limit)

    return claim


async def test_a_token_is_found_by_its_hash_as_it_was_stored_until_it_is_over(store, add_user, issue):
    token = await issue(await add_user())

    assert await store.tokens.find(token.hash, now=datetime.now(UTC)) == token
    assert await store.tokens.find(token.hash, now=token.expires_at) is None
    assert await store.tokens.find(b"other", now=datetime.now(UTC)) is None


async def test_a_new_token_takes_the_place_of_the_old_one_of_its_purpose_only(store, add_user, issue):
    user = await add_user()
    old, other, new = await issue(user), await issue(user, "reset"), await issue(user)

    hashes = [old.hash, other.hash, new.hash]
    assert await store.tokens.living(hashes, now=datetime.now(UTC)) == {other.hash, new.hash}


async def test_of_tokens_issued_at_once_one_lives(store, add_user, issue):
    user = await add_user()
    tokens = await asyncio.gather(*(issue(user, "reset") for _ in range(10)))

    assert len(await store.tokens.living([token.hash for token in tokens], now=datetime.now(UTC))) == 1


async def test_who_is_not_there_or_has_another_address_gets_nothing_but_the_audit_line(store, add_user, letters, claim):
    user = await add_user()
    for user_id, email in ((new_id(), user.email), (user.id, "old@example.com")):
        letter = letters.write("reset", user_id, email)
        assert not await store.tokens.issue(letter, audit=entry_of("user.asked"))
        assert await store.tokens.find(letter.token.hash, now=datetime.now(UTC)) is None

    assert await claim() == []
    assert [entry.action for entry in await store.audit.page(AuditQuery())] == ["user.asked"] * 2


async def test_a_mail_is_claimed_as_it_was_written_by_one_at_a_time(store, add_user, letters, claim):
    user = await add_user()
    letter = letters.write("verify", user.id, user.email)
    await store.tokens.issue(letter, audit=entry_of("user.asked"))

    (mail,) = await claim()
    assert replace(mail, number=0, tries=0, next_try_at=letter.mail.next_try_at) == letter.mail
    assert (mail.number > 0, mail.tries) == (True, 1)
    assert await claim() == []
    assert [again.tries for again in await claim(after_s=61)] == [2]


async def test_of_many_who_claim_at_once_each_gets_others(store, add_user, issue, claim):
    for _ in range(20):
        await issue(await add_user())

    found = await asyncio.gather(*(claim(limit=5) for _ in range(6)))

    numbers = [mail.number for mails in found for mail in mails]
    assert len(numbers) == len(set(numbers)) == 20


async def test_a_mail_is_tried_again_when_it_is_due_and_gone_when_it_is_done(store, add_user, issue, claim):
    await issue(await add_user())
    (mail,) = await claim()
    await store.mails.retry(mail, at=later(10))

    assert await claim(after_s=5) == []
    (mail,) = await claim(after_s=11)
    assert await store.mails.backlog() == 1
    await store.mails.done(mail)
    await store.mails.done(mail)
    await store.mails.retry(mail, at=later(0))
    assert await claim(after_s=1000) == []
    assert await store.mails.backlog() == 0


async def test_a_user_is_stored_with_its_letter_or_without_both(store, make_user, letters, claim):
    user = make_user("ada")
    letter = letters.write("verify", user.id, user.email)
    await store.users.add(user, "hash", event_of(user, "created"), letter=letter)
    same = make_user("ada")
    refused = letters.write("verify", same.id, same.email)
    with pytest.raises(Conflict):
        await store.users.add(same, "hash", event_of(same, "created"), letter=refused)

    assert [mail.id for mail in await claim()] == [letter.mail.id]
    assert await store.tokens.living([letter.token.hash, refused.token.hash], now=datetime.now(UTC)) == {
        letter.token.hash
    }


async def test_a_change_is_stored_with_its_letter_or_without_both(store, add_user, letters, claim):
    user = await add_user()
    changed = replace(user, email="new@example.com", version=2)
    letter = letters.write("verify", user.id, changed.email)
    with pytest.raises(VersionChanged):
        await store.users.replace(changed, event_of(changed, "updated"), expected_version=7, letter=letter)
    assert await claim() == []

    await store.users.replace(changed, event_of(changed, "updated"), expected_version=1, letter=letter)

    assert [mail.recipient for mail in await claim()] == ["new@example.com"]


@pytest.fixture
def change(store):
    async def change(user, **values):
        changed = replace(user, version=user.version + 1, updated_at=datetime.now(UTC))
        await store.users.replace(changed, event_of(changed, "updated"), expected_version=user.version, **values)
        return changed

    return change


async def test_a_token_is_spent_by_the_change_it_allows(store, add_user, issue, change):
    user = await add_user()
    token = await issue(user)

    changed = await change(user, spent=token.hash)

    assert await store.tokens.find(token.hash, now=datetime.now(UTC)) is None
    with pytest.raises(VersionChanged):
        await change(changed, spent=token.hash)
    assert (await store.users.get(user.id)).version == 2


async def test_a_change_that_fails_spends_nothing(store, add_user, issue, change):
    user = await add_user()
    token = await issue(user)
    with pytest.raises(VersionChanged):
        await change(replace(user, version=5), spent=token.hash)

    assert await store.tokens.find(token.hash, now=datetime.now(UTC)) == token


@pytest.mark.parametrize("whose", ["nobody's", "another's", "over"])
async def test_a_token_that_is_not_good_allows_no_change(store, add_user, issue, change, whose):
    user, other = await add_user(), await add_user()
    token_hash = b"nobody's"
    if whose == "another's":
        token_hash = (await issue(other)).hash
    elif whose == "over":
        token_hash = (await issue(user, expires_at=later(-1))).hash

    with pytest.raises(VersionChanged):
        await change(user, spent=token_hash)
    assert (await store.users.get(user.id)).version == 1


async def test_a_new_password_makes_an_unused_reset_worthless_but_leaves_the_verification(
    store, add_user, issue, change
):
    user = await add_user()
    verify, reset = await issue(user), await issue(user, "reset")

    changed = await change(user)
    assert len(await store.tokens.living([verify.hash, reset.hash], now=datetime.now(UTC))) == 2
    await change(changed, password_hash="other hash")

    assert await store.tokens.living([verify.hash, reset.hash], now=datetime.now(UTC)) == {verify.hash}


async def test_tokens_go_with_their_user(store, add_user, issue):
    user = await add_user()
    token = await issue(user)
    await store.users.remove(user.id, event_of(user, "deleted"), expected_version=1)

    assert await store.tokens.find(token.hash, now=datetime.now(UTC)) is None


async def test_what_is_over_is_forgotten_in_parts(store, add_user, issue):
    for _ in range(3):
        await issue(await add_user(), expires_at=later(-1))
    living = await issue(await add_user())

    assert [await store.tokens.remove_expired(later(0), limit=2) for _ in range(3)] == [2, 1, 0]
    assert await store.tokens.find(living.hash, now=later(0)) == living
    assert [await store.mails.remove_expired(later(0), limit=2) for _ in range(3)] == [2, 1, 0]
    assert await store.mails.backlog() == 1
