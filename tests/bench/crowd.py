"""The memory of each gateway with a thousand clients connected: first idle after one request each, then all asking."""

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tests.bench import accounting
from tests.bench.errors import BenchError
from tests.bench.gateways import Variant
from tests.bench.latency import request
from tests.bench.parts import Part
from tests.bench.results import rounded
from tests.bench.sampling import PeakMemory
from tests.bench.throughput import START_S
from tests.bench.upstream import DOCUMENT
from tests.bench.windows import Driver

CLIENTS = 1000
AT_ONCE = 100
ACTIVE_S = 2
ANSWER_S = 10.0
ROWS = ("nginx", "haproxy", "envoy", "traefik", "caddy", "ours-bare", "ours-all")

METHOD = (
    f"{CLIENTS} clients connect and ask once each; with all of them connected and idle the memory is read (idle). They leave, and "
    f"wrk asks on {CLIENTS} connections for {ACTIVE_S} s; the highest seen meanwhile (active). One run each."
)


def estimate_s(variants: Sequence[Variant]) -> float:
    return sum(variant.name in ROWS for variant in variants) * (START_S + ACTIVE_S + 1)


def run(driver: Driver, variants: Sequence[Variant], *, tell: Callable[[str], None]) -> Part:
    """Measure those of `ROWS` that are among the variants; a peer that fails is noted, a failure of ours raises BenchError."""
    found: dict[str, dict[str, float]] = {}
    notes: list[str] = []
    for variant in variants:
        if variant.name not in ROWS:
            continue
        try:
            found[variant.name] = _one(driver, variant)
        except BenchError as error:
            if variant.is_ours:
                raise
            notes.append(f"{variant.name}: {error}")
            continue
        row = found[variant.name]
        tell(
            f"memory {variant.name:<10} {CLIENTS} idle {row['idle_rss_mib']:.0f} MiB RSS, {row['idle_pss_mib']:.0f} PSS; "
            f"active {row['active_rss_mib']:.0f} RSS, {row['active_pss_mib']:.0f} PSS"
        )
    ratios = {}
    if own := found.get("ours-all"):
        ratios["rss_mib_1000_connections_idle"] = own["idle_rss_mib"]
        ratios["rss_mib_1000_connections_active"] = own["active_rss_mib"]
        ratios |= {
            f"rss_1000_connections_vs_{name}": own["active_rss_mib"] / row["active_rss_mib"]
            for name, row in found.items()
            if not name.startswith("ours")
        }
    rows = {name: {key: rounded(value) for key, value in row.items()} for name, row in found.items()}
    return Part({"method": METHOD, "notes": notes, "rows": rows}, ratios)


def _one(driver: Driver, variant: Variant) -> dict[str, float]:
    with driver.serving(variant) as (started, port):
        pid = started.running.pid
        fresh = accounting.memory(accounting.tree(pid))
        with connected(port, request(driver.caller.authorization, port), CLIENTS):
            idle = accounting.memory(accounting.tree(pid))
        with PeakMemory(pid) as active:
            seen = driver.load(port, "get", seconds=ACTIVE_S, connections=CLIENTS)
        if seen.errors or not seen.requests:
            raise BenchError(f"{seen.requests} answers, errors {seen.errors}")
    return {
        "fresh_rss_mib": fresh.rss_bytes / 2**20,
        "idle_rss_mib": idle.rss_bytes / 2**20,
        "idle_pss_mib": idle.pss_bytes / 2**20,
        "active_rss_mib": active.rss_bytes / 2**20,
        "active_pss_mib": active.pss_bytes / 2**20,
    }


@contextmanager
def connected(port: int, question: bytes, clients: int) -> Iterator[None]:
    """Connect that many clients, each answered once and still connected. Raises BenchError when one is not."""
    links: list[socket.socket] = []
    try:
        while len(links) < clients:
            fresh = [
                socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
                for _ in range(min(AT_ONCE, clients - len(links)))
            ]
            links += fresh
            for link in fresh:
                link.sendall(question)
            for link in fresh:
                _read_answer(link)
        # A closed connection is readable: none may be while they are idle.
        poll = select.poll()
        for link in links:
            poll.register(link, select.POLLIN)
        if gone := len(poll.poll(0)):
            raise BenchError(f"{gone} of {clients} idle connections were closed")
        yield
    finally:
        for link in links:
            link.close()


def _read_answer(link: socket.socket) -> None:
    data = b""
    while not data.endswith(DOCUMENT.encode()):
        try:
            piece = link.recv(65536)
        except OSError as error:
            raise BenchError(f"no answer: {error}") from error
        data += piece
        if not piece or not data.startswith(b"HTTP/1.1 200"[: len(data)]):
            raise BenchError(f"answered {data[:80]!r}")
