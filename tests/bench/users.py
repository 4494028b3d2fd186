"""The benchmark `users`: read, list and create beside the FastAPI template, Django REST framework, an async ORM and fastify."""

import argparse
import asyncio
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dev import infra
from tests.bench import machine, outages, people, results
from tests.bench.errors import BenchError
from tests.bench.gateway import named
from tests.bench.peers import STATE, Wheels
from tests.bench.people import LOCK, PEOPLE, POOL, ROWS, Row, Stage
from tests.bench.people_load import CACHED_PEOPLE, CONNECTIONS, KINDS, OURS, WARM_UP_S, Driver, Window
from tests.bench.processes import stand

ROUNDS_MIN = 5
START_S = 3
PARTS = ("throughput", "outages")
BUSY_MIN = 0.9
METHOD = (
    f"Each server has core 0, PostgreSQL and wrk core 1; {PEOPLE:,} people, {POOL} connections to PostgreSQL (the template: 40), "
    f"{CONNECTIONS} kept-alive connections of clients, every request with a token. Every round starts every server anew, in another "
    f"order, and loads it after {WARM_UP_S} s of warming up: reads of people at random, the first page of 20, registrations. All hash "
    "passwords with the same, very weak argon2id (8 KiB, one pass), so that hashing does not hide the rest, and none asks how easily "
    "they are guessed. Only ours writes an audit line and an event with each registration; its relay takes the events to a NATS that "
    "syncs each write to disk. Only ours logs each request. It remembers tokens that it has verified, as fastify does in its second "
    "row; the first verifies each. Reads of ours ask with "
    f"`Cache-Control: no-cache`; cached reads are of {CACHED_PEOPLE:,} people. Per core is answers by second of the server's CPU time, "
    "all its threads; ratios are those of medians."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help=f"interleaved rounds (default {ROUNDS_MIN})")
    parser.add_argument("--window", type=int, default=2, metavar="S", help="whole seconds of each window (default 2)")
    parser.add_argument(
        "--only", default="", metavar="A,B", help=f"only these rows: {', '.join(row.name for row in ROWS)}"
    )
    parser.add_argument("--kinds", default="", metavar="A,B", help=f"only these requests: {', '.join(OURS)}")
    parser.add_argument("--parts", default="", metavar="A,B", help=f"only these parts: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run at all?")


def run(options: argparse.Namespace, tell: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """Run the benchmark; returns its result and whether it is whole: every row, request and part, enough rounds."""
    rounds, window_s = (1, 1) if options.quick else (options.rounds, options.window)
    if rounds < 1 or window_s < 1:
        raise BenchError("--rounds and --window begin at 1")
    names = named("--only", options.only, [row.name for row in ROWS])
    kinds = named("--kinds", options.kinds, OURS)
    parts = named("--parts", options.parts, PARTS)
    facts = machine.facts()
    rows, skipped = _prepare([row for row in ROWS if row.name in names], tell)
    began = time.monotonic()
    windows: list[Window] = []
    seen: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=STATE)))
        own_stand = stack.enter_context(stand(folder))
        # After the stand: the servers are on the load's core.
        servers = stack.enter_context(infra.start(("nats", "valkey", "postgres")))
        stage = Stage(
            own_stand,
            Wheels(lock=LOCK),
            servers.urls,
            Ed25519PrivateKey.generate(),
            secrets.token_urlsafe(32),
            people.new_people(),
        )
        asyncio.run(people.make_databases(servers.urls["DATABASE_URL"], tuple(rows), stage.people))
        driver = Driver(stage, folder)
        for row in rows:
            if row.is_ours:
                with driver.serving(row):
                    asyncio.run(people.fill_ours(stage.database("ours"), stage.people))
        if "throughput" in parts:
            windows = _throughput(driver, rows, kinds, rounds=rounds, window_s=window_s, tell=tell)
        if "outages" in parts and any(row.is_ours for row in rows):
            seen = outages.run(driver, tell=tell)
    medians = _medians(windows)
    raw = {
        "method": METHOD,
        "seconds": round(time.monotonic() - began),
        "titles": {row.name: row.title for row in ROWS},
        "skipped": skipped,
        "medians": medians,
        "windows": [window.record() for window in windows],
        "outages": seen,
    }
    is_whole = rounds >= ROUNDS_MIN and len(rows) == len(ROWS) and len(kinds) == len(OURS) and len(parts) == len(PARTS)
    return results.assemble("users", facts, raw, {**_ratios(medians), **outages.ratios(seen)}), is_whole


