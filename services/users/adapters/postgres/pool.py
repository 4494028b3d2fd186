"""The connections to PostgreSQL: a bounded pool, a time limit on every step, and failures turned into ours."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import asyncpg
import structlog

from services.users.adapters.postgres.connections import Connections
from services.users.adapters.start import StoreError
from shared import context
from shared.errors import DeadlineExceeded, Unavailable

STATEMENT_TIMEOUT_S = 5.0
ACQUIRE_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 5.0
START_WAIT_S = 10.0
"""PostgreSQL itself may still be starting when we are."""

ANSWER_S = 0.4
"""What is left of a request's deadline for giving the connection back and saying that the store did not answer."""

CLOSE_TIMEOUT_S = 5.0
RETRY_AFTER_S = 1.0

_AWAY = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, starting up, statement timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.TransactionRollbackError,  # a deadlock, of which one side is let go
    asyncpg.InternalClientError,  # a statement sent between the last word of a dying server and the end of the connection
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn a store that is away or slow into Unavailable, or DeadlineExceeded where the request's deadline came first."""
    try:
        yield
    except TimeoutError as error:
        deadline = context.deadline()
        if deadline is not None and deadline.expired:
            raise DeadlineExceeded from error
        raise Unavailable("the store did not answer in time", retry_after_s=RETRY_AFTER_S) from error
    except _AWAY as error:
        # The driver's text may name hosts; it goes to the log, not to the client.
        structlog.get_logger().warning("store_unavailable", reason=f"{type(error).__name__}: {error}"[:300])
        raise Unavailable("the store is not available", retry_after_s=RETRY_AFTER_S) from error
    except asyncpg.PostgresError as error:
        # Expected by the caller, or a fault of ours that is logged: PostgreSQL tells the whole row there, its password hash too.
        error.detail = None
        raise


class Statements(Protocol):
    """Runs statements: each by itself (`Database`), or all as one transaction (`Transaction`)."""

    async def rows(self, sql: str, *values: object) -> list[Any]:
        """Return all rows of a statement; those that answer with many bound them by LIMIT."""

    async def row(self, sql: str, *values: object) -> Any:
        """Return the first row of a statement, None when there is none."""


class Transaction:
    """Runs statements on the connection of a transaction."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, *values: object) -> list[Any]:
        return list(await self._connection.fetch(sql, *values, timeout=statement_timeout_s()))

    async def row(self, sql: str, *values: object) -> Any:
        return await self._connection.fetchrow(sql, *values, timeout=statement_timeout_s())


class Database:
    """Runs statements on a pooled connection, each within its own limit and the request's deadline."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Hand out a connection; failures in the block are translated. Raises Unavailable, DeadlineExceeded."""
        with translated():
            async with self._connections.use(_bounded_s(ACQUIRE_TIMEOUT_S)) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Begin a transaction that is stored when the block ends and rolled back when it raises. Raises as `connection` does."""
        async with self.connection() as connection, connection.transaction():
            yield Transaction(connection)

    async def rows(self, sql: str, *values: object) -> list[Any]:
        async with self.connection() as connection:
            return list(await connection.fetch(sql, *values, timeout=statement_timeout_s()))

    async def row(self, sql: str, *values: object) -> Any:
        # As `connection` does, without its generator: this is in every request.
        with translated():
            async with self._connections.use(_bounded_s(ACQUIRE_TIMEOUT_S)) as connection:
                return await connection.fetchrow(sql, *values, timeout=statement_timeout_s())

    async def ping(self) -> None:
        """Make one round trip. Raises Unavailable."""
        await self.row("SELECT 1")


def statement_timeout_s() -> float:
    """Seconds that a statement may take for the request being served."""
    return _bounded_s(STATEMENT_TIMEOUT_S)


def _bounded_s(limit_s: float) -> float:
    """Return the limit, or less where the request's deadline comes first; then with time to answer, where there is any."""
    deadline = context.deadline()
    if deadline is None:
        return limit_s
    left_s = deadline.remaining_s()
    return min(limit_s, left_s - ANSWER_S if left_s > 2 * ANSWER_S else left_s)


async def connect(url: str, *, name: str) -> asyncpg.Connection:
    """Open one connection outside of the pool, without a statement timeout at the server. Raises Unavailable."""
    with translated():
        return await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=STATEMENT_TIMEOUT_S,
            server_settings={"application_name": name},
        )


@asynccontextmanager
async def open_database(url: str, *, name: str, connections_max: int) -> AsyncIterator[Database]:
    """Open the pool, waiting up to 10 s for PostgreSQL. Raises StoreError."""
    pool = await _open_pool(url, name=name, connections_max=connections_max)
    connections = Connections(pool, connections_max)
    try:
        yield Database(connections)
    finally:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connections.close()
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _open_pool(url: str, *, name: str, connections_max: int) -> asyncpg.Pool:
    give_up_at = asyncio.get_running_loop().time() + START_WAIT_S
    while True:
        try:
            return await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=connections_max,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=STATEMENT_TIMEOUT_S,
                max_inactive_connection_lifetime=300,
                # Nothing here leaves state on a connection, so the round trip that would reset it is saved.
                reset=_keep,
                server_settings={
                    "application_name": name,
                    "statement_timeout": f"{int(STATEMENT_TIMEOUT_S * 1000)}",
                    "idle_in_transaction_session_timeout": f"{int(STATEMENT_TIMEOUT_S * 2000)}",
                },
            )
        except (TimeoutError, *_AWAY) as error:
            if asyncio.get_running_loop().time() > give_up_at:
                raise StoreError(f"PostgreSQL does not answer: {type(error).__name__}") from error
            await asyncio.sleep(0.1)
        except asyncpg.PostgresError as error:
            raise StoreError(f"PostgreSQL refuses us: {error}") from error


async def _keep(_: asyncpg.Connection) -> None:
    """Leave a connection as it is when it goes back to the pool."""
