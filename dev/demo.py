"""`make demo`: a tour of the platform through its gateway URL; prints what it did and saw, exits non-zero on any failure.

Uses the fleet at ROUNDHOUSE_URL, or the one that `make up` runs here, or starts one of its own and stops it again.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[1]
STEP_TIMEOUT_S = 30
UP_TIMEOUT_S = 180
QUOTA_MAX = 3000
"""A larger one takes too long to spend here."""
LATE_CALLS = 40
"""Enough for the breaker of each gateway process, where there are several."""
RECOVERY_S = 10
EFFECTIVE_S = 1.0
"""So long an ended session may go on anywhere."""


class StepError(Exception):
    """The platform did not do what the tour expects."""


def expect(is_so: bool, what: str) -> None:
    if not is_so:
        raise StepError(what)


@dataclass(slots=True)
class Tour:
    """What the steps share: the gateway, a client, and the two people of the story.

    `pids` returns the processes of a service; None where the fleet is not on this machine.
    """

    url: str
    client: httpx2.AsyncClient
    pids: Callable[[str], list[int]] | None = None
    people: dict[str, dict[str, Any]] = field(default_factory=dict)

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.people[name]['token']}"}


def say(text: str) -> None:
    print(f"      {text}", flush=True)


async def step_register(tour: Tour) -> None:
    """Ada and Grace register and sign in"""
    for name in ("ada", "grace"):
        username = f"{name}-{secrets.token_hex(3)}"
        password = secrets.token_urlsafe(12)
        body = {"username": username, "email": f"{username}@example.com", "password": password}
        created = await tour.client.post("/users", json=body)
        expect(created.status_code == 201, f"POST /users answered {created.status_code}: {created.text[:200]}")
        signed_in = await tour.client.post("/auth/token", data={"username": username, "password": password})
        expect(signed_in.status_code == 200, f"POST /auth/token answered {signed_in.status_code}")
        tour.people[name] = {**created.json(), "token": signed_in.json()["access_token"], "password": password}
        say(f"POST /users -> 201 {created.headers['location']}   POST /auth/token -> a token for 10 minutes")


async def step_record(tour: Tour) -> None:
    """Ada changes her record; a stale change is refused; Grace cannot see it"""
    address = f"/users/{tour.people['ada']['id']}"
    read = await tour.client.get(address, headers=tour.headers("ada"))
    patched = await tour.client.patch(address, json={"full_name": "Ada Lovelace"}, headers=tour.headers("ada"))
    expect(patched.status_code == 200, f"PATCH answered {patched.status_code}")
    say(f"PATCH {address} -> {patched.json()['full_name']}, ETag {read.headers['etag']} -> {patched.headers['etag']}")
    old = {**tour.headers("ada"), "If-Match": read.headers["etag"]}
    stale = await tour.client.patch(address, json={"full_name": "X"}, headers=old)
    expect(stale.status_code == 412, f"a stale change answered {stale.status_code}")
    say(f"the same with the old ETag -> 412 {stale.json()['code']}")
    foreign = await tour.client.get(address, headers=tour.headers("grace"))
    expect(foreign.status_code == 404, f"another's record answered {foreign.status_code}")
    say("Grace asks for it -> 404: other people's records do not exist for her")


async def step_sessions(tour: Tour) -> None:
    """Grace signs in on her phone, loses it, and ends that session: refused by every service within a second"""
    grace = tour.people["grace"]
    form = {"username": grace["username"], "password": grace["password"]}
    phone = (await tour.client.post("/auth/token", data=form)).json()
    body = {"refresh_token": phone["refresh_token"]}
    twice = await asyncio.gather(*(tour.client.post("/auth/refresh", json=body) for _ in range(2)))
    successors = {answer.json().get("refresh_token") for answer in twice}
    expect(len(successors) == 1, f"two tabs that refreshed together got {[answer.status_code for answer in twice]}")
    say("POST /auth/refresh from two tabs at once -> the same new refresh token for both")
    on_phone = {"Authorization": f"Bearer {twice[0].json()['access_token']}"}
    ticket = (await tour.client.post("/auth/ticket", headers=on_phone)).json()["ticket"]
    address = f"ws{tour.url.removeprefix('http')}/ws/chat?ticket={ticket}"
    async with connect(address, proxy=None) as socket:
        await next_frame(socket, lambda frame: frame["type"] == "welcome")
        say("POST /auth/ticket -> a ticket that opens one WebSocket, /ws/chat?ticket=...")
        listed = (await tour.client.get("/auth/sessions", headers=tour.headers("grace"))).json()["items"]
        say(
            f"GET /auth/sessions -> {len(listed)}: {', '.join('this one' if s['current'] else s['id'] for s in listed)}"
        )
        lost = next(session["id"] for session in listed if not session["current"])
        ended = await tour.client.delete(f"/auth/sessions/{lost}", headers=tour.headers("grace"))
        since = time.monotonic()
        expect(ended.status_code == 204, f"DELETE /auth/sessions/{lost} answered {ended.status_code}")
        while (refused := await tour.client.get("/async-demo", headers=on_phone)).status_code == 200:
            expect(time.monotonic() < since + EFFECTIVE_S, f"its token still works after {EFFECTIVE_S} s")
        problem = refused.json()
        expect(
            problem["code"] == "session_ended", f"its token was refused with {refused.status_code} {problem['code']}"
        )
        say(f"DELETE /auth/sessions/{lost} -> 204; its token -> 401 after {(time.monotonic() - since) * 1000:.0f} ms")
        async with asyncio.timeout(EFFECTIVE_S):
            await socket.wait_closed()
        say(f"its WebSocket was closed: {socket.close_code} {socket.close_reason}")
    gone = await tour.client.post("/auth/refresh", json={"refresh_token": successors.pop()})
    expect(gone.status_code == 401, f"its refresh token answered {gone.status_code}")
    here = await tour.client.get("/async-demo", headers=tour.headers("grace"))
    expect(here.status_code == 200, f"her own token answered {here.status_code}")
    say("its refresh token -> 401; the session that she is in goes on")


async def next_frame(socket: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        frame: dict[str, Any] = json.loads(await socket.recv())
        if wanted(frame):
            return frame


@asynccontextmanager
async def chatting(tour: Tour, name: str) -> AsyncIterator[tuple[ClientConnection, str]]:
    address = f"ws{tour.url.removeprefix('http')}/ws/chat"
    async with connect(address, additional_headers=tour.headers(name), proxy=None) as socket:
        welcome = await next_frame(socket, lambda frame: frame["type"] == "welcome")
        yield socket, welcome["replica"]


async def step_chat(tour: Tour) -> None:
    """They chat over WebSocket, each on a replica of her own where there are two"""
    async with chatting(tour, "ada") as (ada, first), chatting(tour, "grace") as (grace, second):
        await ada.send(json.dumps({"type": "message", "room": "lobby", "content": "hello, Grace"}))
        for name, socket in (("ada", ada), ("grace", grace)):
            heard = await next_frame(socket, lambda frame: frame.get("content") == "hello, Grace")
            say(f"{name} hears in {heard['room']}: {heard['content']!r}")
        await grace.send(json.dumps({"type": "direct", "to": tour.people["ada"]["id"], "content": "just for you"}))
        heard = await next_frame(ada, lambda frame: frame["type"] == "direct")
        say(f"ada hears directly: {heard['content']!r} (replicas {first}, {second})")


async def pulses(tour: Tour, count: int, after: str = "") -> list[tuple[str, int]]:
    headers = {**tour.headers("ada"), **({"Last-Event-ID": after} if after else {})}
    found: list[tuple[str, int]] = []
    async with tour.client.stream("GET", "/sse/stream", headers=headers) as response:
        event_id = ""
        async for line in response.aiter_lines():
            if line.startswith("id:"):
                event_id = line[3:].strip()
            elif line.startswith("data:"):
                found.append((event_id, json.loads(line[5:])["n"]))
                if len(found) == count:
                    break
    return found


async def step_stream(tour: Tour) -> None:
    """Ada follows the pulse as server-sent events, loses the connection and misses nothing"""
    first = await pulses(tour, 2)
    resumed = await pulses(tour, 2, after=first[0][0])
    expect(resumed[0] == first[1], f"resuming after {first[0]} began with {resumed[0]} instead of {first[1]}")
    expect(resumed[1][1] == resumed[0][1] + 1, "a pulse is missing or doubled")
    say(f"pulses {[n for _, n in first]}; again with Last-Event-ID {first[0][0]}: {[n for _, n in resumed]}")


async def step_compute(tour: Tour) -> None:
    """CPU work runs in other processes; waiting and blocking calls stall nobody"""
    counted = await tour.client.post("/cpu-intensive", json={"n": 1_000_000}, headers=tour.headers("ada"))
    expect(
        counted.status_code == 200 and counted.json()["primes"] == 78498, f"/cpu-intensive said {counted.text[:200]}"
    )
    say(f"primes below 1,000,000: {counted.json()['primes']} in {counted.json()['duration_ms']:.0f} ms")
    both = await asyncio.gather(
        tour.client.get("/async-demo", headers=tour.headers("ada")),
        tour.client.get("/blocking-demo", headers=tour.headers("ada")),
    )
    expect(all(answer.status_code == 200 for answer in both), f"the demos answered {[a.status_code for a in both]}")
    overlap, blocking = (answer.json() for answer in both)
    say(
        f"{overlap['tasks']} waits, {overlap['limit']} at once: {overlap['duration_ms']:.0f} ms, one by one {overlap['serial_ms']:.0f}"
    )
    say(
        f"a blocking call of {blocking['ms']} ms in a thread: the event loop lagged {blocking['loop_lag_ms_max']:.1f} ms at most"
    )


async def step_limit(tour: Tour) -> None:
    """Grace asks too much and is told when to come back; Ada is not held up"""
    first = await tour.client.get("/auth/me", headers=tour.headers("grace"))
    expect(first.status_code == 200, f"GET /auth/me answered {first.status_code}")
    policy = first.headers.get("ratelimit-policy", "")
    quota = int(policy.partition(";q=")[2].partition(";")[0] or 0)
    if not 0 < quota <= QUOTA_MAX:
        say(f"no limit to meet here: {policy or 'this gateway exempts our address (RH_GATEWAY_EXEMPT)'}")
        return
    say(f"GET /auth/me -> 200   RateLimit-Policy: {policy}   RateLimit: {first.headers['ratelimit']}")
    # Twice the quota: several gateways may each have leased a part of it, and it fills up while it is spent.
    left = iter(range(2 * quota))
    refused: list[httpx2.Response] = []

    async def spend() -> None:
        while not refused and next(left, None) is not None:
            answer = await tour.client.get("/auth/me", headers=tour.headers("grace"))
            if answer.status_code == 429:
                refused.append(answer)

    await asyncio.gather(*(spend() for _ in range(8)))
    expect(bool(refused), f"{2 * quota} calls and no 429")
    problem, headers = refused[0].json(), refused[0].headers
    say(f"{next(left, 2 * quota)} calls later -> 429 {problem['code']}: {problem['detail'][:90]}")
    say(f"  Retry-After: {headers['retry-after']}   RateLimit: {headers['ratelimit']}")
    other = await tour.client.get("/auth/me", headers=tour.headers("ada"))
    expect(other.status_code == 200, f"Ada, who asked little, got {other.status_code}")
    say("Ada asks meanwhile -> 200")


async def health_calls(tour: Tour) -> list[httpx2.Response]:
    return await asyncio.gather(*(tour.client.get("/health") for _ in range(LATE_CALLS)))


async def step_breaker(tour: Tour) -> None:
    """A service hangs: its breaker opens, the others go on; it wakes and the breaker closes"""
    if tour.pids is None:
        say(
            "here is only a URL, through which no service can be made to hang. With containers: docker compose pause health,"
        )
        say(
            f"{LATE_CALLS} calls of /health at once -> 504, the next -> 503 breaker_open; docker compose unpause health -> 200"
        )
        return
    pids = await asyncio.to_thread(tour.pids, "health")
    expect(bool(pids), "no process of health is known")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        found = {answer.status_code for answer in await health_calls(tour)}
        expect(504 in found <= {503, 504}, f"a service that hangs answered {found}")
        say(f"health hangs: {LATE_CALLS} calls at once -> 504 when their time was over")
        refused = await tour.client.get("/health")
        problem = refused.json()
        expect(problem["code"] == "breaker_open", f"the next call answered {refused.status_code} {problem['code']}")
        took_ms = refused.elapsed.total_seconds() * 1000
        say(f"the next -> 503 {problem['code']} after {took_ms:.0f} ms   Retry-After: {refused.headers['retry-after']}")
        other = await tour.client.get("/auth/me", headers=tour.headers("ada"))
        expect(other.status_code == 200, f"the users service answered {other.status_code} meanwhile")
        say("GET /auth/me meanwhile -> 200")
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    woken = time.monotonic()
    # All of them: every gateway process has a breaker of its own.
    while found := {answer.status_code for answer in await health_calls(tour)} - {200}:
        expect(time.monotonic() < woken + RECOVERY_S, f"still {found} after {RECOVERY_S} s")
        await asyncio.sleep(0.1)
    say(f"health wakes -> 200 after {time.monotonic() - woken:.1f} s, with nobody's help")


async def step_refusals(tour: Tour) -> None:
    """Bad requests are told what is wrong with them"""
    for request in (
        tour.client.build_request("POST", "/users", json={"username": "x", "role": "admin"}),
        tour.client.build_request("GET", "/auth/me"),
        tour.client.build_request("DELETE", "/health"),
        tour.client.build_request("GET", "/nowhere"),
    ):
        answer = await tour.client.send(request)
        problem = answer.json()
        expect(
            400 <= answer.status_code < 500 and problem["request_id"] != "", f"{request.url.path}: {answer.text[:200]}"
        )
        say(f"{request.method} {request.url.path} -> {answer.status_code} {problem['code']}: {problem['detail'][:90]}")


async def step_health(tour: Tour) -> None:
    """The fleet says how it is"""
    deadline = time.monotonic() + RECOVERY_S
    # In production only who is signed in may look.
    while (answer := await tour.client.get("/health/detailed", headers=tour.headers("ada"))).status_code == 200:
        if answer.json()["state"] == "up" or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    expect(answer.status_code == 200, f"GET /health/detailed answered {answer.status_code}: {answer.text[:200]}")
    body = answer.json()
    expect(body["state"] == "up", f"the fleet is {body['state']}: {answer.text[:400]}")
    say(", ".join(f"{name} {component['state']}" for name, component in sorted(body["components"].items())))


STEPS: tuple[Callable[[Tour], Awaitable[None]], ...] = (
    step_register, step_record, step_sessions, step_chat, step_stream, step_compute, step_limit, step_refusals,
    step_breaker, step_health,
)  # fmt: skip


async def walk(url: str, pids: Callable[[str], list[int]] | None) -> int:
    """Do every step against a gateway; return the number that failed."""
    failed = 0
    async with httpx2.AsyncClient(base_url=url, timeout=STEP_TIMEOUT_S, trust_env=False) as client:
        tour = Tour(url, client, pids)
        for number, step in enumerate(STEPS, 1):
            print(f"  {number}.  {(step.__doc__ or '').strip()}", flush=True)
            try:
                async with asyncio.timeout(STEP_TIMEOUT_S):
                    await step(tour)
            except (StepError, TimeoutError, httpx2.HTTPError, OSError, KeyError, ValueError) as error:
                failed += 1
                print(f"      FAILED: {type(error).__name__}: {error}", flush=True)
    return failed


def run_dev(*arguments: str, home: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"ROUNDHOUSE_STATE_DIR": home} if home else {})}
    return subprocess.run(
        [sys.executable, str(ROOT / "dev"), *arguments],
        env=environment, capture_output=True, text=True, timeout=UP_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def pids_of(service: str, *, home: str | None = None) -> list[int]:
    """Return the processes of a service of the fleet that the runner keeps in `home`."""
    status = json.loads(run_dev("status", "--json", home=home).stdout)
    return [row["pid"] for row in status["resources"] if row["name"].rpartition("-")[0] == service]


@contextmanager
def gateway() -> Iterator[tuple[str, Callable[[str], list[int]] | None]]:
    """Yield the URL of a running fleet and how to find its processes, starting one of our own where there is none."""
    if url := os.environ.get("ROUNDHOUSE_URL"):
        yield url.rstrip("/"), None
        return
    running = run_dev("status", "--json")
    if running.returncode == 0:
        yield str(json.loads(running.stdout)["gateway"]), pids_of
        return
    with tempfile.TemporaryDirectory(prefix="rh-demo-") as home:
        up = run_dev(
            "up",
            "--detach",
            "--ephemeral",
            "--no-watch",
            "--port",
            "0",
            "--replicas",
            "realtime=2",
            "--json",
            home=home,
        )
        if up.returncode != 0:
            raise StepError(f"the fleet did not start: {up.stderr.strip() or up.stdout.strip()}")
        try:
            yield str(json.loads(up.stdout)["gateway"]), partial(pids_of, home=home)
        finally:
            run_dev("down", home=home)


def main() -> int:
    started = time.monotonic()
    try:
        with gateway() as (url, pids):
            print(f"A tour of Roundhouse at {url}\n", flush=True)
            failed = asyncio.run(walk(url, pids))
    except StepError as error:
        print(f"FAILED: {error}")
        return 1
    verdict = f"{failed} of {len(STEPS)} steps failed" if failed else f"all {len(STEPS)} steps did what they should"
    print(f"\n{verdict}, {time.monotonic() - started:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