def _prepare(rows: Sequence[Row], tell: Callable[[str], None]) -> tuple[list[Row], dict[str, str]]:
    """Install what the peers need; returns the rows that can run, and why others cannot."""
    tell("making sure of the peers in .roundhouse/bench (installed once) ...")
    reasons = {}
    for need in sorted({row.needs for row in rows} - {""}):
        try:
            people.INSTALLERS[need]()
        except BenchError as error:
            reasons[need] = str(error)
    skipped = {row.name: reasons[row.needs] for row in rows if row.needs in reasons}
    for name, reason in skipped.items():
        tell(f"without {name}: {reason}")
    return [row for row in rows if row.name not in skipped], skipped


def _throughput(
    driver: Driver,
    rows: Sequence[Row],
    kinds: Sequence[str],
    *,
    rounds: int,
    window_s: int,
    tell: Callable[[str], None],
) -> list[Window]:
    seconds = rounds * sum(START_S + sum(window_s + WARM_UP_S for kind in _kinds_of(row, kinds)) for row in rows)
    tell(f"{len(rows)} rows, {rounds} rounds: about {seconds / 60:.1f} minutes; Ctrl-C stops all")
    windows = []
    for number in range(rounds):
        turn = number % len(rows)
        for row in [*rows[turn:], *rows[:turn]]:
            with driver.serving(row) as (running, port, token):
                driver.check(row, port, token)
                found = [
                    driver.measure(row, running, port, token, number=number, kind=kind, seconds=window_s)
                    for kind in _kinds_of(row, kinds)
                ]
            windows += found
            told = "; ".join(f"{window.kind} {window.per_core_s:,.0f}" for window in found)
            tell(f"round {number + 1} {row.name:<9} per core second: {told}")
    return windows


def _kinds_of(row: Row, kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if row.is_ours or kind in KINDS]


def _medians(windows: Sequence[Window]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians of the rounds by row, kind and figure."""
    grouped: dict[tuple[str, str], list[Window]] = defaultdict(list)
    for window in windows:
        grouped[window.row, window.kind].append(window)
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for (row, kind), group in grouped.items():
        found[row][kind] = {
            figure: results.rounded(median(getattr(window, figure) for window in group))
            for figure in ("per_s", "cpu_us", "per_core_s", "busy", "p50_ms", "p99_ms", "rss_mib")
        }
    return dict(found)


def _ratios(medians: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return ours over theirs, per core: `read_vs_fastify` 0.5 is half of its rate."""
    ours = medians.get("ours", {})
    found = {}
    for row, theirs in medians.items():
        pairs = [] if row == "ours" else [(kind, kind) for kind in KINDS] + [("cached-read", "read")]
        for kind, their_kind in pairs:
            if kind in ours and their_kind in theirs:
                key = f"{kind}_vs_{row}".replace("-", "_")
                found[key] = ours[kind]["per_core_s"] / theirs[their_kind]["per_core_s"]
    if "cached-read" in ours and "read" in ours:
        found["cached_vs_uncached"] = ours["cached-read"]["per_core_s"] / ours["read"]["per_core_s"]
    return found


def table(result: Mapping[str, Any]) -> str:
    """Return the comparison in Markdown, with what the outages showed below it."""
    raw = result["raw"]
    rows: list[Sequence[str]] = []
    for name, title in raw["titles"].items():
        found = raw["medians"].get(name)
        if found is None:
            continue
        cells = [f"{found[kind]['per_core_s']:,.0f}" if kind in found else "-" for kind in OURS]
        memory = max(each["rss_mib"] for each in found.values())
        rows.append((f"**{title}**" if name == "ours" else title, *cells, f"{memory:.0f}"))
    header = ("answers by second of CPU", "read", "list 20", "create", "cached read", "RSS MiB")
    told = [results.markdown(header, rows), ""]
    told += [f"- Left out: {name}: {reason}" for name, reason in raw["skipped"].items()]
    told += [f"- {line}" for line in outages.sentences(raw["outages"])]
    busy = raw["medians"].get("ours", {}).get("read", {}).get("busy", 1.0)
    if busy < BUSY_MIN:
        told.append(
            f"- Ours had {busy:.0%} of its core while it read: PostgreSQL and the load, on the other core, were the limit"
        )
    facts = result["machine"]
    told.append(
        f"- {facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {result['date'][:10]}, {result['commit']}."
    )
    return "\n".join(told)
