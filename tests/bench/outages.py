"""What the users service does to others while it hashes, while Redis is away and while NATS is."""

import asyncio
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

from dev import infra
from tests.bench import people, watched
from tests.bench.errors import BenchError
from tests.bench.paced import percentile
from tests.bench.people import ROWS, start_ours
from tests.bench.people_load import VISITOR, Driver, ask, log_in, register
from tests.bench.results import ratio_of_medians, rounded

BURST = 60
PROBE_PAUSE_S = 0.002
LOAD_S = 3
READ_ROUNDS = 3
READS = 2000
OURS = next(row for row in ROWS if row.is_ours)
SHARED = {"RH_USERS_CACHE_SHARED": "1"}
"""Without it no read asks Redis."""
STRONG = {"RH_USERS_HASH_MEMORY_KIB": "19456", "RH_USERS_HASH_PASSES": "2"}


def run(driver: Driver, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return `burst`, `redis_down` and `nats_down`, each with what was measured."""
    with driver.serving(
        OURS, lambda stage, port: start_ours(stage, port, STRONG, pinned=False, module=watched.__name__)
    ) as (_, port, token):
        burst = _burst(driver, port, token)
    tell(f"{BURST} log-ins at once: loop late p99 {burst['lag_p99_ms']} ms, reads keep {burst['reads_kept']:.0%}")
    redis = _redis_away(driver)
    tell(f"Redis away: read p99 {redis['down_p99_ms']} ms, {redis['up_p99_ms']} with it, {redis['errors']} errors")
    nats = _nats_away(driver)
    tell(f"NATS away: {nats['writes']:.0f} users stored, {nats['failed']:.0f} failed")
    return {"burst": burst, "redis_down": redis, "nats_down": nats}


@contextmanager
def _with_its_own(
    driver: Driver, server: str, variable: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[int, str, Callable[[], None]]]:
    """Ours with a server of its own: its port, an admin's token, and what kills that server."""
    with infra.start((server,)) as own:
        more = {variable: own.urls[variable], **(env or {})}
        with driver.serving(OURS, lambda stage, port: start_ours(stage, port, more, pinned=False)) as (_, port, token):
            yield port, token, lambda: own.children[server].send(signal.SIGKILL)


def _burst(driver: Driver, port: int, token: str) -> dict[str, float]:
    """Log in with the right password, 60 at a time: each costs a hash and opens a session."""
    register(port, token, VISITOR)
    quiet = _probe_while(port, lambda: time.sleep(1.0))
    quiet_late = _loop_was_late(port)
    hashing = _probe_while(port, lambda: _log_in_at_once(driver, port))
    late = _loop_was_late(port)
    alone, beside, logins = [], [], []
    for _ in range(READ_ROUNDS):
        alone.append(driver.load("cached-read", port, token, seconds=LOAD_S).per_s)
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(_log_in_at_once, driver, port)
            beside.append(driver.load("cached-read", port, token, seconds=LOAD_S).per_s)
            logins.append(going.result())
    return {
        "quiet_lag_p99_ms": rounded(percentile(quiet_late, 0.99) * 1e3),
        "lag_p99_ms": rounded(percentile(late, 0.99) * 1e3),
        "lag_max_ms": rounded(max(late) * 1e3),
        "quiet_p99_ms": rounded(percentile(quiet, 0.99) * 1e3),
        "probe_p99_ms": rounded(percentile(hashing, 0.99) * 1e3),
        "probe_max_ms": rounded(max(hashing) * 1e3),
        "reads_alone_per_s": rounded(median(alone)),
        "reads_beside_per_s": rounded(median(beside)),
        "logins_beside_per_s": rounded(median(logins)),
        "reads_kept": rounded(ratio_of_medians(beside, alone)),
    }


def _loop_was_late(port: int) -> list[float]:
    """Return how many seconds late the service's event loop was, each time that it looked since it was last asked."""
    status, body = ask(port, "GET", watched.PATH, "")
    if status != 200:
        raise BenchError(f"the watched service does not tell of its loop: {status}")
    return list(json.loads(body))


def _log_in_at_once(driver: Driver, port: int) -> float:
    """Keep 60 log-ins in flight for as long as a window of load. Raises BenchError where one fails."""
    seen = driver.load("log-in", port, "", seconds=LOAD_S, connections=BURST)
    if not seen.requests or seen.errors:
        raise BenchError(f"log-ins: {seen.requests} answers, errors {seen.errors}")
    # Hashed after all those that wrk has left behind.
    log_in(port)
    return seen.per_s


def _probe_while(port: int, work: Callable[[], object]) -> list[float]:
    """Ask for /live again and again until the work is done; returns the seconds of every answer."""
    times: list[float] = []
    done = threading.Event()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def probe() -> None:
        while not done.is_set():
            began = time.perf_counter()
            connection.request("GET", "/live")
            connection.getresponse().read()
            times.append(time.perf_counter() - began)
            done.wait(PROBE_PAUSE_S)

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(probe)
        try:
            work()
        finally:
            done.set()
            going.result()
            connection.close()
    return times


def _redis_away(driver: Driver) -> dict[str, float]:
    """Read of two services in turn, one of which has lost its Redis, so that both meet the same machine."""
    with (
        _with_its_own(driver, "valkey", "REDIS_URL", SHARED) as (port, token, kill),
        _with_its_own(driver, "valkey", "REDIS_URL", SHARED) as (other_port, other_token, _),
    ):
        kill()
        links = [(Link(port), token), (Link(other_port), other_token)]
        times: list[list[float]] = [[], []]
        errors = 0
        with ExitStack() as stack:
            for link, _ in links:
                stack.callback(link.close)
            for person in driver.stage.people[1 : 1 + READS]:
                for seen, (link, each_token) in zip(times, links, strict=True):
                    took_s, status = link.read(person, each_token)
                    seen.append(took_s)
                    errors += status != 200
    (down_p50, up_p50), (down_p99, up_p99) = (
        [percentile(seen, share) * 1e3 for seen in times] for share in (0.5, 0.99)
    )
    return {
        "up_p50_ms": rounded(up_p50),
        "down_p50_ms": rounded(down_p50),
        "up_p99_ms": rounded(up_p99),
        "down_p99_ms": rounded(down_p99),
        "down_max_ms": rounded(max(times[0]) * 1e3),
        "added_p99_ms": rounded(max(0.0, down_p99 - up_p99)),
        "errors": float(errors),
    }


class Link:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def read(self, person: str, token: str) -> tuple[float, int]:
        """Return the seconds and the status of a read."""
        began = time.perf_counter()
        self._connection.request("GET", f"/users/{person}", headers={"Authorization": f"Bearer {token}"})
        answer = self._connection.getresponse()
        answer.read()
        return time.perf_counter() - began, answer.status

    def close(self) -> None:
        self._connection.close()


def _nats_away(driver: Driver) -> dict[str, float]:
    """Register users while NATS is there and after it is gone: what is answered is stored, with its event in the outbox."""
    with _with_its_own(driver, "nats", "NATS_URL") as (port, token, kill):
        up = driver.load("create", port, token, seconds=LOAD_S)
        kill()
        before = asyncio.run(people.count_ours(driver.stage.database("ours")))
        down = driver.load("create", port, token, seconds=LOAD_S)
        stored = asyncio.run(people.count_ours(driver.stage.database("ours")))
    made, audited = stored.users - before.users, stored.audited - before.audited
    # Those that were under way when the load ended are stored as well.
    if made < down.requests or audited != made or stored.waiting < made:
        raise BenchError(
            f"{down.requests} users were promised: {made} stored, {audited} audited, {stored.waiting} events wait"
        )
    return {
        "up_per_s": rounded(up.per_s),
        "down_per_s": rounded(down.per_s),
        "writes": float(down.requests),
        "failed": float(sum(down.errors.values())),
    }


def ratios(seen: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that are asked for, by their keys in the result."""
    if not seen:
        return {}
    return {
        "login_burst_lag_p99_ms": seen["burst"]["lag_p99_ms"],
        "login_burst_probe_p99_ms": seen["burst"]["probe_p99_ms"],
        "login_burst_reads_kept": seen["burst"]["reads_kept"],
        "redis_down_added_p99_ms": seen["redis_down"]["added_p99_ms"],
        "redis_down_errors": seen["redis_down"]["errors"],
        "nats_down_failed_writes": seen["nats_down"]["failed"],
    }


def sentences(seen: Mapping[str, Any]) -> Iterator[str]:
    if not seen:
        return
    burst, redis, nats = seen["burst"], seen["redis_down"], seen["nats_down"]
    yield (
        f"{BURST} log-ins at once, again and again: the event loop is late by {burst['lag_p99_ms']:.1f} ms at p99 "
        f"({burst['quiet_lag_p99_ms']:.1f} without), `/live` takes {burst['probe_p99_ms']:.1f} ms ({burst['quiet_p99_ms']:.1f}), "
        f"reads keep {burst['reads_kept']:.0%} of their rate"
    )
    yield (
        f"Redis killed: reads take {redis['down_p99_ms']:.1f} ms at p99 ({redis['up_p99_ms']:.1f} with it), "
        f"{redis['errors']:.0f} of {READS} fail"
    )
    yield f"NATS killed: {nats['failed']:.0f} of {nats['writes']:,.0f} registrations fail, and each one's event waits in the outbox"
