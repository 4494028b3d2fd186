"""Whether our cost per request stays the same with many routes and with few or many connections."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from tests.bench import accounting, gateways
from tests.bench.errors import BenchError
from tests.bench.ours import Shape, variant
from tests.bench.parts import Part
from tests.bench.results import ratio_of_medians, rounded
from tests.bench.throughput import START_S
from tests.bench.upstream import requests_got
from tests.bench.windows import CONNECTIONS, Driver

SETTLE_S = 1
WINDOW_S = 2
CROWD = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """One point: so many routes, asked on so many connections."""

    routes: int
    connections: int
    peer: str = ""
    """Not ours but this one, to show what of it is the machine's: a thousand sockets cost the kernel and its caches as well."""

    @property
    def name(self) -> str:
        if self.peer:
            return f"{self.peer}, {_count(self.connections, 'connection')}"
        return f"{_count(self.routes, 'route')}, {_count(self.connections, 'connection')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


BASE = Setting(1, CONNECTIONS)
SETTINGS = (BASE, Setting(100, CONNECTIONS), Setting(1, 1), Setting(1, CROWD))
PEERS = {peer.name: peer for peer in gateways.PEERS if peer.name in ("nginx", "envoy")}
OF_PEERS = tuple(Setting(1, count, name) for name in PEERS for count in (CONNECTIONS, CROWD))
RATIOS = {
    "cpu_100_routes_vs_1": Setting(100, CONNECTIONS),
    "cpu_1_connection_vs_64": Setting(1, 1),
    "cpu_1000_connections_vs_64": Setting(1, CROWD),
}

METHOD = (
    "CPU of a GET with everything on, interleaved; the measured route is the last. The window lies in the midst of the load, so that "
    "opening the connections is not in it; the upstream counts the requests."
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the gateway has used and the upstream has got up to a moment."""

    requests: int
    times: accounting.ThreadTimes


def estimate_s(*, rounds: int) -> float:
    return rounds * (len(SETTINGS) + len(OF_PEERS)) * (START_S + SETTLE_S + WINDOW_S + 1)


def run(driver: Driver, *, rounds: int, tell: Callable[[str], None]) -> Part:
    """Measure every setting in every round, in turning order. Raises BenchError when a request failed."""
    settings = (*SETTINGS, *OF_PEERS)
    found: dict[Setting, list[float]] = {setting: [] for setting in settings}
    notes: list[str] = []
    for number in range(rounds):
        turn = number % len(settings)
        for setting in (*settings[turn:], *settings[:turn]):
            try:
                found[setting].append(_one(driver, setting))
            except BenchError as error:
                if not setting.peer:
                    raise
                notes.append(f"{setting.name}: {error}")
                continue
            tell(f"scaling {number + 1}/{rounds} {setting.name:<28} {found[setting][-1]:.1f} µs CPU")
    raw = {
        "method": METHOD,
        "notes": notes,
        "cpu_us": {setting.name: rounded(median(values)) for setting, values in found.items() if values},
        "rounds": {setting.name: [rounded(value) for value in values] for setting, values in found.items()},
    }
    ratios = {key: ratio_of_medians(found[setting], found[BASE]) for key, setting in RATIOS.items()}
    for name in PEERS:
        few, many = found[Setting(1, CONNECTIONS, name)], found[Setting(1, CROWD, name)]
        if few and many:
            ratios[f"{name}_cpu_1000_connections_vs_64"] = ratio_of_medians(many, few)
    return Part(raw, ratios)


def _one(driver: Driver, setting: Setting) -> float:
    """Return the CPU time of a request in µs, from a window in the midst of the load."""
    ours = variant(f"ours-{setting.routes}-routes", "", Shape(routes=setting.routes))
    subject = PEERS[setting.peer] if setting.peer else ours
    with driver.serving(subject) as (started, port), ThreadPoolExecutor(1) as beside:
        seconds = SETTLE_S + WINDOW_S + 1
        load = beside.submit(driver.load, port, "get", seconds=seconds, connections=setting.connections)
        time.sleep(SETTLE_S)
        before = _reading(driver, started.running.pid)
        time.sleep(WINDOW_S)
        after = _reading(driver, started.running.pid)
        if (errors := load.result().errors) or after.requests <= before.requests:
            raise BenchError(f"{setting.name}: errors {errors}")
    return accounting.spent(before.times, after.times).ns / 1e3 / (after.requests - before.requests)


def _reading(driver: Driver, pid: int) -> Reading:
    requests = requests_got(driver.stage.upstream_port)
    return Reading(requests, accounting.thread_times(accounting.tree(pid)))
