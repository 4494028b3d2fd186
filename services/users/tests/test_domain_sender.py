"""The sender: every mail that is still good arrives, whatever fails in between; at worst twice."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from services.users.adapters.mail import MemoryPost
from services.users.domain.audit import entry_of
from services.users.domain.mail_text import MailText
from services.users.domain.ports import MailRefused, MailUnavailable
from services.users.domain.sender import BATCH_MAX, MailSender
from services.users.tests.conftest import ReadableSeal
from shared.errors import Unavailable

TEXT = MailText(sender="Us <us@example.com>", public_url="https://api.example.com", links={})


class FailingPost(MemoryPost):
    """Raises what it is given, one at a time, and then takes everything; `hung` waits for ever once it has a mail."""

    def __init__(self, *errors, hangs_after=False):
        super().__init__()
        self.errors = list(errors)
        self.hangs_after = hangs_after
        self.has_hung = asyncio.Event()

    async def send(self, message):
        if self.errors:
            raise self.errors.pop(0)
        await super().send(message)
        if self.hangs_after:
            self.hangs_after = False
            self.has_hung.set()
            await asyncio.Event().wait()


@pytest.fixture
def make_sender(store, tally):
    def make(post, *, mails=None, **values):
        seconds = {"poll_s": 0.01, "retry_s": 0.01, "lease_s": 60, **values}
        return MailSender(
            mails or store.mails, store.tokens, ReadableSeal(), TEXT.compose, post, tally=tally, **seconds
        )

    return make


@pytest.fixture
def issue(store, add_user, letters):
    """Send a mail to a new user, or to one that is there; return the letter."""

    async def issue(user=None, purpose="verify", *, bound_to="", **values):
        user = user or await add_user()
        letter = letters.write(purpose, user.id, user.email)
        mail = replace(letter.mail, **values)
        if bound_to:
            mail = replace(mail, sealed=mail.sealed.replace(user.email.encode(), bound_to.encode()))
        letter = replace(letter, mail=mail, token=replace(letter.token, **values))
        await store.tokens.issue(letter, audit=entry_of("user.asked"))
        return letter

    return issue


@pytest.fixture
async def background():
    """Runs senders until the test ends."""
    tasks = []

    def start(sender):
        tasks.append(asyncio.get_running_loop().create_task(sender.run()))
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def arrived(post, count):
    async with asyncio.timeout(10):
        while len(post.messages) < count:
            await asyncio.sleep(0.005)


def text_of(message):
    return message.get_content()


async def test_a_mail_arrives_with_the_token_whose_hash_is_stored(store, make_sender, issue, tally):
    letter = await issue()
    post = MemoryPost()

    assert await make_sender(post).send_due() == 1

    (message,) = post.messages
    assert message["To"] == letter.mail.recipient
    assert message["Message-ID"] == f"<{letter.mail.id}@example.com>"
    assert letter.mail.sealed.decode().partition("|")[2] in text_of(message)
    assert (tally.mails, tally.mail_backlogs) == (["sent"], [0])
    assert await make_sender(post).send_due() == 0


async def test_a_server_that_is_away_is_tried_again_until_it_takes_the_mail(
    store, make_sender, issue, tally, background
):
    await issue()
    post = FailingPost(*[MailUnavailable("away")] * 5)

    background(make_sender(post))
    await arrived(post, 1)

    async with asyncio.timeout(5):
        while await store.mails.backlog():
            await asyncio.sleep(0.005)
    assert tally.mails == ["unreachable"] * 5 + ["sent"]


async def test_the_wait_doubles_with_each_try_at_a_random_place_below_it(store, make_sender, issue, monkeypatch):
    await issue()
    asked = []
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append((low, high)) or 0.0)
    sender = make_sender(FailingPost(*[MailUnavailable("away")] * 12), retry_s=1)
    for _ in range(12):
        assert await sender.send_due() == 1

    assert asked == [(0, wait) for wait in (2, 4, 8, 16, 32, 64, 128, 256, 300.0, 300.0, 300.0, 300.0)]


async def test_a_mail_that_is_refused_is_given_up_and_the_others_go_on(store, make_sender, issue, tally):
    for _ in range(3):
        await issue()
    post = FailingPost(MailRefused("no such mailbox"))

    await make_sender(post).send_due()

    assert len(post.messages) == 2
    assert sorted(tally.mails) == ["refused", "sent", "sent"]
    assert await store.mails.backlog() == 0


async def test_it_gives_up_when_the_token_is_over(store, make_sender, issue, tally):
    await issue(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    post = MemoryPost()

    await make_sender(post).send_due()

    assert list(post.messages) == []
    assert tally.mails == ["expired"]
    assert await store.mails.backlog() == 0


async def test_a_mail_whose_token_a_newer_one_has_replaced_is_not_sent(store, add_user, make_sender, issue, tally):
    user = await add_user()
    await issue(user)
    newer = await issue(user)
    post = MemoryPost()

    await make_sender(post).send_due()

    assert [message["Message-ID"] for message in post.messages] == [f"<{newer.mail.id}@example.com>"]
    assert tally.mails == ["sent"]
    assert await store.mails.backlog() == 0


async def test_a_mail_that_somebody_turned_to_another_address_is_not_sent(store, make_sender, issue, tally):
    await issue(bound_to="thief@example.com")
    post = MemoryPost()

    await make_sender(post).send_due()

    assert list(post.messages) == []
    assert tally.mails == ["unreadable"]
    assert await store.mails.backlog() == 0


async def test_who_dies_after_sending_leaves_a_mail_that_comes_twice_and_is_not_lost(
    store, make_sender, issue, background
):
    await issue()
    post = FailingPost(hangs_after=True)
    dying = background(make_sender(post, lease_s=0.2))
    async with asyncio.timeout(5):
        await post.has_hung.wait()
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    assert await store.mails.backlog() == 1

    background(make_sender(post))
    await arrived(post, 2)

    async with asyncio.timeout(5):
        while await store.mails.backlog():
            await asyncio.sleep(0.005)
    first, second = post.messages
    assert first["Message-ID"] == second["Message-ID"]


async def test_who_dies_before_sending_loses_nothing(store, make_sender, issue):
    await issue()
    now = datetime.now(UTC)
    await store.mails.claim(now, until=now, limit=1)
    post = MemoryPost()

    await make_sender(post).send_due()

    assert len(post.messages) == 1


async def test_of_many_senders_each_mail_is_sent_by_one(store, make_sender, issue):
    for _ in range(30):
        await issue()
    post = MemoryPost()

    while await store.mails.backlog():
        await asyncio.gather(*(make_sender(post).send_due() for _ in range(4)))

    assert len({message["Message-ID"] for message in post.messages}) == len(post.messages) == 30


async def test_more_than_a_batch_goes_out_without_waiting_for_the_next_poll(make_sender, issue, background):
    for _ in range(BATCH_MAX + 5):
        await issue()
    post = MemoryPost()

    background(make_sender(post, poll_s=3600))

    await arrived(post, BATCH_MAX + 5)


async def test_while_the_server_is_away_a_poll_tries_one_batch_and_one_line_says_so(
    make_sender, issue, tally, store, background, monkeypatch
):
    for _ in range(2 * BATCH_MAX):
        await issue()
    sender = make_sender(FailingPost(*[MailUnavailable("away")] * 100), retry_s=3600)
    sleeps = asyncio.Event()

    async def sleep():
        sleeps.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(sender, "_sleep", sleep)
    with capture_logs() as lines:
        background(sender)
        async with asyncio.timeout(10):
            await sleeps.wait()

    assert tally.mails == ["unreachable"] * BATCH_MAX
    assert [line["event"] for line in lines] == ["mail_waits"]
    assert await store.mails.backlog() == 2 * BATCH_MAX


async def test_it_is_woken_by_a_mail_of_its_own_process(make_sender, issue, background, tally):
    post = MemoryPost()
    sender = make_sender(post, poll_s=3600)
    background(sender)
    async with asyncio.timeout(5):
        while not tally.mail_backlogs:
            await asyncio.sleep(0.005)
    await issue()
    sender.wake()

    await arrived(post, 1)


class FailingMails:
    """A MailOutbox that is away for the calls it is told of."""

    def __init__(self, found, **failures):
        self._found, self._failures = found, failures

    def __getattr__(self, name):
        found = getattr(self._found, name)

        async def call(*args, **kwargs):
            if self._failures.get(name, 0) > 0:
                self._failures[name] -= 1
                raise Unavailable("away")
            return await found(*args, **kwargs)

        return call


async def test_a_store_that_is_away_is_waited_for(store, make_sender, issue, background):
    await issue()
    post = MemoryPost()

    background(make_sender(post, mails=FailingMails(store.mails, claim=2, backlog=1)))

    await arrived(post, 1)


async def test_a_mail_that_could_not_be_forgotten_comes_again(store, make_sender, issue, background):
    await issue()
    post = MemoryPost()

    background(make_sender(post, mails=FailingMails(store.mails, done=1), lease_s=0.1))

    await arrived(post, 2)
    async with asyncio.timeout(5):
        while await store.mails.backlog():
            await asyncio.sleep(0.005)
    assert len(post.messages) == 2
