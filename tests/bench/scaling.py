"""Whether our cost per request stays the same with many routes and with few or many connections."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tests.bench.gateways import Variant
from tests.bench.ours import Shape, variant
from tests.bench.parts import Part
from tests.bench.results import ratio_of_medians, rounded
from tests.bench.throughput import START_S
from tests.bench.windows import CONNECTIONS, WARM_UP_S, Driver

WINDOW_S = 2
CROWD = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """One point: so many routes, asked on so many connections."""

    routes: int
    connections: int

    @property
    def name(self) -> str:
        return f"{_count(self.routes, 'route')}, {_count(self.connections, 'connection')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


BASE = Setting(1, CONNECTIONS)
SETTINGS = (BASE, Setting(10, CONNECTIONS), Setting(100, CONNECTIONS), Setting(1, 1), Setting(1, CROWD))
RATIOS = {
    "cpu_10_routes_vs_1": Setting(10, CONNECTIONS),
    "cpu_100_routes_vs_1": Setting(100, CONNECTIONS),
    "cpu_1_connection_vs_64": Setting(1, 1),
    "cpu_1000_connections_vs_64": Setting(1, CROWD),
}

METHOD = (
    "CPU of a GET with everything on, interleaved; the measured route is the last. Opening the connections is part of the window, so a "
    "thousand of them cost a few percent by that alone."
)


def estimate_s(*, rounds: int) -> float:
    return rounds * len(SETTINGS) * (START_S + WARM_UP_S + WINDOW_S + 0.6)


def run(driver: Driver, *, rounds: int, tell: Callable[[str], None]) -> Part:
    """Measure every setting in every round, in turning order. Raises BenchError when a request failed."""
    found: dict[Setting, list[float]] = {setting: [] for setting in SETTINGS}
    for number in range(rounds):
        turn = number % len(SETTINGS)
        for setting in (*SETTINGS[turn:], *SETTINGS[:turn]):
            found[setting].append(_one(driver, setting, number))
            tell(f"scaling {number + 1}/{rounds} {setting.name:<28} {found[setting][-1]:.1f} µs CPU")
    raw = {
        "method": METHOD,
        "cpu_us": {setting.name: rounded(median(values)) for setting, values in found.items()},
        "rounds": {setting.name: [rounded(value) for value in values] for setting, values in found.items()},
    }
    return Part(raw, {key: ratio_of_medians(found[setting], found[BASE]) for key, setting in RATIOS.items()})


def _one(driver: Driver, setting: Setting, number: int) -> float:
    subject: Variant = variant(f"ours-{setting.routes}-routes", "", Shape(routes=setting.routes))
    with driver.serving(subject) as (started, port):
        driver.load(port, "get", seconds=WARM_UP_S, connections=setting.connections)
        window = driver.measure(
            subject,
            started,
            port,
            number=number,
            request="get",
            seconds=WINDOW_S,
            connections=setting.connections,
        )
    return window.cpu_us
