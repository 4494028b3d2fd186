"""Traces: switched on by an OTLP endpoint, absent otherwise; the SDK is imported only then."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

if TYPE_CHECKING:
    from shared.settings import Settings

OFF: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own telemetry stays off: it would be a second server span beside the one made here."""


EXPORT_TIMEOUT_S = 2


def instrument(app: FastAPI, settings: "Settings") -> Callable[[], None]:
    """Give every request of `app` one server span, exported to `settings.otlp_endpoint`; nothing where that is empty.

    The parent is the W3C `traceparent` of the request, so the gateway's decision to sample holds below it. Returns what to call
    at the end: it sends what is still waiting and blocks for 2 s at most.
    """
    if not settings.otlp_endpoint:
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": settings.service, "service.instance.id": settings.replica_name}),
        sampler=ParentBased(ALWAYS_OFF),
    )
    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, exclude_spans=["receive", "send"], excluded_urls="live,ready,metrics"
    )
    return provider.shutdown
