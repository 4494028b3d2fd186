"""The rows of the benchmark `users`: how each server is started, and the tables they answer from."""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.ids import new_id
from tests.bench.errors import BenchError, Missing
from tests.bench.peers import INSTALL_TIMEOUT_S, STATE, Wheels
from tests.bench.processes import ROOT, Running, Stand

CRUD = Path(__file__).with_name("crud")
LOCK = Path(__file__).with_name("crud.lock")
FASTIFY = STATE / "fastify"
PEOPLE = 10_000
POOL = 10
"""Connections to PostgreSQL of every row."""
CREDENTIALS_OF_PEERS = timedelta(hours=6)
ADMIN_PASSWORD = secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Stage:
    """What a row is started with: the stand, the servers' addresses, and what signs the peers' tokens."""

    stand: Stand
    wheels: Wheels
    urls: Mapping[str, str]
    key: Ed25519PrivateKey
    secret: str
    people: tuple[str, ...]

    def database(self, name: str) -> str:
        """Return the URL of the database of a row."""
        return urlsplit(self.urls["DATABASE_URL"])._replace(path=f"/{database_of(name)}").geturl()

    def token(self, algorithm: str) -> str:
        """Return a token of the first of the people, an admin."""
        claims = {"sub": self.people[0], "role": "admin", "exp": datetime.now(UTC) + CREDENTIALS_OF_PEERS}
        return jwt.encode(claims, self.secret if algorithm == "HS256" else self.key, algorithm=algorithm)


@dataclass(frozen=True, slots=True)
class Row:
    """One server of the comparison.

    `algorithm` is that of its tokens, empty for ours, which issues them itself; `needs` is what is installed for it, by `INSTALLERS`.
    """

    name: str
    title: str
    start: Callable[[Stage, int], Running]
    algorithm: str = ""
    needs: str = ""

    @property
    def is_ours(self) -> bool:
        return not self.algorithm


def database_of(name: str) -> str:
    return f"bench_{name.replace('-', '_')}"


def _python_env(stage: Stage, name: str) -> dict[str, str]:
    public = stage.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "BENCH_DATABASE_URL": stage.database(name),
        "BENCH_SECRET": stage.secret,
        "BENCH_PUBLIC_KEY": public.decode(),
        "PYTHONPATH": str(CRUD),
    }


def _uvicorn(name: str) -> Callable[[Stage, int], Running]:
    def start(stage: Stage, port: int) -> Running:
        argv = [
            *(stage.wheels.python, "-m", "uvicorn", f"{name}:app", "--host", "127.0.0.1", "--port", str(port)),
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
        ]
        return stage.stand.start(name, argv, core=stage.stand.cores.subject, env=_python_env(stage, name))

    return start


def _drf(stage: Stage, port: int) -> Running:
    argv = [
        *(stage.wheels.python, "-m", "gunicorn", "drf:application", "--bind", f"127.0.0.1:{port}", "--workers", "1"),
        *("--worker-class", "gthread", "--threads", "16", "--keep-alive", "30", "--log-level", "warning"),
        *("--worker-connections", "1000", "--backlog", "1024"),
    ]
    return stage.stand.start("drf", argv, core=stage.stand.cores.subject, env=_python_env(stage, "drf"))


def _fastify(stage: Stage, port: int, name: str = "fastify", *, remembers_tokens: bool = False) -> Running:
    node = shutil.which("node")
    if node is None:
        raise Missing("node is not installed: fastify runs on it")
    env = {**_python_env(stage, name), "BENCH_PORT": str(port), "NODE_ENV": "production"}
    if remembers_tokens:
        env["BENCH_TOKEN_CACHE"] = "1"
    return stage.stand.start(name, [node, FASTIFY / "server.mjs"], core=stage.stand.cores.subject, env=env)


def _fastify_cache(stage: Stage, port: int) -> Running:
    return _fastify(stage, port, "fastify-cache", remembers_tokens=True)


def ours_environment(stage: Stage, port: int) -> dict[str, str]:
    """Return the variables of our service, everything on: audit, outbox and its relay, cache, each request logged."""
    return {
        "ENVIRONMENT": "test",
        "NATS_URL": stage.urls["NATS_URL"],
        "REDIS_URL": stage.urls["REDIS_URL"],
        "DATABASE_URL": stage.database("ours"),
        "RH_USERS_PORT": str(port),
        "RH_USERS_REPLICA": "users-1",
        "RH_USERS_KEY_SEAL": stage.secret,
        "RH_USERS_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "RH_USERS_ACCESS_TOKEN_LASTS_S": "3600",
        "RH_USERS_DATABASE_CONNECTIONS_MAX": str(POOL),
        "RH_USERS_DRAIN_WAIT_S": "0",
        "RH_USERS_FAILED_LOGINS_MAX": "1000000",
        # As weak as the peers' hashes here, so that hashing does not hide the rest.
        "RH_USERS_HASH_MEMORY_KIB": "8",
        "RH_USERS_HASH_PASSES": "1",
        # No peer asks how easily a password is guessed.
        "RH_USERS_PASSWORD_SCORE_MIN": "0",
    }


