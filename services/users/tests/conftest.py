"""What the tests share: fast settings, both stores, fakes for what is slow, and a client that knows how to register."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest
from pydantic import SecretStr

from services.users.adapters import keys as keys_module
from services.users.adapters.database import Store, open_store
from services.users.adapters.memory_database import MemoryDatabase
from services.users.adapters.memory_sessions import MemorySessions
from services.users.adapters.memory_users import MemoryUsers
from services.users.app import create
from services.users.domain.counters import Counters
from services.users.domain.events import event_of
from services.users.domain.letters import Letters
from services.users.domain.ports import SealBroken
from services.users.domain.sessions import Endings, SessionService
from services.users.model.records import Event, Session, User
from services.users.settings import UsersSettings
from shared.cache.memory import MemoryCache
from shared.cache.memory_store import MemoryStore
from shared.ids import new_id
from shared.testing.client import running

ADMIN_PASSWORD = "admin-secret"
PASSWORD = "correct horse"


TABLES = [
    "users",
    "deleted_users",
    "credentials",
    "sessions",
    "signing_keys",
    "outbox",
    "audit",
    "idempotency",
    "one_time_tokens",
    "mail_outbox",
]


@pytest.fixture(autouse=True)
def cheap_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two derivations of 50 ms in every start would be half of the suite."""
    monkeypatch.setattr(keys_module, "SEAL_COST", 2)


