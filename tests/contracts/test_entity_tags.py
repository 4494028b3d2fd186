"""A tag that the gateway gave out with a compressed answer is still good for a change: the real users service beside the real rule."""

from collections.abc import Callable, Collection

import httpx2
import pytest
from pydantic import SecretStr

from services.gateway.domain.config import check
from services.gateway.domain.defaults import default_config
from services.gateway.lane.compress import Compression
from services.gateway.lane.head import Headers
from services.users.adapters import keys
from services.users.app import create
from services.users.settings import UsersSettings
from shared.testing.client import running

TABLE = check(default_config(is_production=False))
PASSWORD = "correct horse"


def of_the_table(path: str) -> Collection[str]:
    return TABLE.find(path) or ()


def read_only(_: str) -> Collection[str]:
    """The protection switched off."""
    return ()


def passed_on(
    response: httpx2.Response, methods_of: Callable[[str], Collection[str]], asked: Headers
) -> httpx2.Headers:
    """What the gateway makes of an answer's headers for a client that takes gzip."""
    path = response.request.url.path
    headers = [(name.lower(), value) for name, value in response.headers.raw]
    route = TABLE.resolve(response.request.method, path)
    # A record is shorter than what is worth compressing: here every body is.
    Compression(methods_of, bytes_min=0).for_answer(
        b"gzip", response.request.method, response.status_code, headers, route=route, path=path, asked=asked
    )
    return httpx2.Headers(headers)


@pytest.mark.parametrize(("methods_of", "status"), [(of_the_table, 200), (read_only, 412)])
async def test_tag_of_a_record_read_by_a_client_that_takes_gzip_is_good_for_a_change(
    monkeypatch: pytest.MonkeyPatch, methods_of: Callable[[str], Collection[str]], status: int
) -> None:
    monkeypatch.setattr(keys, "SEAL_COST", 2)
    settings = UsersSettings(
        environment="test", hash_memory_kib=8, hash_passes=1, key_seal=SecretStr("a-seal-for-the-tests")
    )
    async with running(create(settings)) as users:
        new = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        address = (await users.post("/users", json=new)).headers["location"]
        tokens = (await users.post("/auth/token", data={"username": "ada", "password": PASSWORD})).json()
        signed_in = {"Authorization": f"Bearer {tokens['access_token']}"}

        read = await users.get(address, headers=signed_in)
        tag = passed_on(read, methods_of, [])["etag"]
        again = await users.get(address, headers={**signed_in, "If-None-Match": tag})
        assert again.status_code == 304
        # Under the tag that the client has: a cache could not use another one.
        assert passed_on(again, methods_of, [(b"if-none-match", tag.encode())])["etag"] == tag

        changed = await users.patch(address, json={"full_name": "Ada L."}, headers={**signed_in, "If-Match": tag})
        assert changed.status_code == status
