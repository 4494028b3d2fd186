"""What the service writes about its users: no password, hash or token, and no whole e-mail address."""

import asyncio
import logging
import re

import pytest
import structlog
from pydantic import SecretStr

from services.users.app import create
from services.users.tests.conftest import PASSWORD
from shared import log
from shared.testing.client import running


@pytest.fixture
def written(make_settings, capfdbinary, monkeypatch, tmp_path):
    """Visits a service that writes as in production; returns what was written and what must not be in it."""
    monkeypatch.setattr(log, "_json_lines", None)
    handlers, level = logging.getLogger().handlers, logging.getLogger().level

    async def run():
        # In the test: only here is what stands for the standard output the one that is read below.
        log.set_up(service="users", replica="users-1", level="INFO")
        async with running(create(make_settings(mail_url=SecretStr(tmp_path.as_uri())))) as client:
            forbidden = await visit(client, tmp_path)
        return capfdbinary.readouterr().out.decode(), forbidden

    yield run
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)


async def mailed(folder, count):
    """Wait for so many mails; return the tokens in them."""
    async with asyncio.timeout(10):
        while len(found := sorted(folder.glob("*.eml"))) < count:
            await asyncio.sleep(0.01)
    return [re.findall(r"^    ([\w-]{43})\r?$", path.read_text(), re.MULTILINE)[0] for path in found]


async def visit(client, folder):
    """Meet as many refusals and successes as a user can; returns what must not be written."""
    body = {"username": "ada", "email": "ada.lovelace@example.com", "password": PASSWORD, "full_name": "Ada Lovelace"}
    user = (await client.post("/users", json=body)).json()
    await client.post("/users", json=body)
    await client.post("/users", json={**body, "password": "password123", "email": "broken@@example.com"})
    tokens = (await client.post("/auth/token", data={"username": body["email"], "password": PASSWORD})).json()
    await client.post("/auth/token", data={"username": body["email"], "password": "a wrong secret 7"})
    again = (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).json()
    bearer = {"Authorization": f"Bearer {again['access_token']}"}
    await client.get("/auth/me", headers=bearer)
    await client.get(f"/users/{user['id']}?token={again['access_token']}", headers=bearer)
    await client.get("/users?email=ada.lovelace@example.com", headers=bearer)
    await client.get("/users/ada.lovelace@example.com", headers=bearer)
    await client.patch(f"/users/{user['id']}", json={"password": "another secret 9"}, headers=bearer)
    await client.post("/auth/logout", headers=bearer)
    await client.post("/auth/password/forgot", json={"email": body["email"]})
    verify, reset = await mailed(folder, 2)
    await client.post("/auth/password/reset", json={"token": verify, "password": "a third secret 5"})
    await client.post(f"/auth/password/reset?token={reset}", json={"token": reset, "password": "a third secret 5"})
    await client.post("/auth/email/verify", json={"token": verify})
    await client.post("/auth/email/verify", json={"token": verify, "more": body["email"]})
    return [
        *(verify, reset, "a third secret 5"),
        *(PASSWORD, "a wrong secret 7", "another secret 9", "password123"),
        *(tokens["access_token"], tokens["refresh_token"], again["access_token"], again["refresh_token"]),
        *("ada.lovelace", "$argon2id$"),
    ]


async def test_no_secret_and_no_whole_address_is_written(written):
    text, forbidden = await written()

    assert text.count('"event":"request"') >= 12
    assert [secret for secret in forbidden if secret in text] == []


async def test_without_the_mask_it_would_be_seen(written, monkeypatch):
    monkeypatch.setattr(log, "mask", lambda text: text)
    text, _ = await written()

    assert "ada.lovelace" in text
