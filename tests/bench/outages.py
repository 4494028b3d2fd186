"""What the users service does to others while it hashes, while Redis is away and while NATS is."""

import asyncio
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
READS = 600
OURS = next(row for row in ROWS if row.is_ours)
STRONG = {"RH_USERS_HASH_MEMORY_KIB": "19456", "RH_USERS_HASH_PASSES": "2"}


def run(driver: Driver, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return `burst`, `redis_down` and `nats_down`, each with what was measured."""
    with driver.serving(
        OURS, lambda stage, port: start_ours(stage, port, STRONG, pinned=False, module=watched.__name__)
    ) as (_, port, token):
        burst = _burst(driver, port, token)
    tell(f"{BURST} log-ins at once: loop late p99 {burst['lag_p99_ms']} ms, reads keep {burst['reads_kept']:.0%}")
    redis = _without(driver, "valkey", "REDIS_URL", _redis_down)
    tell(f"Redis away: read p99 {redis['up_p99_ms']} -> {redis['down_p99_ms']} ms, {redis['errors']} errors")
    nats = _without(driver, "nats", "NATS_URL", _nats_down)
    tell(f"NATS away: {nats['writes']:.0f} users stored, {nats['failed']:.0f} failed")
    return {"burst": burst, "redis_down": redis, "nats_down": nats}


def _without(
    driver: Driver,
    server: str,
    variable: str,
    measure: Callable[[Driver, int, str, Callable[[], None]], dict[str, float]],
) -> dict[str, float]:
    """Measure ours with a server of its own, which `measure` may kill by the last of its arguments."""
    with (
        infra.start((server,)) as own,
        driver.serving(
            OURS, lambda stage, port: start_ours(stage, port, {variable: own.urls[variable]}, pinned=False)
        ) as (_, port, token),
    ):
        return measure(driver, port, token, lambda: own.children[server].send(signal.SIGKILL))


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


def _redis_down(driver: Driver, port: int, token: str, kill: Callable[[], None]) -> dict[str, float]:
    """Read one after the other, different people each time, before and after Redis is gone."""
    before, _ = _reads(driver, port, token, offset=0)
    kill()
    after, errors = _reads(driver, port, token, offset=READS)
    up, down = percentile(before, 0.99) * 1e3, percentile(after, 0.99) * 1e3
    return {
        "up_p50_ms": rounded(percentile(before, 0.5) * 1e3),
        "down_p50_ms": rounded(percentile(after, 0.5) * 1e3),
        "up_p99_ms": rounded(up),
        "down_p99_ms": rounded(down),
        "added_p99_ms": rounded(max(0.0, down - up)),
        "errors": float(errors),
    }


def _reads(driver: Driver, port: int, token: str, *, offset: int) -> tuple[list[float], int]:
    times, errors = [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        for person in driver.stage.people[1 + offset : 1 + offset + READS]:
            began = time.perf_counter()
            connection.request("GET", f"/users/{person}", headers=headers)
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            errors += answer.status != 200
    finally:
        connection.close()
    return times, errors


def _nats_down(driver: Driver, port: int, token: str, kill: Callable[[], None]) -> dict[str, float]:
    """Register users while NATS is there and after it is gone: what is answered is stored, with its event in the outbox."""
    up = driver.load("create", port, token, seconds=LOAD_S)
    kill()
    before = asyncio.run(people.count_ours(driver.stage.database("ours")))
    down = driver.load("create", port, token, seconds=LOAD_S)
    stored = asyncio.run(people.count_ours(driver.stage.database("ours")))
    made, audited = stored.users - before.users, stored.audited - before.audited
    waiting = stored.waiting
    # Those that were under way when the load ended are stored as well.
    if made < down.requests or audited != made or waiting < made:
        raise BenchError(
            f"{down.requests} users were promised: {made} stored, {audited} audited, {waiting} events wait"
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
        f"Redis killed: reads take {redis['down_p99_ms']:.1f} ms at p99 ({redis['up_p99_ms']:.1f} before), "
        f"{redis['errors']:.0f} of {READS} fail"
    )
    yield f"NATS killed: {nats['failed']:.0f} of {nats['writes']:,.0f} registrations fail, and each one's event waits in the outbox"
