"""The pools' metrics in Prometheus's form."""

from prometheus_client import Counter, Gauge, Histogram

from services.compute.pool.supervisor import ProcessPool
from shared.metrics import SECONDS_BUCKETS, Metrics


class PoolMetrics:
    """An Observer of the process pool; `show` adds the gauges that are read from it at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._registry = metrics.registry
        self.jobs = Counter("pool_jobs", "Jobs that ended, by result.", ("result",), registry=self._registry)
        self.wait = Histogram(
            "pool_wait_seconds",
            "From a job's arrival to a free child.",
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )

    def show(self, pool: ProcessPool) -> None:
        """Export the pool's size and load."""
        self._gauge("pool_slots", "Child processes the pool keeps.").set(pool.slots)
        self._gauge("pool_busy", "Children that run a job.").set_function(lambda: pool.busy)
        self._gauge("pool_queue", "Jobs that wait for a child.").set_function(lambda: pool.queued)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def waited(self, seconds: float) -> None:
        self.wait.observe(seconds)

    def finished(self, result: str) -> None:
        self.jobs.labels(result).inc()
