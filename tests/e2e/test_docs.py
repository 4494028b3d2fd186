"""The documentation of the whole platform at the gateway, held to what the gateway does."""

import re
from html.parser import HTMLParser

import httpx2
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.e2e.client import Account

LAST = ("/auth/logout", "delete")
"""What ends the account or its session comes after all else."""


async def test_the_document_is_valid_and_shows_every_service_live(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    OpenAPIV31SpecValidator(document).validate()
    states = {name: found["state"] for name, found in document["x-roundhouse"]["services"].items()}
    assert states == dict.fromkeys(("users", "realtime", "compute", "health"), "live")


async def test_every_operation_of_the_document_is_answered_by_whom_it_names(
    client: httpx2.AsyncClient, account: Account
) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    # What operators do is for test_admin: the gateway itself asks who they are, otherwise than routes do.
    operations = [(path, method) for path, item in paths.items() for method in item if not path.startswith("/admin/")]
    assert len(operations) > 15
    for path, method in sorted(operations, key=lambda found: any(part in LAST for part in found)):
        # The account's own id is one that every such path knows.
        target = re.sub(r"\{\w+\}", account.id, path)
        async with client.stream(method.upper(), target, headers=account.headers) as response:
            # 404 and 405 are the answers of a gateway without such a route; without a body some say 422, 415 or 428.
            assert response.status_code not in (404, 405, 502, 503, 504), f"{method} {path}"
        if paths[path][method]["x-roundhouse"]["access"] != "public":
            async with client.stream(method.upper(), target) as response:
                assert response.status_code == 401, f"{method} {path} lets everybody in"


class _Loaded(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href") and value != "openapi.json"]


async def test_the_page_and_all_that_it_loads_come_from_the_gateway(client: httpx2.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    addresses = _Loaded(page.text).addresses
    assert len(addresses) == 4
    for address in addresses:
        assert not re.match(r"[a-z]+:|//", address)
        assert (await client.get(f"/{address}")).status_code == 200
