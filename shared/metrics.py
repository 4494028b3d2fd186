"""Metrics: the names every service exports, in one table, on a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST
UNMATCHED = "unmatched"
"""The route label of every path that no route knows, so that hostile paths make no new series."""


class Metrics:
    """The request metrics (seed names) and the registry to which a service adds its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests_total = Counter(
            "requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.request_duration_seconds = Histogram(
            "request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            ("method", "route"),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.active_connections = Gauge(
            "active_connections", "Exchanges under way, by kind (http, websocket).", ("kind",), registry=self.registry
        )

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)
