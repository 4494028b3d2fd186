"""Replicas of users as processes, on a PostgreSQL, NATS and Valkey of the test's own that it can kill, stop and start again."""

import asyncio
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2

from dev.infra.servers import PostgresServer
from dev.infra.site import Site
from dev.infra.standalone import start_ready
from dev.process import Child as ServerChild
from shared.bus.connect import connect
from shared.ids import new_id
from shared.testing.processes import NatsProcess, RedisProcess
from tests.chaos.rig import Child

PASSWORD = "korrekt Pferd Batterie 9"
ADMIN_PASSWORD = "admin Pferd Batterie 9"
WRITERS = 16
CREATED, UPDATED = "evt.users.user.created.v1", "evt.users.user.updated.v1"


class Database:
    """A PostgreSQL that is ended as a crash does, with every process of it, and comes back on its port with its data."""

    def __init__(self, folder: Path) -> None:
        rooms = {name: folder / "postgres" / name for name in ("data", "run", "logs", "secrets")}
        self._site = Site.make(**rooms, mark=f"chaos-{os.getpid()}-{id(self)}")
        self._server = PostgresServer(self._site)
        self._child: ServerChild

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self) -> None:
        """Return once it answers."""
        self._child = await start_ready(self._server, self._site)

    def _processes(self) -> list[int]:
        """The postmaster and its children, which lead groups of their own."""
        pid = self._child.pid
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [pid, *map(int, found.split())]

    def signal(self, number: signal.Signals) -> None:
        for pid in self._processes():
            os.kill(pid, number)

    async def kill(self) -> None:
        if self._child.exit_code is None:
            self.signal(signal.SIGKILL)
            await self._child.wait()
            self._site.ports.release(self._server.port)

    async def rows(self, sql: str, *values: object) -> list[Any]:
        connection = await asyncpg.connect(self.url, timeout=10)
        try:
            return list(await connection.fetch(sql, *values))
        finally:
            await connection.close()


class Replica(Child):
    """One process of users."""

    def __init__(self, name: str, folder: Path, *, off: str = "", **environment: str) -> None:
        command = ("tests.chaos.users_off", off) if off else ("services.users",)
        super().__init__(*command, RH_USERS_PORT="{port}", RH_USERS_REPLICA=name, **environment)
        self.name = name
        self.output = folder / f"{name}.log"


@dataclass
class Seen:
    """What writers saw: ids that were acknowledged, and the status of every answer (0: none)."""

    acknowledged: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    succeeded_at: list[float] = field(default_factory=list)


