"""Where mails go, what they say, and how the token in a waiting one is kept."""

import os
import stat
from email import message_from_bytes
from email.policy import SMTPUTF8

import pytest

from services.users.adapters.derive import derived_key
from services.users.adapters.mail import FilePost, MemoryPost, open_post
from services.users.adapters.seal import AesSeal
from services.users.adapters.smtp import SmtpPost
from services.users.domain.mail_text import MailText
from services.users.domain.ports import MailUnavailable, SealBroken
from services.users.model.mail_url import check_mail_url

LINKS = {"verify": "https://app.example.com/verify#{token}", "reset": ""}
TEXT = MailText(sender="Us <us@example.com>", public_url="https://api.example.com", links=LINKS)


@pytest.fixture
def compose(letters):
    def compose(purpose="verify", text=TEXT, recipient="ada@example.com"):
        return text.compose(letters.write(purpose, "0", recipient).mail, "a-token")

    return compose


def test_with_a_page_of_ours_the_mail_links_to_it_and_shows_the_token(compose):
    lines = compose("verify").get_content().splitlines()

    assert "    https://app.example.com/verify#a-token" in lines
    assert "    a-token" in lines


def test_a_long_link_is_not_broken_in_the_file(compose):
    long = "https://app.example.com/" + "x" * 470 + "#{token}"
    text = MailText(sender="Us <us@example.com>", public_url="https://api.example.com", links={"reset": long})

    assert long.replace("{token}", "a-token").encode() in compose("reset", text).as_bytes()


@pytest.mark.parametrize("purpose", ["verify", "reset"])
def test_without_a_page_the_mail_names_the_route_and_links_nowhere_with_the_token(compose, purpose):
    text = MailText(sender="Us <us@example.com>", public_url="https://api.example.com", links={})
    content = compose(purpose, text).get_content()
    path = {"verify": "/auth/email/verify", "reset": "/auth/password/reset"}[purpose]

    assert f'POST https://api.example.com{path} with {{"token": "..."' in content
    assert content.count("a-token") == 1
    assert all("a-token" not in line for line in content.splitlines() if "http" in line)


def test_a_mail_says_how_long_it_is_good(compose):
    assert "within 24 hours" in compose("verify").get_content()
    assert "within one hour" in compose("reset").get_content()


def test_a_folder_gets_a_file_a_mail_that_only_its_owner_reads(compose, tmp_path):
    folder = tmp_path / "new" / "mail"
    message = compose(recipient="jürgen@exämple.com")

    FilePost(folder)._write(message)

    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert path.suffix == ".eml"
    read = message_from_bytes(path.read_bytes(), policy=SMTPUTF8)
    assert read["To"] == "jürgen@exämple.com"
    assert read.get_content().splitlines() == message.get_content().splitlines()


async def test_a_folder_keeps_the_newest_mails(compose, tmp_path):
    post = FilePost(tmp_path, files_max=3)
    messages = [compose() for _ in range(5)]
    for message in messages:
        await post.send(message)

    names = {f"{message['Message-ID'].strip('<>').partition('@')[0]}.eml" for message in messages[2:]}
    assert {path.name for path in tmp_path.iterdir()} == names


async def test_a_mail_that_comes_twice_is_one_file(compose, tmp_path):
    message = compose()
    for _ in range(2):
        await FilePost(tmp_path).send(message)

    assert len(list(tmp_path.iterdir())) == 1


async def test_what_a_dead_process_left_half_written_does_not_stand_in_the_way(compose, tmp_path):
    message = compose()
    name = message["Message-ID"].strip("<>").partition("@")[0]
    (tmp_path / f".{name}.{os.getpid()}").write_text("half")

    await FilePost(tmp_path).send(message)

    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.eml"]


async def test_a_folder_that_cannot_be_written_is_tried_again(compose, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MailUnavailable) as failure:
        await FilePost(tmp_path / "file" / "mail").send(compose())

    assert str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryPost),
        ("file:///var/mail", FilePost),
        ("smtp://mail.example.com", SmtpPost),
        ("smtp://us:pass@mail.example.com:2525?tls=off", SmtpPost),
        ("smtps://us%40example.com:p%40ss@mail.example.com", SmtpPost),
    ],
)
def test_the_scheme_says_where_mails_go(url, kind):
    check_mail_url(url)
    assert isinstance(open_post(url), kind)


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.com",
        "http://mail.example.com",
        "smtp://",
        "smtp://mail.example.com:port",
        "smtp://mail.example.com:0",
        "smtp://mail.example.com:99999",
        "smtp://us:p/ss@mail.example.com",
        "smtp://us:p#ss@mail.example.com",
        "smtp://mail.example.com/?tls=no",
        "smtps://mail.example.com?tls=off",
        "file://",
        "file:///",
        "file://folder/mail",
    ],
)
def test_a_url_that_leads_nowhere_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match=r"must|knows nothing") as refused:
        check_mail_url(url)

    assert "p/ss" not in str(refused.value)
    assert "p#ss" not in str(refused.value)


@pytest.fixture
def seal():
    return AesSeal(derived_key(b"root", "mail"))


def test_what_is_sealed_is_opened_again(seal):
    assert seal.open(seal.close("a-token", bound_to="here"), bound_to="here") == "a-token"
    assert b"a-token" not in seal.close("a-token", bound_to="here")
    assert seal.close("a-token", bound_to="here") != seal.close("a-token", bound_to="here")


@pytest.mark.parametrize("change", ["binding", "key", "form", "bit", "cut", "empty"])
def test_what_was_changed_is_not_opened(seal, change):
    sealed = seal.close("a-token", bound_to="here")
    other = AesSeal(derived_key(b"another root", "mail"))
    given = {
        "form": b"\x02" + sealed[1:],
        "bit": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "cut": sealed[:5],
        "empty": b"",
    }.get(change, sealed)

    with pytest.raises(SealBroken):
        (other if change == "key" else seal).open(given, bound_to="there" if change == "binding" else "here")


def test_each_purpose_has_a_key_of_its_own():
    keys = {derived_key(secret, purpose) for secret in (b"a", b"b") for purpose in ("mail", "cursors")}
    assert len(keys) == 4
    assert derived_key("a", "mail") == derived_key(b"a", "mail")
