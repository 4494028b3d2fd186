"""One window of load on one gateway: checked before, counted during, refused when anything was not as it must be."""

import http.client
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench import accounting, wrk
from tests.bench.errors import BenchError
from tests.bench.gateways import Stage, Started, Variant
from tests.bench.ours import Caller
from tests.bench.processes import free_port
from tests.bench.results import rounded
from tests.bench.store import Store
from tests.bench.upstream import DOCUMENT

CONNECTIONS = 64
WARM_UP_S = 1
LOG_FLUSH_S = 3.0
QUIET_S = 0.5
ANSWER_S = 10.0
TARGET = "/v1/users/42?x=1"
POST_BODY = ('{"text":"' + "a" * 1013 + '"}').encode()
assert len(POST_BODY) == 1024


@dataclass(frozen=True, slots=True)
class Window:
    """What one window showed. `busy` is the share of its core that the gateway used: below about 0.9 the load was the limit."""

    variant: str
    round: int
    request: str
    connections: int
    requests: int
    seconds: float
    per_s: float
    cpu_us: float
    busy: float
    p50_ms: float
    p99_ms: float
    rss_mib: float
    pss_mib: float
    log_lines: int
    threads_ended: int
    store_round_trips: int = 0

    def row(self) -> dict[str, Any]:
        return {name: rounded(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Driver:
    """Puts load on gateways; one for a whole run."""

    def __init__(self, stage: Stage, caller: Caller, folder: Path, store: Store | None = None) -> None:
        self.stage = stage
        self.caller = caller
        self._store = store
        self._wrk = wrk.find_wrk()
        self._scripts = {}
        authorization = ("Authorization", caller.authorization)
        requests = {
            "get": wrk.Request("GET", TARGET, (authorization,)),
            "post": wrk.Request("POST", TARGET, (authorization, ("Content-Type", "application/json")), POST_BODY),
        }
        for name, request in requests.items():
            self._scripts[name] = folder / f"{name}.lua"
            self._scripts[name].write_text(wrk.script(request))

    @contextmanager
    def serving(self, variant: Variant) -> Iterator[tuple[Started, int]]:
        """The gateway started, checked and warm, and its port. Raises BenchError when it does not answer as it must."""
        port = free_port()
        started = variant.start(self.stage, port)
        try:
            self.stage.stand.wait_ready(started.running, port)
            self._wait_answer(started, port)
            self.check(variant, port)
            yield started, port
        finally:
            self.stage.stand.stop(started.running)

    def _wait_answer(self, started: Started, port: int) -> None:
        """Some listen before they know where requests go; what they answer for good is told by `check`."""
        until = time.monotonic() + ANSWER_S
        token = {"Authorization": self.caller.authorization}
        while ask(port, "GET", headers=token)[0] != 200 and time.monotonic() < until:
            if started.running.process.poll() is not None:
                raise BenchError(f"{started.running.name} ended while starting: {started.running.tail()}")
            time.sleep(0.05)

    def check(self, variant: Variant, port: int) -> None:
        """Ask once with each method and see the upstream's very answer; ours must also show what it claims to do."""
        token = {"Authorization": self.caller.authorization}
        answers = [ask(port, "GET", headers=token), ask(port, "POST", headers=token, body=POST_BODY)]
        for status, headers, body in answers:
            if status != 200 or body != DOCUMENT.encode():
                raise BenchError(f"{variant.name} answered {status} {body[:200]!r}")
            if variant.is_ours and "x-request-id" not in headers:
                raise BenchError(f"{variant.name} gave no request id")
        if variant.is_all_on:
            for wrong in ({}, {"Authorization": self.caller.forged()}):
                status, headers, _ = ask(port, "GET", headers=wrong)
                if status != 401:
                    raise BenchError(f"{variant.name} let a caller without a valid token in: {status}")

    def lacks(self, port: int) -> list[str]:
        """Return what of everything-on this gateway does not show yet."""
        _, headers, _ = ask(port, "GET", headers={"Authorization": self.caller.authorization})
        return [name for name in ("RateLimit", "RateLimit-Policy") if name.lower() not in headers]

    def load(self, port: int, request: str, *, seconds: int, connections: int = CONNECTIONS) -> wrk.Load:
        return wrk.run(
            self._wrk, self._scripts[request], port=port, target=TARGET, connections=connections, seconds=seconds
        )

    def measure(
        self,
        variant: Variant,
        started: Started,
        port: int,
        *,
        number: int,
        request: str,
        seconds: int,
        connections: int = CONNECTIONS,
    ) -> Window:
        """Load the gateway for one window. Raises BenchError when a request failed or was not logged."""
        log = Log(started.access_log, variant.log_mark)
        asked_before = self._round_trips(variant)
        pids = accounting.tree(started.running.pid)
        before = accounting.thread_times(pids)
        seen = self.load(port, request, seconds=seconds, connections=connections)
        pids = accounting.tree(started.running.pid)
        used = accounting.spent(before, accounting.thread_times(pids))
        memory = accounting.memory(pids)
        asked = self._round_trips(variant) - asked_before
        if seen.errors or seen.requests == 0:
            raise BenchError(f"{variant.name} {request}: {seen.requests} answers, errors {seen.errors}")
        lines = log.lines(at_least=seen.requests)
        # Those under way when wrk stops, of this window and the one before, are logged as well.
        if variant.log_mark and not seen.requests <= lines <= seen.requests + 2 * connections + 2:
            raise BenchError(f"{variant.name} logged {lines} of {seen.requests} requests")
        return Window(
            variant=variant.name,
            round=number,
            request=request,
            connections=connections,
            requests=seen.requests,
            seconds=seen.duration_s,
            per_s=seen.per_s,
            cpu_us=used.ns / 1e3 / seen.requests,
            busy=used.ns / 1e9 / seen.duration_s,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            rss_mib=memory.rss_bytes / 2**20,
            pss_mib=memory.pss_bytes / 2**20,
            log_lines=lines,
            threads_ended=used.threads_ended,
            store_round_trips=asked,
        )

    def _round_trips(self, variant: Variant) -> int:
        return self._store.round_trips() if self._store and variant.is_all_on else 0


class Log:
    """The lines about requests that a gateway adds to its file from now on."""

    def __init__(self, file: Path | None, mark: bytes) -> None:
        self._file = file
        self._mark = mark
        if file is not None and file.exists():
            _wait_quiet(file)
            # Opened for appending by the one who writes: it goes on at the new end.
            os.truncate(file, 0)

    def lines(self, *, at_least: int) -> int:
        """Count them, waiting a little for what is still in the writer's buffer."""
        if self._file is None:
            return 0
        until = time.monotonic() + LOG_FLUSH_S
        count = 0
        while True:
            with self._file.open("rb") as content:
                count = sum(self._mark in line for line in content)
            if count >= at_least or time.monotonic() > until:
                return count
            time.sleep(0.05)


def _wait_quiet(file: Path) -> None:
    """Wait until nothing more comes of what was asked before: writers keep lines in a buffer for a while."""
    until = time.monotonic() + LOG_FLUSH_S
    size, since = -1, 0.0
    while (now := time.monotonic()) < until:
        if (current := file.stat().st_size) != size:
            size, since = current, now
        elif now - since >= QUIET_S:
            return
        time.sleep(0.05)
    raise BenchError(f"{file.name} grows although nothing is asked")


def ask(
    port: int, method: str, *, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection of its own; header names of the answer in lower case. Raises BenchError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, TARGET, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"no answer from port {port}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