@dataclass
class UsersRig:
    """What a test has at hand."""

    database: Database
    nats: NatsProcess
    redis: RedisProcess
    replicas: list[Replica]
    client: httpx2.AsyncClient
    serial: "itertools.count[int]" = field(default_factory=itertools.count)

    def url(self, place: int = 0) -> str:
        return f"http://{self.replicas[place].address}"

    def new_body(self) -> dict[str, str]:
        name = f"someone{next(self.serial)}"
        return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}

    async def register(self, place: int = 0, body: dict[str, str] | None = None, **headers: str) -> httpx2.Response:
        return await self.client.post(f"{self.url(place)}/users", json=body or self.new_body(), headers=headers)

    async def fill(self, count: int) -> list[str]:
        """Store so many users at once, who cannot log in; return their ids."""
        ids = [new_id() for _ in range(count)]
        await self.database.rows(
            "INSERT INTO users (id, username, username_folded, email, role, version, created_at, updated_at) "
            "SELECT id, 'filled' || n, 'filled' || n, 'filled' || n || '@example.com', 'user', 1, now(), now() "
            "FROM unnest($1::uuid[]) WITH ORDINALITY AS filled (id, n)",
            ids,
        )
        return ids

    async def bearer(self, username: str, password: str = PASSWORD, place: int = 0) -> dict[str, str]:
        form = {"username": username, "password": password}
        answer = await self.client.post(f"{self.url(place)}/auth/token", data=form)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    async def admin(self) -> dict[str, str]:
        return await self.bearer("admin", ADMIN_PASSWORD)

    @asynccontextmanager
    async def writing(self, writers: int = WRITERS, *, insists: bool = False) -> AsyncIterator[Seen]:
        """Let so many writers register users meanwhile, one after the other each, over all replicas.

        Who insists has an Idempotency-Key for each user and asks again with it, also afterwards, until that user is there.
        """
        seen, is_over = Seen(), asyncio.Event()

        async def write(place: int) -> None:
            while not is_over.is_set():
                body = self.new_body()
                headers = {"Idempotency-Key": body["username"]} if insists else {}
                is_there = await self._write(seen, place, body, headers)
                while insists and not is_there:
                    is_there = await self._write(seen, place, body, headers)

        async with asyncio.TaskGroup() as tasks:
            for place in range(writers):
                tasks.create_task(write(place % len(self.replicas)))
            try:
                yield seen
            finally:
                is_over.set()

    async def _write(self, seen: Seen, place: int, body: dict[str, str], headers: dict[str, str]) -> bool:
        try:
            answer = await self.register(place, body, **headers)
        except httpx2.TransportError:
            seen.statuses[0] += 1
            await asyncio.sleep(0.05)
            return False
        seen.statuses[answer.status_code] += 1
        if answer.status_code == 201:
            seen.acknowledged.append(answer.json()["id"])
            seen.succeeded_at.append(time.monotonic())
            return True
        # Under a key that died with PostgreSQL it may be some seconds.
        await asyncio.sleep(0.02 if answer.status_code == 503 else 0.5)
        return False

    async def events(self, subject: str) -> list[dict[str, Any]]:
        """Return all events of a subject, oldest first."""
        bus = await connect(self.nats.url, name="chaos")
        try:
            found: list[dict[str, Any]] = []
            after = 0
            while page := await bus.read("EVT", subject, after=after, limit=1000):
                found += [json.loads(message.data) for message in page]
                after = page[-1].offset
            return found
        finally:
            await bus.close()

    async def until_drained(self, timeout_s: float = 30.0) -> float:
        """Wait until the outbox is empty; return how many seconds that took."""
        began_at = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while await self.database.rows("SELECT 1 FROM outbox LIMIT 1"):
                await asyncio.sleep(0.05)
        return time.monotonic() - began_at

    async def metric(self, line: str, place: int = 0) -> float:
        """Return a sample of a replica, by its name and labels as they are written."""
        text = (await self.client.get(f"{self.url(place)}/metrics")).text
        return sum(float(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(f"{line} "))


@asynccontextmanager
async def standing_users(
    folder: Path, *, replicas: int = 1, off: str = "", **environment: str
) -> AsyncIterator[UsersRig]:
    """Servers and so many replicas, all ready; `off` names the protection that is switched off. Nothing outlives the block."""
    async with AsyncExitStack() as stack:
        database = Database(folder)
        servers = [NatsProcess(_made(folder / "nats")), RedisProcess(_made(folder / "redis"))]
        for server in servers:
            stack.callback(server.kill)
            await asyncio.to_thread(server.start)
        stack.push_async_callback(database.kill)
        await database.start()
        nats, redis = servers
        assert isinstance(nats, NatsProcess)
        assert isinstance(redis, RedisProcess)
        fixed = {
            "ENVIRONMENT": "test",
            "DATABASE_URL": database.url,
            "NATS_URL": nats.url,
            "REDIS_URL": redis.url,
            "RH_USERS_KEY_SEAL": "a seal for tests of faults",
            "RH_USERS_ADMIN_PASSWORD": ADMIN_PASSWORD,
            # The hash is not what is tested, and would be most of the work.
            "RH_USERS_HASH_MEMORY_KIB": "8",
            "RH_USERS_HASH_PASSES": "1",
            "CHAOS_FOLDER": str(folder),
        }
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=15, trust_env=False, limits=_LIMITS))
        own = [Replica(f"users-{n}", folder, off=off, **fixed, **environment) for n in range(replicas)]
        for replica in own:
            stack.push_async_callback(replica.stop)
            await replica.start()
        rig = UsersRig(database, nats, redis, own, client)
        for place in range(replicas):
            async with asyncio.timeout(15):
                while (await client.get(f"{rig.url(place)}/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
                # Memory is emptied once when the line to the other replicas is there.
                while not await rig.metric('cache_flushes_total{cache="records"}', place):
                    await asyncio.sleep(0.05)
        yield rig


_LIMITS = httpx2.Limits(max_connections=200, max_keepalive_connections=100)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
