"""The load of the benchmark `users`: reads of people drawn at random, the first page of a list, and registrations."""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.bench import accounting, wrk
from tests.bench.errors import BenchError
from tests.bench.people import ADMIN_PASSWORD, Row, Stage
from tests.bench.processes import Running, free_port
from tests.bench.results import rounded

CONNECTIONS = 48
WARM_UP_S = 1
CACHED_PEOPLE = 1000
"""So many records are read again and again where the cache is measured."""
LIST = "/users?limit=20"
PASSWORD = "horse-battery-check"
VISITOR = "visitor"
"""Who logs in: one who has registered, since the others' hashes are none."""
KINDS = ("read", "list", "create")
OURS = (*KINDS, "cached-read")

_HEAD = """
wrk.headers["Authorization"] = "Bearer {token}"
{more}
"""
_READ = """
local people = {{}}
for line in io.lines("{people}") do
  if #people == {count} then break end
  people[#people + 1] = "/users/" .. line
end
math.randomseed({seed})
function request() return wrk.format("GET", people[math.random(#people)]) end
"""
_LIST = """
function request() return wrk.format("GET", "{target}") end
"""
_LOG_IN = """
wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
wrk.body = "username={name}&password={password}"
function request() return wrk.format("POST", "/auth/token") end
"""
_CREATE = """
wrk.headers["Content-Type"] = "application/json"
local n = 0
function request()
  n = n + 1
  local name = "{tag}x" .. n
  local body = '{{"username":"' .. name .. '","email":"' .. name .. '@example.com","password":"horse-battery-{tag}"}}'
  return wrk.format("POST", "/users", nil, body)
end
"""


@dataclass(frozen=True, slots=True)
class Window:
    """What one window showed; `per_core_s` is what a core serves: answers by CPU second."""

    row: str
    round: int
    kind: str
    requests: int
    per_s: float
    cpu_us: float
    per_core_s: float
    busy: float
    p50_ms: float
    p99_ms: float
    rss_mib: float

    def record(self) -> dict[str, Any]:
        return {name: rounded(value) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Driver:
    """Puts load on rows; one for a whole run."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self._wrk = wrk.find_wrk()
        self._folder = folder
        self._people = folder / "people.txt"
        self._people.write_text("\n".join(stage.people[1:]) + "\n")
        self._serial = 0

    @contextmanager
    def serving(
        self, row: Row, start: Callable[[Stage, int], Running] | None = None
    ) -> Iterator[tuple[Running, int, str]]:
        """A row started, checked and ready: its process, its port, and a token of an admin. Raises BenchError."""
        port = free_port()
        running = (start or row.start)(self.stage, port)
        try:
            self.stage.stand.wait_ready(running, port)
            token = log_in(port) if row.is_ours else self.stage.token(row.algorithm)
            yield running, port, token
        finally:
            self.stage.stand.stop(running)

    def check(self, row: Row, port: int, token: str) -> None:
        """See that a row answers as it must, and lets nobody in without a token. Raises BenchError."""
        person = self.stage.people[1]
        status, body = ask(port, "GET", f"/users/{person}", token)
        if status != 200 or json.loads(body)["username"] != "person1":
            raise BenchError(f"{row.name} answered a read with {status} {body[:200]!r}")
        status, body = ask(port, "GET", LIST, token)
        found = json.loads(body)
        items = found if isinstance(found, list) else next(value for value in found.values() if isinstance(value, list))
        if status != 200 or len(items) != 20 or "username" not in items[0]:
            raise BenchError(f"{row.name} answered a list with {status} {body[:200]!r}")
        self._serial += 1
        body = register(port, token, f"check{self._serial}")
        if PASSWORD in body:
            raise BenchError(f"{row.name} tells the password it was given: {body[:200]}")
        status, _ = ask(port, "GET", f"/users/{person}", "")
        if status not in (401, 403):
            raise BenchError(f"{row.name} let a caller without a token in: {status}")

    def script(self, kind: str, token: str, *, fresh: bool = False) -> Path:
        """Write the program of wrk for one window; every one registers other people. `fresh` asks past every cache."""
        self._serial += 1
        head = _HEAD.format(token=token, more='wrk.headers["Cache-Control"] = "no-cache"' if fresh else "")
        count = CACHED_PEOPLE if kind == "cached-read" else len(self.stage.people)
        if kind == "create":
            text = _CREATE.format(tag=f"c{self._serial}")
        elif kind == "log-in":
            text = _LOG_IN.format(name=VISITOR, password=PASSWORD)
        elif kind == "list":
            text = _LIST.format(target=LIST)
        else:
            text = _READ.format(people=self._people, count=count, seed=self._serial)
        path = self._folder / f"{kind}.lua"
        path.write_text(head + text + wrk.DONE)
        return path

    def load(
        self, kind: str, port: int, token: str, *, seconds: int, fresh: bool = False, connections: int = CONNECTIONS
    ) -> wrk.Load:
        script = self.script(kind, token, fresh=fresh)
        return wrk.run(self._wrk, script, port=port, target="/", connections=connections, seconds=seconds)

    def measure(
        self, row: Row, running: Running, port: int, token: str, *, number: int, kind: str, seconds: int
    ) -> Window:
        """Load a row for one window. Raises BenchError when a request failed."""
        # The uncached figure of ours is the store's, as it is for everybody else.
        fresh = row.is_ours and kind == "read"
        self.load(kind, port, token, seconds=WARM_UP_S, fresh=fresh)
        before = accounting.thread_times(accounting.tree(running.pid))
        seen = self.load(kind, port, token, seconds=seconds, fresh=fresh)
        pids = accounting.tree(running.pid)
        used = accounting.spent(before, accounting.thread_times(pids))
        if seen.errors or not seen.requests:
            raise BenchError(
                f"{row.name} {kind}: {seen.requests} answers, errors {seen.errors}: {running.tail()[-300:]}"
            )
        cpu_s = used.ns / 1e9
        return Window(
            row=row.name,
            round=number,
            kind=kind,
            requests=seen.requests,
            per_s=seen.per_s,
            cpu_us=cpu_s * 1e6 / seen.requests,
            per_core_s=seen.requests / cpu_s,
            busy=cpu_s / seen.duration_s,
            p50_ms=seen.p50_ms,
            p99_ms=seen.p99_ms,
            rss_mib=accounting.memory(pids).rss_bytes / 2**20,
        )


def ask(port: int, method: str, target: str, token: str, body: str = "", media: str = "") -> tuple[int, bytes]:
    """Send one request on a connection of its own. Raises BenchError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if media:
        headers["Content-Type"] = media
    try:
        connection.request(method, target, body=body or None, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"no answer from port {port}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()


def register(port: int, token: str, name: str) -> str:
    """Register somebody with PASSWORD; returns the answer's body. Raises BenchError."""
    draft = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    status, body = ask(port, "POST", "/users", token, json.dumps(draft), "application/json")
    if status != 201 or json.loads(body)["username"] != name:
        raise BenchError(f"a registration was answered with {status} {body[:200]!r}")
    return body.decode()


def log_in(port: int) -> str:
    """Return an access token of our service's admin. Raises BenchError."""
    form = urlencode({"username": "admin", "password": ADMIN_PASSWORD})
    status, body = ask(port, "POST", "/auth/token", "", form, "application/x-www-form-urlencoded")
    if status != 200:
        raise BenchError(f"our service refused the admin: {status} {body[:200]!r}")
    return str(json.loads(body)["access_token"])
