"""The tail of the answer times at 70 % of what each gateway can do, with an open-loop client."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

from tests.bench.errors import BenchError
from tests.bench.gateways import Variant
from tests.bench.paced import Paced, pace
from tests.bench.parts import Part
from tests.bench.results import ratio_of_medians, rounded
from tests.bench.throughput import START_S, order
from tests.bench.upstream import DOCUMENT
from tests.bench.windows import CONNECTIONS, TARGET, WARM_UP_S, Driver

SHARE = 0.7
ROWS = ("nginx", "envoy", "ours-all")
PEAK_S = 1
PACED_S = 3
ANSWERED_SHARE_MIN = 0.95
"""A gateway or client that stays below what was offered is over its peak: its times say nothing."""

METHOD = (
    f"Each row's own peak is taken first (wrk, {PEAK_S} s), then {SHARE:.0%} of it is offered for {PACED_S} s by an open-loop client on"
    f" {CONNECTIONS} connections: Poisson arrivals, times from the moment a request was due. Medians of the rounds; the client's own "
    "lateness is in them and shown beside them."
)


class OverPeak(BenchError):
    """Gateway or client fell behind what was offered: the machine has become slower since the peak was taken."""


def estimate_s(variants: Sequence[Variant], *, rounds: int) -> float:
    rows = sum(variant.name in ROWS for variant in variants)
    return rows * rounds * (START_S + WARM_UP_S + PEAK_S + PACED_S + 0.5)


def run(driver: Driver, variants: Sequence[Variant], *, rounds: int, tell: Callable[[str], None]) -> Part:
    """Measure those of `ROWS` that are among the variants, interleaved.

    A round over the peak, or in which a peer failed, is told and not counted; a failure of ours raises BenchError.
    """
    rows = [variant for variant in variants if variant.name in ROWS]
    found: dict[str, list[Paced]] = {}
    notes: list[str] = []
    for number in range(rounds):
        for variant in order(rows, number):
            try:
                seen = _one(driver, variant, seed=number + 1)
            except BenchError as error:
                if variant.is_ours and not isinstance(error, OverPeak):
                    raise
                notes.append(f"{variant.name}, round {number + 1}: {error}")
                tell(f"latency {number + 1}/{rounds} {notes[-1]}")
                continue
            found.setdefault(variant.name, []).append(seen)
            tell(
                f"latency {number + 1}/{rounds} {variant.name:<10} at {seen.offered_per_s:>8,.0f}/s  p50 {seen.p50_ms:.2f} "
                f"p99 {seen.p99_ms:.2f} ms  (client late p99 {seen.late_p99_ms:.2f} ms)"
            )
    p99 = {name: [seen.p99_ms for seen in seens] for name, seens in found.items()}
    ratios = {
        f"p99_vs_{peer}_at_70_percent": ratio_of_medians(p99["ours-all"], p99[peer])
        for peer in ("nginx", "envoy")
        if "ours-all" in p99 and peer in p99
    }
    raw = {
        "method": METHOD,
        "notes": notes,
        "p99_ms": {name: rounded(median(values)) for name, values in p99.items()},
        "rounds": {
            name: [{key: rounded(value) for key, value in asdict(seen).items()} for seen in seens]
            for name, seens in found.items()
        },
    }
    return Part(raw, ratios)


def _one(driver: Driver, variant: Variant, *, seed: int) -> Paced:
    with driver.serving(variant) as (_, port):
        driver.load(port, "get", seconds=WARM_UP_S)
        peak = driver.load(port, "get", seconds=PEAK_S)
        if peak.errors or not peak.requests:
            raise BenchError(f"errors at the peak: {peak.errors}")
        seen = pace(
            port,
            request(driver.caller.authorization, port),
            DOCUMENT.encode(),
            per_s=peak.per_s * SHARE,
            seconds=PACED_S,
            connections=CONNECTIONS,
            seed=seed,
        )
    if seen.answered_per_s < ANSWERED_SHARE_MIN * seen.offered_per_s:
        raise OverPeak(f"{seen.offered_per_s:,.0f}/s offered, only {seen.answered_per_s:,.0f}/s answered")
    return seen


def request(authorization: str, port: int) -> bytes:
    """Return the bytes of the GET that wrk sends as well."""
    return f"GET {TARGET} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: {authorization}\r\n\r\n".encode()
