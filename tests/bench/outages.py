"""What the users service does to others while it hashes, and while Redis is away: the answers' times, seen from outside."""

import http.client
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dev.infra import Infra
from tests.bench.errors import BenchError
from tests.bench.paced import percentile
from tests.bench.people import ROWS, start_ours
from tests.bench.people_load import Driver
from tests.bench.results import rounded

BURST = 60
PROBE_PAUSE_S = 0.002
LOAD_S = 3
READS = 600
OURS = next(row for row in ROWS if row.is_ours)
STRONG = {"RH_USERS_HASH_MEMORY_KIB": "19456", "RH_USERS_HASH_PASSES": "2"}


def run(driver: Driver, servers: Infra, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return `burst` and `redis_down`, each with what was measured."""
    with driver.serving(OURS, lambda stage, port: start_ours(stage, port, STRONG, pinned=False)) as (_, port, token):
        burst = _burst(driver, port, token)
    tell(f"{BURST} log-ins at once: probe p99 {burst['probe_p99_ms']} ms, reads keep {burst['reads_kept']:.0%}")
    with driver.serving(OURS, lambda stage, port: start_ours(stage, port, pinned=False)) as (_, port, token):
        redis = _redis_down(driver, servers, port, token)
    tell(f"Redis away: read p99 {redis['up_p99_ms']} -> {redis['down_p99_ms']} ms, {redis['errors']} errors")
    return {"burst": burst, "redis_down": redis}


def _burst(driver: Driver, port: int, token: str) -> dict[str, float]:
    """Log in with wrong passwords, 60 at a time: each costs a hash whatever the answer is."""
    quiet = _probe_while(port, lambda: time.sleep(1.0))
    hashing = _probe_while(port, lambda: _log_in_at_once(driver, port))
    alone = driver.load("cached-read", port, token, seconds=LOAD_S)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(_log_in_at_once, driver, port)
        beside = driver.load("cached-read", port, token, seconds=LOAD_S)
        going.result()
    return {
        "quiet_p99_ms": rounded(percentile(quiet, 0.99) * 1e3),
        "probe_p99_ms": rounded(percentile(hashing, 0.99) * 1e3),
        "probe_max_ms": rounded(max(hashing) * 1e3),
        "reads_alone_per_s": rounded(alone.per_s),
        "reads_beside_per_s": rounded(beside.per_s),
        "reads_kept": rounded(beside.per_s / alone.per_s),
    }


def _log_in_at_once(driver: Driver, port: int) -> None:
    """Keep 60 log-ins in flight for as long as a window of load. Raises BenchError where none is answered."""
    seen = driver.load("log-in", port, "", seconds=LOAD_S, connections=BURST)
    if not seen.requests or set(seen.errors) - {"status"}:
        raise BenchError(f"log-ins: {seen.requests} answers, errors {seen.errors}")


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


def _redis_down(driver: Driver, servers: Infra, port: int, token: str) -> dict[str, float]:
    """Read one after the other, different people each time, before and after Redis is gone."""
    before, _ = _reads(driver, port, token, offset=0)
    servers.children["valkey"].send(signal.SIGKILL)
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


def ratios(seen: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that are asked for, by their keys in the result."""
    if not seen:
        return {}
    return {
        "login_burst_probe_p99_ms": seen["burst"]["probe_p99_ms"],
        "login_burst_reads_kept": seen["burst"]["reads_kept"],
        "redis_down_added_p99_ms": seen["redis_down"]["added_p99_ms"],
        "redis_down_errors": seen["redis_down"]["errors"],
    }


def sentences(seen: Mapping[str, Any]) -> Iterator[str]:
    if not seen:
        return
    burst, redis = seen["burst"], seen["redis_down"]
    yield (
        f"{BURST} log-ins at once: `/live` answers within {burst['probe_p99_ms']:.1f} ms at p99 ({burst['quiet_p99_ms']:.1f} without), "
        f"reads keep {burst['reads_kept']:.0%} of their rate"
    )
    yield (
        f"Redis killed: reads take {redis['down_p99_ms']:.1f} ms at p99 ({redis['up_p99_ms']:.1f} before), "
        f"{redis['errors']:.0f} of {READS} fail"
    )
