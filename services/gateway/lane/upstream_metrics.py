"""What the gateway knows about the services behind it, as metrics: read at each scrape from plain numbers, free on the way."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.lane.attempt import Outcome
from services.gateway.lane.upstream import text_of
from services.gateway.lane.upstreams import Upstreams
from shared.breaker import State

STATES = {State.CLOSED: 0.0, State.HALF_OPEN: 0.5, State.OPEN: 1.0}


class UpstreamMetrics(Collector):
    """Series live as long as their service is routed and their replica is known, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        yield from self._of_services()
        yield from self._of_replicas()

    def _of_services(self) -> Iterable[Metric]:
        breaker = _gauge("upstream_breaker", "Of a service: 0 closed, 0.5 half open, 1 open.")
        in_flight = _gauge("upstream_in_flight", "Attempts under way, without lasting streams.")
        limit = _gauge("upstream_in_flight_limit", "How many may be under way now.")
        retries = _counter("upstream_retries", "Attempts after the first that cost a part of the budget.")
        denied = _counter("upstream_retries_denied", "Retries that the budget did not allow.")
        shed = _counter("upstream_shed", "Requests refused before they were sent, by reason.", "reason")
        for upstream in self._upstreams:
            name = [upstream.name]
            breaker.add_metric(name, STATES[upstream.state])
            in_flight.add_metric(name, upstream.limit.in_flight)
            limit.add_metric(name, upstream.limit.limit)
            retries.add_metric(name, upstream.retries)
            denied.add_metric(name, upstream.retries_denied)
            for reason, count in upstream.shed.items():
                shed.add_metric([*name, reason], count)
        return breaker, in_flight, limit, retries, denied, shed

    def _of_replicas(self) -> Iterable[Metric]:
        breaker = _gauge("upstream_replica_breaker", "Of a replica: 0 closed, 0.5 half open, 1 open.", "replica")
        drained = _gauge("upstream_replica_drained", "1 where an operator sends it nothing new.", "replica")
        in_flight = _gauge("upstream_replica_in_flight", "Everything under way at a replica.", "replica")
        attempts = _counter(
            "upstream_replica_attempts",
            "Attempts that ended, by outcome (ok, failed, refused, given_up, busy).",
            "replica",
            "outcome",
        )
        for upstream in self._upstreams:
            for replica in upstream.replicas:
                labels = [upstream.name, text_of(replica.address)]
                breaker.add_metric(labels, STATES[replica.breaker.state])
                drained.add_metric(labels, replica.is_drained)
                in_flight.add_metric(labels, replica.in_flight)
                for outcome in Outcome:
                    attempts.add_metric([*labels, outcome.name.lower()], replica.ended[outcome])
        return breaker, drained, in_flight, attempts


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=("service", *labels))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=("service", *labels))
