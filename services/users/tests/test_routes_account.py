"""Verifying an address and resetting a password, as clients meet them: by what came in a mail."""

import asyncio
import re
from email import message_from_bytes
from email.policy import SMTPUTF8

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.users.app import create
from services.users.settings import UsersSettings
from services.users.tests.conftest import PASSWORD
from shared.settings import SettingsError, load
from shared.testing.client import running

NEW_PASSWORD = "battery staple 7"
TOKEN = re.compile(r"^    ([\w-]{43})\r?$", re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mail"


@pytest.fixture
def settings(make_settings, folder):
    return make_settings(mail_url=SecretStr(folder.as_uri()), public_url="https://api.example.com")


@pytest.fixture
async def client(settings):
    async with running(create(settings)) as found:
        yield found


@pytest.fixture
def arrived(folder):
    """Wait for so many mails; return the last."""

    async def arrived(count):
        async with asyncio.timeout(10):
            while len(found := sorted(folder.glob("*.eml"))) < count:
                await asyncio.sleep(0.01)
        assert len(found) == count
        return message_from_bytes(found[-1].read_bytes(), policy=SMTPUTF8)

    return arrived


def token_of(message):
    (found,) = TOKEN.findall(message.get_content())
    return found


async def test_registering_sends_a_mail_whose_token_verifies_the_address(client, api, arrived):
    user = await api.register("ada")
    bearer = await api.bearer("ada")
    assert user["email_verified"] is False
    assert (await client.get(f"/users/{user['id']}", headers=bearer)).json()["email_verified"] is False
    message = await arrived(1)
    assert message["To"] == "ada@example.com"

    answer = await client.post("/auth/email/verify", json={"token": token_of(message)})

    assert (answer.status_code, answer.content) == (204, b"")
    shown = (await client.get(f"/users/{user['id']}", headers=bearer)).json()
    assert (shown["email_verified"], shown["version"]) == (True, 2)
    again = await client.post("/auth/email/verify", json={"token": token_of(message)})
    assert (again.status_code, again.json()["code"]) == (422, "token_refused")


async def test_a_changed_address_is_unverified_until_its_own_mail_is_used(client, api, arrived):
    user = await api.register("ada")
    bearer = await api.bearer("ada")
    await client.post("/auth/email/verify", json={"token": token_of(await arrived(1))})

    changed = await client.patch(f"/users/{user['id']}", json={"email": "new@example.com"}, headers=bearer)

    assert changed.json()["email_verified"] is False
    message = await arrived(2)
    assert message["To"] == "new@example.com"
    await client.post("/auth/email/verify", json={"token": token_of(message)})
    assert (await client.get("/auth/me", headers=bearer)).json()["email_verified"] is True


async def test_a_mail_to_verify_is_sent_again_for_whoever_is_signed_in(client, api, arrived):
    await api.register("ada")
    first = await arrived(1)
    assert (await client.post("/auth/email/verify/request")).status_code == 401

    answer = await client.post("/auth/email/verify/request", headers=await api.bearer("ada"))

    assert (answer.status_code, answer.content) == (202, b"")
    second = await arrived(2)
    assert (await client.post("/auth/email/verify", json={"token": token_of(first)})).status_code == 422
    assert (await client.post("/auth/email/verify", json={"token": token_of(second)})).status_code == 204


@pytest.fixture(params=["memory", "postgres"])
def database_url(request):
    return SecretStr("memory://" if request.param == "memory" else request.getfixturevalue("postgres_url"))


async def test_a_forgotten_password_is_reset_and_every_session_ends(settings, database_url, api_of, arrived):
    async with running(create(settings.model_copy(update={"database_url": database_url}))) as client:
        api = api_of(client)
        await api.register("ada")
        await arrived(1)
        bearer, other = await api.bearer("ada"), await api.tokens("ada")
        assert (await client.post("/auth/password/forgot", json={"email": "Ada@Example.com"})).status_code == 202
        token = token_of(await arrived(2))

        answer = await client.post("/auth/password/reset", json={"token": token, "password": NEW_PASSWORD})

        assert (answer.status_code, answer.content) == (204, b"")
        assert (await client.get("/auth/me", headers=bearer)).json()["code"] == "session_ended"
        refresh = {"refresh_token": other["refresh_token"]}
        assert (await client.post("/auth/refresh", json=refresh)).status_code == 401
        old = await client.post("/auth/token", data={"username": "ada", "password": PASSWORD})
        assert old.status_code == 401
        await api.bearer("ada", NEW_PASSWORD)
        actions = (await client.get("/audit", headers=await api.admin())).json()["items"]
        assert {"user.reset_requested", "user.password_reset"} <= {line["action"] for line in actions}


async def test_twenty_resets_at_once_set_one_password(client, api, arrived):
    await api.register("ada")
    await arrived(1)
    await client.post("/auth/password/forgot", json={"email": "ada@example.com"})
    token = token_of(await arrived(2))

    bodies = [{"token": token, "password": f"{NEW_PASSWORD} {number}"} for number in range(20)]
    answers = await asyncio.gather(*(client.post("/auth/password/reset", json=body) for body in bodies))

    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204, *[422] * 19]
    await api.bearer("ada", bodies[statuses.index(204)]["password"])


