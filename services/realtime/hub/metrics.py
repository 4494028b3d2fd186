"""What the hub counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class HubMetrics:
    """`connections` is what the service is scaled on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.connections = Gauge("connections", "Open, by kind (websocket, sse).", ("kind",), registry=registry)
        self.messages_in = Counter("messages_in", "Frames that clients sent, by type.", ("type",), registry=registry)
        self.deliveries = Counter("deliveries", "Publications handed to listeners.", registry=registry)
        self.gaps = Counter("gaps", "Times that publications may be missing for good.", registry=registry)
        self.slow_consumers_closed = Counter(
            "slow_consumers_closed", "Listeners closed because they did not read.", ("kind",), registry=registry
        )
