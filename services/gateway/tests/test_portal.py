"""`/openapi.json` and `/docs` at the real gateway: what a browser would load, and from where."""

import gzip
import json
import re
from html.parser import HTMLParser

import pytest

from services.gateway.routes.portal import ASSETS
from services.gateway.tests.document_rig import document, operation
from services.gateway.tests.rig import Rig
from services.gateway.tests.scripted import Message, Wire, answer

OPEN = document({"/open/x": {"get": operation()}, "/elsewhere": {"get": operation()}})


async def tell_document(wire: Wire) -> None:
    """A service as far as the gateway asks it for its document."""
    while True:
        request = await wire.message()
        assert request.target == "/openapi.json"
        assert not request.get("authorization")
        await wire.send(answer(json.dumps(OPEN).encode(), headers=["Content-Type: application/json"]))


@pytest.fixture
async def rig(serve, start) -> Rig:
    return await start(await serve(tell_document))


async def get(rig: Rig, target: str, *headers: str, method: str = "GET") -> Message:
    client = await rig.connect()
    return await client.ask(rig.get(target, *headers, method=method), has_body=method != "HEAD")


class References(HTMLParser):
    """The addresses that a page loads, and what it runs or styles in place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.in_place: list[str] = []
        self._in: str = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link":
            self.loaded.append(found["href"])
        self._in = tag
        self.in_place += [name for name in found if name == "style" or name.startswith("on")]

    def handle_data(self, data):
        if self._in in ("script", "style") and data.strip():
            self.in_place.append(data)


async def test_the_document_is_made_of_the_services_own(rig: Rig) -> None:
    reply = await get(rig, "/openapi.json")
    found = json.loads(reply.body)
    assert (reply.status, reply.get("content-type")) == (200, "application/json")
    assert found["x-roundhouse"]["services"] == {"open": {"state": "live"}}
    assert set(found["paths"]) >= {"/open/x", "/live", "/ready", "/metrics", "/openapi.json"}
    assert "/elsewhere" not in found["paths"]


async def test_the_document_says_which_service_is_down(start, unused_address) -> None:
    host, port = unused_address
    rig = await start(fleet={"open": [f"{host}:{port}"]})
    reply = await get(rig, "/openapi.json")
    found = json.loads(reply.body)
    assert reply.status == 200
    assert found["x-roundhouse"]["services"] == {
        "open": {"state": "absent", "reason": "no replica of open answers"},
    }
    assert str(port) not in reply.body.decode()


@pytest.mark.parametrize("target", ["/openapi.json", "/docs", "/docs/start.js"])
async def test_a_client_that_has_it_is_told_that_it_still_holds(rig: Rig, target: str) -> None:
    first = await get(rig, target)
    assert first.get("cache-control") == "no-cache"
    again = await get(rig, target, f"If-None-Match: {first.get('etag')}")
    assert (again.status, again.body, again.get("etag")) == (304, b"", first.get("etag"))
    assert (await get(rig, target, 'If-None-Match: "other"')).status == 200
    assert (await get(rig, target, method="HEAD")).status == 200


async def test_the_page_loads_only_what_the_gateway_serves(rig: Rig) -> None:
    page = await get(rig, "/docs")
    assert (page.status, page.get("content-type")) == (200, "text/html; charset=utf-8")
    found = References(page.body.decode())
    assert len(found.loaded) == 4
    assert found.in_place == []
    for address in found.loaded:
        assert re.fullmatch(r"docs/[a-z0-9./-]+", address)
        reply = await get(rig, f"/{address}")
        assert reply.status == 200, address
        assert reply.body
        assert reply.get("x-content-type-options") == "nosniff"


async def test_the_style_sheet_loads_nothing(rig: Rig) -> None:
    page = await get(rig, "/docs")
    (address,) = [address for address in References(page.body.decode()).loaded if address.endswith(".css")]
    sheet = (await get(rig, f"/{address}")).body.decode()
    addresses = re.findall(r"url\(\s*[\"']?(.{5})", sheet)
    assert addresses
    assert set(addresses) == {"data:"}
    assert "@import" not in sheet


async def test_the_page_may_load_and_run_only_what_is_its_own(rig: Rig) -> None:
    page = await get(rig, "/docs")
    policy = dict(part.split(" ", 1) for part in page.get("content-security-policy").split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    # Without it the page would send the document's address to a public validator, and show that as broken.
    assert b"validatorUrl: null" in (await get(rig, "/docs/start.js")).body


async def test_assets_are_kept_for_good_under_the_address_of_their_version(rig: Rig) -> None:
    page = await get(rig, "/docs")
    assets = [address for address in References(page.body.decode()).loaded if "/assets/" in address]
    assert {address.rpartition("/")[2] for address in assets} == set(ASSETS)
    for address in assets:
        reply = await get(rig, f"/{address}", method="HEAD")
        assert reply.get("cache-control") == "public, max-age=31536000, immutable"
        assert reply.get("content-type").partition(";")[0] == ASSETS[address.rpartition("/")[2]]
        other = address.replace("/assets/", "/assets/9")
        assert (await get(rig, f"/{other}")).status == 404


@pytest.mark.parametrize("name", ["main.py", "..", "", "x/y", "%2e%2e/main.py"])
async def test_nothing_but_the_assets_can_be_read(rig: Rig, name: str) -> None:
    page = await get(rig, "/docs")
    folder = References(page.body.decode()).loaded[0].rpartition("/")[0]
    assert (await get(rig, f"/{folder}/{name}")).status in (400, 404)


async def test_assets_are_compressed_for_those_who_ask(rig: Rig) -> None:
    page = await get(rig, "/docs")
    (address,) = [address for address in References(page.body.decode()).loaded if "bundle" in address]
    plain = await get(rig, f"/{address}")
    small = await get(rig, f"/{address}", "Accept-Encoding: gzip")
    assert small.get("content-encoding") == "gzip"
    assert "Accept-Encoding" in small.all("vary")
    assert gzip.decompress(small.body) == plain.body
    assert len(small.body) < len(plain.body) / 2
