"""The store of one process: opened by the URL's scheme, handed to routes by `get_db`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from starlette.requests import HTTPConnection

from services.users.adapters.memory import MemoryKeys, MemoryOutbox
from services.users.adapters.memory_audit import MemoryAudit
from services.users.adapters.memory_database import MemoryDatabase
from services.users.adapters.memory_idempotency import MemoryIdempotency
from services.users.adapters.memory_mail import MemoryMailOutbox, MemoryTokens
from services.users.adapters.memory_sessions import MemorySessions
from services.users.adapters.memory_users import MemoryUsers
from services.users.domain.ports import (
    AuditLog,
    IdempotencyStore,
    KeyStore,
    MailOutbox,
    OneTimeTokens,
    Outbox,
    SessionRepository,
    Unit,
    UserRepository,
)
from shared.app import parts_of


@dataclass(frozen=True, slots=True)
class Store:
    """Everything stored, whatever stores it."""

    users: UserRepository
    sessions: SessionRepository
    outbox: Outbox
    keys: KeyStore
    audit: AuditLog
    idempotency: IdempotencyStore
    tokens: OneTimeTokens
    mails: MailOutbox
    unit: Callable[[], AbstractAsyncContextManager[Unit]]
    ping: Callable[[], Awaitable[None]]


class HasStore(Protocol):
    @property
    def store(self) -> Store: ...


@dataclass(frozen=True, slots=True)
class UnitOfWork:
    """The repositories of one transaction; a Unit."""

    users: UserRepository
    idempotency: IdempotencyStore


@asynccontextmanager
async def _memory_unit(memory: MemoryDatabase) -> AsyncIterator[Unit]:
    async with memory.unit() as joined:
        yield UnitOfWork(MemoryUsers(joined), MemoryIdempotency(joined))


@asynccontextmanager
async def open_store(url: str, *, name: str, connections_max: int = 10) -> AsyncIterator[Store]:
    """Open the store of a `memory://` or `postgresql://` URL, migrated; `name` is shown to the server. Raises StoreError."""
    if url.startswith("memory:"):
        memory = MemoryDatabase()
        yield Store(
            users=MemoryUsers(memory),
            sessions=MemorySessions(memory),
            outbox=MemoryOutbox(memory),
            keys=MemoryKeys(memory),
            audit=MemoryAudit(memory),
            idempotency=MemoryIdempotency(memory),
            tokens=MemoryTokens(memory),
            mails=MemoryMailOutbox(memory),
            unit=partial(_memory_unit, memory),
            ping=memory.ping,
        )
        return
    # Here, so that a process on memory:// does not pay for the driver.
    from services.users.adapters.postgres.audit import PostgresAudit
    from services.users.adapters.postgres.idempotency import PostgresIdempotency
    from services.users.adapters.postgres.keys import PostgresKeys
    from services.users.adapters.postgres.mail import PostgresMailOutbox, PostgresTokens
    from services.users.adapters.postgres.migrate import migrate, read_migrations
    from services.users.adapters.postgres.outbox import PostgresOutbox
    from services.users.adapters.postgres.pool import open_database
    from services.users.adapters.postgres.sessions import PostgresSessions
    from services.users.adapters.postgres.users import PostgresUsers

    @asynccontextmanager
    async def unit() -> AsyncIterator[Unit]:
        async with database.transaction() as transaction:
            yield UnitOfWork(PostgresUsers(transaction), PostgresIdempotency(transaction))

    async with open_database(url, name=name, connections_max=connections_max) as database:
        await migrate(url, name=name, migrations=read_migrations())
        yield Store(
            users=PostgresUsers(database),
            sessions=PostgresSessions(database),
            outbox=PostgresOutbox(url, name=name),
            keys=PostgresKeys(database),
            audit=PostgresAudit(database),
            idempotency=PostgresIdempotency(database),
            tokens=PostgresTokens(database),
            mails=PostgresMailOutbox(database),
            unit=unit,
            ping=database.ping,
        )


async def get_db(connection: HTTPConnection) -> Store:
    """Return the one store of this process; a FastAPI dependency."""
    parts: HasStore = parts_of(connection)
    return parts.store
