"""The fleet's state as metrics: what `/health/detailed` says, at each scrape."""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.health.model import HealthDetail, State
from shared.metrics import Metrics

VALUES = {State.UP: 1.0, State.DEGRADED: 0.5, State.DOWN: 0.0}


class StateMetrics(Collector):
    """Exports `fleet_state` and `component_state{component}`: 1 up, 0.5 degraded, 0 down; series live as long as components."""

    def __init__(self, metrics: Metrics, known: Callable[[], HealthDetail]) -> None:
        self._known = known
        metrics.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        found = self._known()
        yield GaugeMetricFamily("fleet_state", "1 up, 0.5 degraded, 0 down.", VALUES[found.state])
        family = GaugeMetricFamily("component_state", "1 up, 0.5 degraded, 0 down.", labels=("component",))
        for name, component in found.components.items():
            family.add_metric([name], VALUES[component.state])
        yield family
