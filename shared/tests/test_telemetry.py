"""Traces: one server span a request, child of the caller's, sent to the OTLP endpoint; nothing at all without one."""

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from fastapi import APIRouter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic_settings import SettingsConfigDict

from shared.app import Application, Opened, Runtime, build
from shared.settings import Settings
from shared.testing.client import running

pytestmark = pytest.mark.slow  # the exporter sends once a second

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class DemoSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="RH_DEMO_")
    service: ClassVar[str] = "demo"


def create(otlp_endpoint: str) -> Application:
    router = APIRouter()

    @router.get("/items/{item_id}")
    async def read(item_id: str) -> str:
        return item_id

    @asynccontextmanager
    async def resources(_: DemoSettings, __: Runtime) -> AsyncIterator[Opened[None]]:
        yield Opened(None)

    settings = DemoSettings(otlp_endpoint=otlp_endpoint, replica="demo-7")
    return build(settings, routers=[router], resources=resources, title="Demo")


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A real OTLP/HTTP receiver and the spans it got, each with its resource's attributes."""
    spans: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            for group in request.resource_spans:
                resource = {a.key: a.value.string_value for a in group.resource.attributes}
                spans.extend((resource, span) for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing on the test's stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()
    thread.join()


async def test_a_sampled_request_has_exactly_one_server_span(collector: tuple[str, list[Any]]) -> None:
    endpoint, spans = collector

    async with running(create(endpoint)) as client:
        await client.get("/items/1", headers={"traceparent": SAMPLED})
        await client.get("/items/2", headers={"traceparent": NOT_SAMPLED})
        await client.get("/ready", headers={"traceparent": SAMPLED})

    ((resource, span),) = spans
    assert span.trace_id.hex() == SAMPLED.split("-")[1]
    assert span.parent_span_id.hex() == SAMPLED.split("-")[2]
    assert span.name == "GET /items/{item_id}"
    assert (resource["service.name"], resource["service.instance.id"]) == ("demo", "demo-7")


async def test_a_collector_that_is_away_costs_no_request() -> None:
    async with running(create("http://127.0.0.1:9")) as client:
        assert (await client.get("/items/1", headers={"traceparent": SAMPLED})).status_code == 200


def test_without_an_endpoint_the_sdk_is_not_even_imported() -> None:
    program = "import sys; import shared.app, shared.serve; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=20).returncode == 0
