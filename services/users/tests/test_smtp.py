"""Mails to a real mail server: encrypted, signed in, and with every failure put into one of two kinds."""

import asyncio
import socket

import pytest

from services.users.adapters.smtp import SmtpPost
from services.users.domain.audit import entry_of
from services.users.domain.mail_text import MailText
from services.users.domain.ports import MailRefused, MailUnavailable
from services.users.domain.sender import MailSender
from services.users.tests.conftest import ReadableSeal
from services.users.tests.smtp_server import SmtpServer, make_tls, smtp_server

TEXT = MailText(sender="Us <us@example.com>", public_url="https://api.example.com", links={})


@pytest.fixture
def message(letters):
    def make(recipient="ada@example.com"):
        mail = letters.write("reset", "0", recipient).mail
        return TEXT.compose(mail, "a-token")

    return make


@pytest.fixture
def tls(tmp_path):
    return make_tls(tmp_path)


def url_of(server, *, scheme="smtp", account="", query="?tls=off"):
    return f"{scheme}://{account}127.0.0.1:{server.port}{query}"


async def test_a_mail_arrives_as_it_was_written(message):
    async with smtp_server(SmtpServer()) as server:
        await SmtpPost(url_of(server)).send(message())

    (arrived,) = server.messages
    assert server.envelopes == [("us@example.com", "ada@example.com")]
    assert (arrived["From"], arrived["To"]) == ("Us <us@example.com>", "ada@example.com")
    assert arrived["Auto-Submitted"] == "auto-generated"
    assert arrived.get_content().splitlines() == message().get_content().splitlines()
    assert server.was_encrypted == [False]


@pytest.mark.parametrize(
    "recipient", ["jürgen@example.com", "ada@exämple.com", "o'brien+x&y@example.com", "a" * 64 + "@x.example"]
)
async def test_every_address_that_can_be_registered_can_be_written_to(message, recipient):
    async with smtp_server(SmtpServer()) as server:
        await SmtpPost(url_of(server)).send(message(recipient))

    assert server.envelopes == [("us@example.com", recipient)]
    assert server.messages[0]["To"] == recipient


async def test_a_server_without_such_letters_refuses_that_mail_only(message):
    async with smtp_server(SmtpServer(extensions=())) as server:
        post = SmtpPost(url_of(server))
        with pytest.raises(MailRefused, match="letters"):
            await post.send(message("jürgen@example.com"))
        await post.send(message())

    assert len(server.messages) == 1


async def test_with_starttls_the_log_in_and_the_mail_are_encrypted(message, tls):
    async with smtp_server(SmtpServer(tls=tls[0], account=("us@example.com", "p:a/ss@word"))) as server:
        url = url_of(server, account="us%40example.com:p%3Aa%2Fss%40word@", query="")
        await SmtpPost(url, tls=tls[1]).send(message())

    assert server.was_encrypted == [True]


async def test_with_smtps_everything_is_encrypted(message, tls):
    async with smtp_server(SmtpServer(tls=tls[0]), is_tls=True) as server:
        await SmtpPost(url_of(server, scheme="smtps", query=""), tls=tls[1]).send(message())

    assert server.was_encrypted == [True]


async def test_a_server_that_cannot_encrypt_gets_no_mail(message):
    async with smtp_server(SmtpServer()) as server:
        with pytest.raises(MailUnavailable, match="STARTTLS extension not supported"):
            await SmtpPost(url_of(server, query="")).send(message())

    assert server.messages == []


async def test_a_server_that_nobody_vouches_for_gets_no_mail(message, tls):
    async with smtp_server(SmtpServer(tls=tls[0])) as server:
        with pytest.raises(MailUnavailable):
            await SmtpPost(url_of(server, query="")).send(message())

    assert server.messages == []