@pytest.fixture
def make_settings() -> Callable[..., UsersSettings]:
    """Settings on memory whose hashes take a fraction of a millisecond; arguments replace them."""

    def make(**values: Any) -> UsersSettings:
        standard = {
            "environment": "test",
            "hash_memory_kib": 8,
            "hash_passes": 1,
            "admin_password": SecretStr(ADMIN_PASSWORD),
            "key_seal": SecretStr("a-seal-for-the-tests"),
            "mail_url": SecretStr("memory://"),
        }
        return UsersSettings(**{**standard, **values})

    return make


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def contract_database(postgres_server_url: str) -> Iterator[str]:
    """One database for all contract tests, since making one costs more than most tests; each finds it empty."""
    name = f"t_users_{secrets.token_hex(8)}"
    asyncio.run(execute(postgres_server_url, f"CREATE DATABASE {name}"))
    yield urlsplit(postgres_server_url)._replace(path=f"/{name}").geturl()
    asyncio.run(execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["memory", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else request.getfixturevalue("contract_database")


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """Each store in turn, empty."""
    async with open_store(store_url, name="test") as found:
        if store_url != "memory://":
            await execute(store_url, f"TRUNCATE {', '.join(TABLES)}")
        yield found


@pytest.fixture
def make_user() -> Callable[..., User]:
    serial = itertools.count(1)

    def make(username: str = "", **values: Any) -> User:
        name = username or f"user{next(serial)}"
        now = datetime.now(UTC)
        standard: dict[str, Any] = {
            "id": new_id(),
            "username": name,
            "email": f"{name.lower()}@example.com",
            "full_name": None,
            "role": "user",
            "version": 1,
            "created_at": now,
            "updated_at": now,
        }
        return User(**{**standard, **values})

    return make


@pytest.fixture
def add_user(store: Store, make_user: Callable[..., User]) -> Callable[..., Any]:
    """Store a user whose password's hash is `hash`."""

    async def add(username: str = "", **values: Any) -> User:
        user = make_user(username, **values)
        await store.users.add(user, "hash", event_of(user, "created"))
        return user

    return add


@pytest.fixture
def make_session() -> Callable[..., Session]:
    def make(user: User, *, family: bytes = b"", secret: bytes = b"secret", lasts_s: float = 60) -> Session:
        session_id = new_id()
        now = datetime.now(UTC)
        return Session(
            session_id, user.id, family or session_id.encode(), secret, now, now + timedelta(seconds=lasts_s)
        )

    return make


@pytest.fixture
def waiting(store: Store) -> Callable[..., Any]:
    """The events in the outbox, oldest first."""

    async def read() -> list[Event]:
        async with store.outbox.line() as line:
            return await line.waiting(1000)

    return read


class FakePasswords:
    """Hashes that can be read; `outdated` names one that is to be renewed."""

    decoy = "hash of nothing"
    outdated = ""

    def __init__(self) -> None:
        self.verified: list[str] = []

    async def hash(self, password: str) -> str:
        return f"hash of {password}"

    async def verify(self, password: str, password_hash: str) -> bool:
        self.verified.append(password_hash)
        return password_hash.removesuffix(" (old)") == f"hash of {password}"

    def is_outdated(self, password_hash: str) -> bool:
        return password_hash.endswith("(old)")


@pytest.fixture
def passwords() -> FakePasswords:
    return FakePasswords()


@dataclass
class FakeTally:
    users_created: int = 0
    logins: list[str] = field(default_factory=list)
    backlogs: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    mails: list[str] = field(default_factory=list)
    mail_backlogs: list[int] = field(default_factory=list)

    def user_created(self) -> None:
        self.users_created += 1

    def login(self, result: str) -> None:
        self.logins.append(result)

    def session_ended(self, reason: str) -> None:
        self.ends.append(reason)

    def backlog(self, events: int) -> None:
        self.backlogs.append(events)

    def mail_sent(self) -> None:
        self.mails.append("sent")

    def mail_failed(self, reason: str) -> None:
        self.mails.append(reason)

    def mail_limited(self) -> None:
        self.mails.append("limited")

    def mail_backlog(self, mails: int) -> None:
        self.mail_backlogs.append(mails)


@pytest.fixture
def tally() -> FakeTally:
    return FakeTally()


class ReadableSeal:
    """A Seal that anybody can open."""

    def close(self, text: str, *, bound_to: str) -> bytes:
        return f"{bound_to}|{text}".encode()

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        bound, _, text = sealed.decode().partition("|")
        if bound != bound_to:
            raise SealBroken
        return text


@pytest.fixture
async def counters() -> AsyncIterator[Counters]:
    cache = MemoryCache(MemoryStore())
    found = Counters(cache)
    yield found
    await found.close()
    await cache.close()


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def letters(counters: Counters, tally: FakeTally, calls: list[str]) -> Letters:
    """Five letters an hour, whose tokens can be read in their mails; `calls` says when one was posted."""
    return Letters(ReadableSeal(), counters, tally=tally, per_hour_max=5, posted=lambda: calls.append("posted"))


@pytest.fixture
def tokens_of(store: Store) -> Callable[..., Any]:
    """The tokens in the mails that wait, oldest first; they are not due again for a minute."""

    async def read() -> list[str]:
        now = datetime.now(UTC)
        mails = await store.mails.claim(now, until=now + timedelta(minutes=1), limit=100)
        return [mail.sealed.decode().partition("|")[2] for mail in sorted(mails, key=lambda mail: mail.number)]

    return read


class ReadableTokens:
    lasts_s = 600

    def issue(self, user: User, session_id: str) -> str:
        return f"{user.id} {session_id} {user.role}"


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
async def ada(database: MemoryDatabase, make_user: Callable[..., User]) -> User:
    """A user whose password is `correct horse`."""
    user = make_user("Ada")
    await MemoryUsers(database).add(user, "hash of correct horse", event_of(user, "created"))
    return user


@pytest.fixture
def told() -> list[Event]:
    """The ends of sessions that other services were told of."""
    return []


@pytest.fixture
def endings(told: list[Event]) -> Endings:
    async def tell(event: Event) -> None:
        told.append(event)

    return Endings(token_lasts_s=600, tell=tell)


@pytest.fixture
def make_sessions(database: MemoryDatabase, endings: Endings, tally: FakeTally) -> Callable[..., SessionService]:
    """Sessions in `database`, whose access tokens can be read."""

    def make(repository: MemorySessions | None = None, *, lasts_s: float = 3600) -> SessionService:
        return SessionService(
            repository or MemorySessions(database),
            ReadableTokens(),
            endings,
            tally,
            successor_key=b"a key for the tests",
            lasts_s=lasts_s,
        )

    return make


class Api:
    """The service as its clients use it."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        self._serial = itertools.count(1)

    async def register(self, username: str = "", **values: Any) -> dict[str, Any]:
        name = username or f"someone{next(self._serial)}"
        body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD, **values}
        answer = await self.client.post("/users", json=body)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def tokens(self, login: str, password: str = PASSWORD) -> dict[str, Any]:
        answer = await self.client.post("/auth/token", data={"username": login, "password": password})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def bearer(self, login: str, password: str = PASSWORD) -> dict[str, str]:
        return {"Authorization": f"Bearer {(await self.tokens(login, password))['access_token']}"}

    async def admin(self) -> dict[str, str]:
        return await self.bearer("admin", ADMIN_PASSWORD)


@pytest.fixture
async def client(make_settings: Callable[..., UsersSettings]) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(create(make_settings())) as found:
        yield found


@pytest.fixture
def api(client: httpx2.AsyncClient) -> Api:
    return Api(client)


@pytest.fixture
def api_of() -> Callable[[httpx2.AsyncClient], Api]:
    return Api
