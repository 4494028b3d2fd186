"""Requests and CPU time of all gateways, side by side in interleaved rounds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.bench.errors import BenchError
from tests.bench.gateways import Variant
from tests.bench.results import ratio_of_medians, rounded
from tests.bench.windows import QUIET_S, WARM_UP_S, Driver, Window

START_S = 1.0
"""About what a gateway takes to start, be checked and end; for the estimate only."""

KINDS = ("get", "post")


@dataclass(slots=True)
class Rounds:
    """What the rounds showed; `skipped` says why a row is not there."""

    windows: list[Window] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    lacks: dict[str, list[str]] = field(default_factory=dict)

    def of(self, variant: str, request: str) -> list[Window]:
        return [found for found in self.windows if (found.variant, found.request) == (variant, request)]


def estimate_s(variants: Sequence[Variant], *, rounds: int, window_s: int) -> float:
    """Return about how long the rounds take; a row that logs waits for its lines."""
    quiet_s = sum(QUIET_S for variant in variants if variant.log_mark)
    return rounds * (len(variants) * (START_S + WARM_UP_S + len(KINDS) * (window_s + 0.1)) + len(KINDS) * quiet_s)


def order(variants: Sequence[Variant], number: int) -> list[Variant]:
    """Return the variants in the order of a round: each begins once before any begins twice, and neighbours change sides."""
    turn = number % len(variants)
    found = [*variants[turn:], *variants[:turn]]
    return found[::-1] if number % 2 else found


def run(
    driver: Driver, variants: Sequence[Variant], *, rounds: int, window_s: int, tell: Callable[[str], None]
) -> Rounds:
    """Measure every variant in every round. A peer that fails loses its row; a failure of ours raises BenchError."""
    found = Rounds()
    for number in range(rounds):
        for variant in order(variants, number):
            if variant.name in found.skipped:
                continue
            try:
                windows = _windows(driver, variant, number, window_s, found)
            except BenchError as error:
                if variant.is_ours:
                    raise
                found.skipped[variant.name] = str(error)
                found.windows = [window for window in found.windows if window.variant != variant.name]
                tell(f"round {number + 1}/{rounds} {variant.name:<18} left out: {error}")
                continue
            found.windows += windows
            for window in windows:
                tell(
                    f"round {number + 1}/{rounds} {variant.name:<18} {window.request:<4} {window.per_s:>8,.0f}/s "
                    f"{window.cpu_us:>8.1f} µs CPU  p50 {window.p50_ms:.2f} p99 {window.p99_ms:.2f} ms  "
                    f"{window.rss_mib:.0f} MiB  busy {window.busy:.2f}"
                )
    return found


def _windows(driver: Driver, variant: Variant, number: int, window_s: int, found: Rounds) -> list[Window]:
    with driver.serving(variant) as (started, port):
        if variant.is_all_on and (lacking := driver.lacks(port)):
            found.lacks[variant.name] = lacking
        driver.load(port, "get", seconds=WARM_UP_S)
        return [driver.measure(variant, started, port, number=number, request=kind, seconds=window_s) for kind in KINDS]


def medians(found: Rounds, variants: Iterable[Variant]) -> dict[str, dict[str, Any]]:
    """Return the medians of each variant's rounds by name and request."""
    shown = ("per_s", "cpu_us", "p50_ms", "p99_ms", "rss_mib", "pss_mib", "busy")
    return {
        variant.name: {
            kind: {name: rounded(median(getattr(window, name) for window in windows)) for name in shown}
            for kind in KINDS
            if (windows := found.of(variant.name, kind))
        }
        for variant in variants
        if found.of(variant.name, "get")
    }


def ratios(found: Rounds, variants: Sequence[Variant], prefixes: Mapping[str, str]) -> dict[str, float]:
    """Return our CPU time a request over each peer's: `cpu_vs_envoy`; `post_` before it for POST, a variant's prefix before that.

    Of what asks the shared store also the round trips to it, `store_round_trips_per_request`.
    """
    rows = {}
    for ours in (variant for variant in variants if variant.is_ours):
        for peer in (variant for variant in variants if not variant.is_ours):
            for kind in KINDS:
                own, other = found.of(ours.name, kind), found.of(peer.name, kind)
                if own and other:
                    key = f"{prefixes[ours.name]}{'' if kind == 'get' else 'post_'}cpu_vs_{peer.name.replace('-', '_')}"
                    rows[key] = ratio_of_medians((w.cpu_us for w in own), (w.cpu_us for w in other))
        if ours.is_all_on:
            windows = [window for kind in KINDS for window in found.of(ours.name, kind)]
            asked = sum(window.store_round_trips for window in windows)
            rows[f"{prefixes[ours.name]}store_round_trips_per_request"] = asked / sum(
                window.requests for window in windows
            )
    return rows
