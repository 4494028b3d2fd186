"""Traces: switched on by an OTLP endpoint, absent otherwise; the SDK is imported only then."""

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


def instrument(app: FastAPI, settings: "Settings") -> None:
    """Give every request of `app` one server span, exported to `settings.otlp_endpoint`; nothing where that is empty.

    The parent is the W3C `traceparent` of the request, so the gateway's decision to sample holds below it.
    """
    if not settings.otlp_endpoint:
        return
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
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint}/v1/traces")))
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, exclude_spans=["receive", "send"], excluded_urls="live,ready,metrics"
    )
