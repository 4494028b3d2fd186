"""Metrics: the names every service exports, in one table, on a registry of its own."""

from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from shared.cache.entries import CacheStatistics

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST
UNMATCHED = "unmatched"
"""The route label of every path that no route knows, so that hostile paths make no new series."""

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})


class Series:
    """What was counted of one method on one route."""

    __slots__ = ("buckets", "by_status", "seconds")

    def __init__(self) -> None:
        self.by_status: dict[int, int] = {}
        self.buckets = [0] * (len(SECONDS_BUCKETS) + 1)
        self.seconds = 0.0

    def count(self, status: int) -> None:
        """Count one answer."""
        self.by_status[status] = self.by_status.get(status, 0) + 1

    def observe(self, seconds: float) -> None:
        """Add one duration."""
        self.buckets[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self.seconds += seconds


class RequestSeries(Collector):
    """Requests by method, route and status: plain numbers, read at each scrape.

    The library's own counters take a lock for each of the five numbers that one request changes, a twentieth of all that the gateway
    does for a proxied request. These are for one event loop, so they need none. Routes come from a table, so the series are bounded.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.active = {"http": 0, "websocket": 0}
        """Exchanges under way, by kind."""
        self._series: dict[tuple[str, str], Series] = {}
        registry.register(self)

    def of(self, method: str, route: str) -> Series:
        """Return the series of a method on a route, the same one each time; unknown methods share one."""
        key = (method if method in KNOWN_METHODS else "other", route)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series()
        return found

    def collect(self) -> Iterable[Metric]:
        """Yield `requests_total`, `request_duration_seconds` and `active_connections` (seed names)."""
        total = CounterMetricFamily("requests", "Requests answered.", labels=("method", "route", "status"))
        times = HistogramMetricFamily(
            "request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            labels=("method", "route"),
        )
        active = GaugeMetricFamily(
            "active_connections", "Exchanges under way, by kind (http, websocket).", labels=("kind",)
        )
        for labels, series in self._series.items():
            for status, count in series.by_status.items():
                total.add_metric((*labels, str(status)), count)
            if any(series.buckets):
                times.add_metric(labels, buckets=_cumulative(series.buckets), sum_value=series.seconds)
        for kind, count in self.active.items():
            active.add_metric((kind,), count)
        return total, times, active


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    found, below = [], 0
    for bound, count in zip((*map(str, SECONDS_BUCKETS), "+Inf"), buckets, strict=True):
        below += count
        found.append((bound, float(below)))
    return found


class CacheSeries(Collector):
    """What the caches of a service count, read at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._watched: dict[str, Callable[[], CacheStatistics]] = {}
        registry.register(self)

    def watch(self, cache: str, statistics: Callable[[], CacheStatistics]) -> None:
        """Show what a cache counts under its name."""
        self._watched[cache] = statistics

    def collect(self) -> Iterable[Metric]:
        """Yield the `cache_...` series, where there is a cache."""
        if not self._watched:
            return ()
        reads = CounterMetricFamily(
            "cache_reads",
            "Reads by how they were answered (a joined one waited for another's miss).",
            labels=("cache", "result"),
        )
        removed = CounterMetricFamily(
            "cache_removed",
            "Entries that went for want of room (evicted) or at their time (expired).",
            labels=("cache", "reason"),
        )
        refused = CounterMetricFamily("cache_refused", "Loads older than what was known, not kept.", labels=("cache",))
        heard = CounterMetricFamily("cache_changes_heard", "Changes heard of other replicas.", labels=("cache",))
        flushes = CounterMetricFamily(
            "cache_flushes",
            "Times the local tier was emptied because something may have been missed.",
            labels=("cache",),
        )
        errors = CounterMetricFamily("cache_errors", "Times the shared tier did not answer.", labels=("cache",))
        entries = GaugeMetricFamily("cache_entries", "Entries of the local tier.", labels=("cache",))
        used = GaugeMetricFamily("cache_bytes", "Bytes that the local tier takes, about.", labels=("cache",))
        for name, statistics in self._watched.items():
            found = statistics()
            for result in ("hits", "remote_hits", "misses", "joined", "stale"):
                reads.add_metric((name, result), getattr(found, result))
            for reason in ("evicted", "expired"):
                removed.add_metric((name, reason), getattr(found, reason))
            refused.add_metric((name,), found.refused)
            heard.add_metric((name,), found.changes)
            flushes.add_metric((name,), found.flushes)
            errors.add_metric((name,), found.errors)
            entries.add_metric((name,), found.entries)
            used.add_metric((name,), found.bytes_used)
        return reads, removed, refused, heard, flushes, errors, entries, used


class Metrics:
    """The request metrics and the registry to which a service adds its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = RequestSeries(self.registry)
        self.caches = CacheSeries(self.registry)

    def exposition(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)
