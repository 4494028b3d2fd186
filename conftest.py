"""Real NATS, Valkey and PostgreSQL for every test that asks: each started once a session, only when asked for.

A test that takes `nats_url`, `redis_url` or `postgres_url` gets a server named by `ROUNDHOUSE_TEST_NATS_URL`,
`ROUNDHOUSE_TEST_REDIS_URL` or `ROUNDHOUSE_TEST_DATABASE_URL` when that is set, else one started here.
"""

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog
from hypothesis import settings

# A busy machine makes an example slow, not wrong.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

# What a test logs goes to the terminal of a failure: without the library's drawn tracebacks, which cost half a second each.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

SERVERS = {
    "nats": ("NATS_URL", "ROUNDHOUSE_TEST_NATS_URL"),
    "valkey": ("REDIS_URL", "ROUNDHOUSE_TEST_REDIS_URL"),
    "postgres": ("DATABASE_URL", "ROUNDHOUSE_TEST_DATABASE_URL"),
}


def _serve(name: str) -> Iterator[str]:
    variable, override = SERVERS[name]
    if given := os.environ.get(override):
        yield given
        return
    try:
        from dev import infra
    except ImportError:
        pytest.skip(f"no real {name}: set {override}")
    with infra.start((name,)) as running:
        url = running.urls[variable]
        # Programs that a test starts find the same server.
        os.environ[override] = url
        yield url
        del os.environ[override]


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """A real NATS server with JetStream; shared by the session, so use names of your own."""
    yield from _serve("nats")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey server; shared by the session, so use keys of your own."""
    yield from _serve("valkey")


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """A real PostgreSQL server; tests take `postgres_url`, a fresh database on it."""
    yield from _serve("postgres")


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A fresh, empty database on the real server, dropped after the test."""
    name = f"t_{secrets.token_hex(8)}"
    asyncio.run(_execute(postgres_server_url, f"CREATE DATABASE {name}"))
    yield urlsplit(postgres_server_url)._replace(path=f"/{name}").geturl()
    asyncio.run(_execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    # Imported here: services that need no PostgreSQL are tested without its driver.
    import asyncpg

    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement, timeout=10)
    finally:
        await connection.close(timeout=5)


LANES = {
    "shared": "unit",
    "services": "unit",
    "dev": "runner",
    "tests/contracts": "contracts",
    "tests/isolation": "isolation",
    "tests/e2e": "e2e",
    "tests/chaos": "chaos",
    "tests/charts": "charts",
    "tests/compose": "compose",
    "tests/fuzz": "fuzz",
    "tests/bench": "bench",
}


# Taken away, so that a pytest that a test starts does not write there too.
LANES_FILE = os.environ.pop("ROUNDHOUSE_LANES", "")
"""Where to tell of the lanes once more, for the end of a longer run."""


def _lane_of(nodeid: str) -> str:
    return next((lane for path, lane in LANES.items() if nodeid.startswith(f"{path}/")), "other")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which lanes ran and what in them was skipped and why, so that a green run hides nothing."""
    lanes: dict[str, dict[str, int]] = {}
    skips: dict[tuple[str, str], int] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            lane = _lane_of(report.nodeid)
            counts = lanes.setdefault(lane, {})
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reason = str(report.longrepr[2]).removeprefix("Skipped: ")
                skips[lane, reason] = skips.get((lane, reason), 0) + 1
    told = []
    for lane in dict.fromkeys(LANES.values()):
        if counts := lanes.get(lane):
            told.append(f"{lane:<10} {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
            told += [f"{'':<10} skipped {n}: {reason}" for (where, reason), n in skips.items() if where == lane]
    terminalreporter.section("lanes", sep="-")
    terminalreporter.write_line("\n".join(told))
    if LANES_FILE:
        # Several may tell, one after the other.
        with Path(LANES_FILE).open("a") as file:
            file.write("\n".join([*told, ""]))