async def test_known_unknown_and_too_often_asked_for_addresses_are_answered_alike(client, api, arrived):
    await api.register("ada")
    await arrived(1)
    bodies = [{"email": email} for email in ("ada@example.com", "nobody@example.com")] * 7
    answers = [await client.post("/auth/password/forgot", json=body) for body in bodies]

    seen = {(a.status_code, a.content, frozenset(set(a.headers) - {"x-request-id"})) for a in answers}
    assert len(seen) == 1
    metrics = (await client.get("/metrics")).text
    assert "mail_limited_total 4.0" in metrics


async def test_a_weak_password_is_refused_with_its_reasons_and_the_token_stays_good(client, api, arrived):
    await api.register("ada")
    await arrived(1)
    await client.post("/auth/password/forgot", json={"email": "ada@example.com"})
    token = token_of(await arrived(2))

    refused = await client.post("/auth/password/reset", json={"token": token, "password": "password123"})

    assert refused.status_code == 422
    assert {error["field"] for error in refused.json()["errors"]} == {"body.password"}
    good = await client.post("/auth/password/reset", json={"token": token, "password": NEW_PASSWORD})
    assert good.status_code == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "thief.example"},
        {"X-Forwarded-Host": "thief.example", "X-Forwarded-Proto": "http", "Forwarded": "host=thief.example"},
        {"Origin": "https://thief.example", "Referer": "https://thief.example/"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_no_header_of_a_request_gets_into_a_mail(client, api, arrived, headers):
    await api.register("ada")
    await arrived(1)
    await client.post("/auth/password/forgot", json={"email": "ada@example.com"}, headers=headers)

    text = (await arrived(2)).as_string()

    assert "thief" not in text
    assert "https://api.example.com/auth/password/reset" in text


@pytest.mark.parametrize("path", ["/auth/email/verify", "/auth/password/reset", "/auth/password/forgot"])
async def test_opening_a_link_changes_nothing(client, path):
    assert (await client.get(f"{path}?token=x")).status_code == 405


async def test_a_page_of_ours_is_linked_to(make_settings, api_of, folder, arrived):
    link = "https://app.example.com/verify#{token}"
    settings = make_settings(mail_url=SecretStr(folder.as_uri()), mail_link_verify=link)
    async with running(create(settings)) as client:
        await api_of(client).register("ada")
        message = await arrived(1)

    assert f"    https://app.example.com/verify#{token_of(message)}" in message.get_content().splitlines()


async def test_without_a_place_for_mails_it_is_said_at_start_and_to_who_asks(make_settings, api_of):
    with capture_logs() as lines:
        async with running(create(make_settings(mail_url=SecretStr("")))) as client:
            api = api_of(client)
            await api.register("ada")
            bearer = await api.bearer("ada")
            answers = [
                await client.post("/auth/email/verify/request", headers=bearer),
                await client.post("/auth/password/forgot", json={"email": "ada@example.com"}),
                await client.post("/auth/password/forgot", json={"email": "nobody@example.com"}),
            ]

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "mail_not_set_up")}
    assert all("mail is not set up" in answer.json()["detail"] for answer in answers)
    assert [line["fix"][:21] for line in lines if line["event"] == "mail_not_set_up"] == ["set RH_USERS_MAIL_URL"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"MAIL_URL": "http://x"}, "RH_USERS_MAIL_URL: must be a URL that begins with one of smtp://"),
        ({"MAIL_URL": "smtp://u:secret@host:x"}, "RH_USERS_MAIL_URL: must be a URL such as"),
        ({"MAIL_URL": "smtp://u:secret@host"}, "RH_USERS_MAIL_FROM: is needed with a mail server"),
        ({"MAIL_FROM": "us"}, "RH_USERS_MAIL_FROM: must be an e-mail address"),
        ({"MAIL_FROM": "Us\nBcc: x <us@example.com>"}, "RH_USERS_MAIL_FROM: must be one line"),
        ({"MAIL_FROM": "Us <ü@example.com>"}, "RH_USERS_MAIL_FROM: must be an ASCII address"),
        ({"MAIL_LINK_RESET": "https://example.com/reset"}, "RH_USERS_MAIL_LINK_RESET: must be an http"),
        ({"MAIL_LINK_VERIFY": "javascript:{token}"}, "RH_USERS_MAIL_LINK_VERIFY: must be an http"),
        ({"PUBLIC_URL": "example.com"}, "RH_USERS_PUBLIC_URL: must be an http"),
        ({"PUBLIC_URL": "https://example.com?x"}, "RH_USERS_PUBLIC_URL: must be an http"),
        ({"MAILS_PER_HOUR_MAX": "0"}, "RH_USERS_MAILS_PER_HOUR_MAX: "),
    ],
)
def test_settings_that_do_not_fit_are_refused_without_their_secrets(monkeypatch, values, said):
    for name, value in values.items():
        monkeypatch.setenv(f"RH_USERS_{name}", value)

    with pytest.raises(SettingsError) as refused:
        load(UsersSettings)

    assert said in str(refused.value)
    assert "secret" not in str(refused.value)


def test_mail_settings_that_fit_are_taken(monkeypatch):
    monkeypatch.setenv("RH_USERS_MAIL_URL", "smtps://us%40example.com:p%40ss@mail.example.com")
    monkeypatch.setenv("RH_USERS_MAIL_FROM", "Grüße von uns <us@example.com>")
    monkeypatch.setenv("RH_USERS_PUBLIC_URL", "https://example.com/api/")

    found = load(UsersSettings)

    assert (found.mail_from, found.public_url) == ("Grüße von uns <us@example.com>", "https://example.com/api")
