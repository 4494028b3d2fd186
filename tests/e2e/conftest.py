"""The fleet under test: one that is already running (ROUNDHOUSE_URL), else one of our own on free ports; spoken to by its URL only."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from tests.e2e.client import Account, Fleet, MakeAccount, sign_in
from tests.fleet import own_fleet

ADMIN = "admin"


def admin_token_of(url: str) -> str:
    """Sign in as the first admin of a fleet that runs already; "" without its password."""
    password = os.environ.get("ROUNDHOUSE_ADMIN_PASSWORD")
    if not password:
        return ""
    response = httpx2.post(f"{url}/auth/token", data={"username": ADMIN, "password": password}, timeout=10)
    response.raise_for_status()
    return str(response.json()["access_token"])


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    url = os.environ.get("ROUNDHOUSE_URL")
    if url:
        yield Fleet(url.rstrip("/"), admin_token_of(url.rstrip("/")))
        return
    mails = tmp_path_factory.mktemp("fleet") / "mail"
    with own_fleet("--replicas", "users=2,realtime=2", RH_USERS_MAIL_URL=mails.as_uri()) as own:
        yield Fleet(own.url, own.admin_token(), mails)


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=fleet.url, timeout=15, trust_env=False) as found:
        yield found


@pytest.fixture
def make_account(client: httpx2.AsyncClient) -> MakeAccount:
    async def make() -> Account:
        name = f"u{secrets.token_hex(6)}"
        email, password = f"{name}@example.com", secrets.token_urlsafe(12)
        created = await client.post("/users", json={"username": name, "email": email, "password": password})
        assert created.status_code == 201, created.text
        tokens = await sign_in(client, name, password)
        return Account(created.json()["id"], name, email, password, tokens["access_token"], tokens["refresh_token"])

    return make


@pytest.fixture
async def account(make_account: MakeAccount) -> Account:
    return await make_account()


@pytest.fixture
def admin_headers(fleet: Fleet) -> dict[str, str]:
    if not fleet.admin_token:
        pytest.skip("the fleet at ROUNDHOUSE_URL needs ROUNDHOUSE_ADMIN_PASSWORD for this")
    return {"Authorization": f"Bearer {fleet.admin_token}"}
