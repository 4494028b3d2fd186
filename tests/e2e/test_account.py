"""Verifying an address and resetting a password through the gateway, by the mails of a fleet of our own."""

import asyncio
import re
import secrets
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from pathlib import Path
from typing import cast

import httpx2
import pytest

from tests.e2e.client import Account, Fleet, assert_problem, sign_in

ARRIVES_WITHIN_S = 10.0


async def mails_to(fleet: Fleet, address: str, *, count: int) -> list[EmailMessage]:
    """Wait for so many mails to an address, oldest first."""
    if fleet.mails is None:
        pytest.skip("the mails of the fleet at ROUNDHOUSE_URL are out of reach")
    async with asyncio.timeout(ARRIVES_WITHIN_S):
        while True:
            found = [read(path) for path in sorted(fleet.mails.glob("*.eml"))]
            found = [mail for mail in found if mail["To"] == address]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


def read(path: Path) -> EmailMessage:
    return cast(EmailMessage, message_from_bytes(path.read_bytes(), policy=SMTPUTF8))


def token_of(mail: EmailMessage) -> str:
    (found,) = re.findall(r"^    ([\w-]{43})\r?$", mail.get_content(), re.MULTILINE)
    return str(found)


async def test_an_address_is_verified_by_the_mail_of_its_registration(
    fleet: Fleet, client: httpx2.AsyncClient, account: Account
) -> None:
    address = f"/users/{account.id}"
    assert (await client.get(address, headers=account.headers)).json()["email_verified"] is False
    (mail,) = await mails_to(fleet, account.email, count=1)
    assert fleet.url in mail.get_content()

    answer = await client.post("/auth/email/verify", json={"token": token_of(mail)})

    assert answer.status_code == 204, answer.text
    async with asyncio.timeout(5):
        while not (await client.get(address, headers=account.headers)).json()["email_verified"]:
            await asyncio.sleep(0.01)
    assert_problem(await client.post("/auth/email/verify", json={"token": token_of(mail)}), 422)


async def test_asking_for_a_mail_to_verify_needs_a_token(client: httpx2.AsyncClient, account: Account) -> None:
    assert_problem(await client.post("/auth/email/verify/request"), 401)
    assert (await client.post("/auth/email/verify/request", headers=account.headers)).status_code == 202


async def test_a_forgotten_password_is_reset_and_old_tokens_are_refused_everywhere(
    fleet: Fleet, client: httpx2.AsyncClient, account: Account
) -> None:
    await mails_to(fleet, account.email, count=1)
    asked = await client.post(
        "/auth/password/forgot", json={"email": account.email}, headers={"X-Forwarded-Host": "thief.example"}
    )
    unknown = await client.post("/auth/password/forgot", json={"email": f"{secrets.token_hex(8)}@example.com"})
    assert (asked.status_code, asked.content) == (unknown.status_code, unknown.content) == (202, b"")
    mail = (await mails_to(fleet, account.email, count=2))[1]
    assert "thief" not in mail.as_string()

    password = secrets.token_urlsafe(12)
    body = {"token": token_of(mail), "password": password}
    answers = await asyncio.gather(*(client.post("/auth/password/reset", json=body) for _ in range(20)))

    assert sorted(answer.status_code for answer in answers) == [204, *[422] * 19]
    async with asyncio.timeout(1):
        while (await client.get("/async-demo", headers=account.headers)).status_code != 401:
            await asyncio.sleep(0.01)
    old = {"username": account.username, "password": account.password}
    assert_problem(await client.post("/auth/token", data=old), 401)
    await sign_in(client, account.username, password)