@pytest.mark.parametrize(
    ("command", "answer", "kind"),
    [
        ("RCPT", "550 no such mailbox", MailRefused),
        ("DATA", "554 this looks like spam", MailRefused),
        ("RCPT", "450 greylisted", MailUnavailable),
        ("DATA", "451 try again", MailUnavailable),
        ("MAIL", "550 you may not send for us", MailUnavailable),
        ("MAIL", "421 shutting down", MailUnavailable),
        ("MAIL", "close", MailUnavailable),
        ("EHLO", "close", MailUnavailable),
        ("RCPT", "what", MailUnavailable),
    ],
)
async def test_what_is_wrong_with_the_mail_is_told_from_what_is_wrong_with_the_server(message, command, answer, kind):
    async with smtp_server(SmtpServer(answers={command: answer})) as server:
        with pytest.raises(kind) as failure:
            await SmtpPost(url_of(server)).send(message())

    # The server's text may repeat the address.
    for word in ("mailbox", "spam", "greylisted", "again", "send for us", "shutting", "what"):
        assert word not in str(failure.value)
    assert "ada@" not in str(failure.value)
    assert "127.0.0.1" not in str(failure.value)


async def test_a_wrong_password_is_tried_again_and_in_no_message(message):
    async with smtp_server(SmtpServer(account=("us", "right"))) as server:
        with pytest.raises(MailUnavailable, match="SMTPAuthenticationError 535") as failure:
            await SmtpPost(url_of(server, account="us:wrong@")).send(message())

    assert "wrong" not in str(failure.value)


async def test_a_server_that_hangs_is_left(message):
    async with smtp_server(SmtpServer(answers={"MAIL": ""})) as server:
        with pytest.raises(MailUnavailable):
            await SmtpPost(url_of(server), timeout_s=0.2).send(message())


async def test_who_is_cancelled_leaves_no_connection(message):
    async with smtp_server(SmtpServer(answers={"MAIL": ""})) as server:
        task = asyncio.get_running_loop().create_task(SmtpPost(url_of(server)).send(message()))
        async with asyncio.timeout(5):
            while not server.connections:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_server_that_keeps_failing_is_asked_no_more_for_a_while(message):
    async with smtp_server(SmtpServer(answers={"EHLO": "close"})) as server:
        post = SmtpPost(url_of(server))
        for _ in range(20):
            with pytest.raises(MailUnavailable):
                await post.send(message())

    assert server.connections == 5


async def test_mails_that_are_refused_for_good_do_not_count_against_the_server(message):
    async with smtp_server(SmtpServer(answers={"RCPT": "550 no such mailbox"})) as server:
        post = SmtpPost(url_of(server))
        for _ in range(20):
            with pytest.raises(MailRefused):
                await post.send(message())

    assert server.connections == 20


@pytest.fixture
def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def test_a_mail_waits_for_a_server_that_comes_back(store, add_user, letters, tally, unused_port):
    user = await add_user()
    await store.tokens.issue(letters.write("reset", user.id, user.email), audit=entry_of("user.asked"))
    post = SmtpPost(f"smtp://127.0.0.1:{unused_port}?tls=off")
    sender = MailSender(
        store.mails, store.tokens, ReadableSeal(), TEXT.compose, post, tally=tally, poll_s=0.01, retry_s=0.01
    )
    task = asyncio.get_running_loop().create_task(sender.run())
    try:
        async with asyncio.timeout(20):
            while len(tally.mails) < 3:
                await asyncio.sleep(0.01)
            async with smtp_server(SmtpServer(port=unused_port)) as server:
                while await store.mails.backlog():
                    await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert [recipient for _, recipient in server.envelopes] == [user.email]
    assert tally.mails == [*["unreachable"] * (len(tally.mails) - 1), "sent"]


async def test_nobody_there_is_unavailable(message, unused_port):
    with pytest.raises(MailUnavailable):
        await SmtpPost(f"smtp://127.0.0.1:{unused_port}?tls=off").send(message())