def start_ours(
    stage: Stage,
    port: int,
    env: Mapping[str, str] | None = None,
    *,
    pinned: bool = True,
    module: str = "services.users",
) -> Running:
    """Start our service, on the core of what is measured or on both."""
    argv = [sys.executable, "-m", module]
    found = {**ours_environment(stage, port), **(env or {})}
    core = stage.stand.cores.subject if pinned else None
    return stage.stand.start("ours", argv, core=core, env=found, cwd=ROOT)


ROWS = (
    Row("template", "FastAPI template: sync SQLModel, psycopg", _uvicorn("template"), "HS256", "wheels"),
    Row("drf", "Django REST framework, gunicorn", _drf, "HS256", "wheels"),
    Row("orm", "FastAPI, SQLAlchemy async ORM", _uvicorn("orm"), "EdDSA", "wheels"),
    Row("fastify", "fastify, postgres.js", _fastify, "EdDSA", "fastify"),
    Row(
        "fastify-cache", "fastify, postgres.js, remembering tokens it has verified", _fastify_cache, "EdDSA", "fastify"
    ),
    Row("ours", "Roundhouse, everything on, each request logged", lambda stage, port: start_ours(stage, port)),
)


def install_wheels() -> None:
    """Install the Python peers by hash. Raises BenchError with the installer's words."""
    Wheels(lock=LOCK).install()


def install_fastify() -> None:
    """Install the packages of `crud/fastify`. Raises Missing without npm, BenchError with npm's words."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Missing("fastify runs on node and comes by npm: apt-get install -y nodejs npm")
    FASTIFY.mkdir(parents=True, exist_ok=True)
    wanted = (CRUD / "fastify" / "package.json").read_text()
    shutil.copy(CRUD / "fastify" / "server.mjs", FASTIFY)
    stamp = FASTIFY / "stamp"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    (FASTIFY / "package.json").write_text(wanted)
    done = subprocess.run(
        # A lock of npm names the registry in every line; the packages themselves are pinned.
        [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--omit=dev"],
        cwd=FASTIFY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"fastify could not be installed: {done.stderr.strip()[-1500:]}")
    stamp.write_text(wanted)


INSTALLERS: Mapping[str, Callable[[], None]] = {"wheels": install_wheels, "fastify": install_fastify}


def new_people() -> tuple[str, ...]:
    """Return the ids of all people, the admin's first."""
    return tuple(new_id() for _ in range(PEOPLE))


async def make_databases(url: str, rows: tuple[Row, ...], people: tuple[str, ...]) -> None:
    """Make the database of every row, filled for the peers; ours makes its tables itself when it first starts."""
    server = await asyncpg.connect(url, timeout=10)
    try:
        for row in rows:
            await server.execute(f"CREATE DATABASE {database_of(row.name)}")
    finally:
        await server.close()
    for row in rows:
        if not row.is_ours:
            await _fill_peer(urlsplit(url)._replace(path=f"/{database_of(row.name)}").geturl(), people)


def _records(people: tuple[str, ...]) -> list[tuple[object, ...]]:
    began = datetime.now(UTC)
    return [
        (person, f"person{n}", f"person{n}@example.com", f"Person {n}", "user" if n else "admin", 1, began, began)
        for n, person in enumerate(people)
    ]


async def _fill_peer(url: str, people: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute((CRUD / "schema.sql").read_text())
        columns = (
            "id",
            "username",
            "email",
            "full_name",
            "role",
            "version",
            "created_at",
            "updated_at",
            "password_hash",
        )
        await connection.copy_records_to_table(
            "people", records=[(*record, "none") for record in _records(people)], columns=columns
        )
        await connection.execute("ANALYZE people")
    finally:
        await connection.close()


async def fill_ours(url: str, people: tuple[str, ...]) -> None:
    """Put the same people into the tables of our service, which has just made them."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        columns = (
            "id",
            "username",
            "email",
            "full_name",
            "role",
            "version",
            "created_at",
            "updated_at",
            "username_folded",
        )
        # Without its first one: our service has made its own admin.
        records = [(*record, record[1]) for record in _records(people)[1:]]
        await connection.copy_records_to_table("users", records=records, columns=columns)
        await connection.copy_records_to_table(
            "credentials", records=[(record[0], "none") for record in records], columns=("user_id", "password_hash")
        )
        await connection.execute("ANALYZE users")
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Stored:
    """What our service has stored: users, audit lines about new ones, and events that wait for the bus."""

    users: int
    audited: int
    waiting: int


async def count_ours(url: str) -> Stored:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM users) AS users, (SELECT count(*) FROM outbox) AS waiting, "
            "(SELECT count(*) FROM audit WHERE action = 'user.created') AS audited"
        )
        return Stored(**row)
    finally:
        await connection.close()
