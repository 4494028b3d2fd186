"""What the e2e tests share: the fleet as its clients know it, accounts, and the form of a refusal."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a client is told: the gateway's URL, and a token of the first admin ("" where none is known).

    `mails` is the folder that mails go to, None where that is out of reach.
    """

    url: str
    admin_token: str
    mails: Path | None = None

    @property
    def websocket_url(self) -> str:
        return "ws" + self.url.removeprefix("http")


@dataclass(frozen=True, slots=True)
class Account:
    """A registered and signed-in user."""

    id: str
    username: str
    email: str
    password: str
    token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


async def sign_in(client: httpx2.AsyncClient, username: str, password: str) -> dict[str, Any]:
    response = await client.post("/auth/token", data={"username": username, "password": password})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def answered(
    ask: Callable[[], Awaitable[httpx2.Response]], status: int, *, within_s: float = 2.0
) -> httpx2.Response:
    """Ask until the answer has a status: what changed is known to every replica within a second, and a machine may be busy."""
    until = time.monotonic() + within_s
    while True:
        response = await ask()
        if response.status_code == status or time.monotonic() > until:
            assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
            return response
        await asyncio.sleep(0.02)


MakeAccount = Callable[[], Awaitable[Account]]


def assert_problem(response: httpx2.Response, *statuses: int) -> dict[str, Any]:
    """Check that a refusal is a problem document that names its request."""
    assert response.status_code in statuses, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert {"type", "title", "status", "detail", "instance", "code", "request_id"} <= set(body)
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert "127.0.0.1" not in response.text
    return body
