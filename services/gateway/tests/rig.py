"""The real gateway under uvicorn's protocols on a free port, with its endpoints in a file that a test may rewrite."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from uvicorn.server import ServerState

from services.gateway.app import Parts, create
from services.gateway.settings import GatewaySettings
from services.gateway.tests.scripted import WAIT_S, Upstream, Wire, answer
from shared.app import Application
from shared.serve import config_of, listen
from shared.testing.tokens import TokenMint

ROUTES = """
[[routes]]
path = "/open/*"
service = "open"
methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
auth = "public"
timeout_s = 5

[[routes]]
path = "/hasty/*"
service = "open"
methods = ["GET", "POST"]
auth = "public"
timeout_s = 0.2

[[routes]]
path = "/small/*"
service = "open"
methods = ["POST"]
auth = "public"
body_bytes_max = 1000

[[routes]]
path = "/large/*"
service = "open"
methods = ["GET", "POST"]
auth = "public"
body_bytes_max = 100000000
timeout_s = 30

[[routes]]
path = "/stream/*"
service = "open"
methods = ["GET"]
auth = "public"
kind = "stream"
timeout_s = 0.5
idle_timeout_s = 0.4

[[routes]]
path = "/private/*"
service = "open"
methods = ["GET", "POST"]
auth = "signed_in"

[[routes]]
path = "/events"
service = "open"
methods = ["GET"]
auth = "signed_in"
kind = "stream"
query_token = true

[[routes]]
path = "/admins/*"
service = "open"
methods = ["GET"]
auth = "admin"

[[routes]]
path = "/ws/*"
service = "open"
methods = ["GET"]
auth = "public"
kind = "websocket"
timeout_s = 2
"""

ONE_TRY = """
[services.open]
retries_max = 0
connect_timeout_s = 5
"""
"""So that what one upstream does is what the client sees; retries have their own tests. And a machine that stands still for a second
does not look like a service that takes no connection.
"""

Fleet = dict[str, list[str]]


class Rig:
    """A running gateway."""

    def __init__(self, app: Application, parts: Parts, port: int, endpoints: Path) -> None:
        self.app = app
        self.parts = parts
        self.port = port
        self._endpoints = endpoints
        self._wires: list[Wire] = []
        self.state = ServerState()

    async def connect(self, *, receive_buffer_bytes: int = 65536) -> Wire:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=receive_buffer_bytes)
        wire = Wire(reader, writer)
        self._wires.append(wire)
        return wire

    def get(self, target: str, *headers: str, method: str = "GET") -> bytes:
        """The bytes of a request."""
        return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: gateway:{self.port}", *headers, "", ""]).encode(
            "latin-1"
        )

    def post(self, target: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
        return self.get(target, f"Content-Length: {len(body)}", *headers, method=method) + body

    def point_at(self, fleet: Fleet) -> None:
        """Rewrite the endpoints file as the runner does."""
        write_endpoints(self._endpoints, fleet)

    def close(self) -> None:
        for wire in self._wires:
            wire.abort()


def write_endpoints(path: Path, fleet: Fleet) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(fleet))
    fresh.rename(path)


@asynccontextmanager
async def gateway(folder: Path, fleet: Fleet, **settings: Any) -> AsyncIterator[Rig]:
    endpoints = folder / "endpoints.json"
    write_endpoints(endpoints, fleet)
    values = {"config": ROUTES + ONE_TRY, "port": 0, **settings}
    app = create(GatewaySettings(environment="test", endpoints=endpoints.as_uri(), **values))
    config = config_of(app)
    config.load()
    sock = listen("127.0.0.1", 0)
    async with app.fastapi.router.lifespan_context(app.fastapi):
        rig = Rig(app, app.fastapi.state.parts, sock.getsockname()[1], endpoints)
        rig.state.default_headers = [(b"date", b"Mon, 23 Nov 2026 00:00:00 GMT")]
        server = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(config=config, server_state=rig.state, app_state={}), sock=sock
        )
        try:
            yield rig
        finally:
            server.close()
            rig.close()
            # What is under way sees its client gone; a test that leaves an exchange hanging fails here.
            await eventually(lambda: not rig.state.tasks)


async def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def issuing(mint: TokenMint) -> AsyncIterator[Upstream]:
    """A users service as far as the gateway asks it: it publishes the mint's key."""

    async def serve(wire: Wire) -> None:
        while True:
            request = await wire.message()
            assert request.target == "/.well-known/jwks.json"
            await wire.send(
                answer(json.dumps({"keys": [mint.jwk()]}).encode(), headers=["Content-Type: application/json"])
            )

    async with Upstream(serve) as upstream:
        yield upstream
